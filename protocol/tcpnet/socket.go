package tcpnet

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setPriority and setUnsent ask for what a kernel may not have; without it bulk data
// only competes as an equal.

func setPriority(c net.Conn, priority int) { setOption(c, unix.SOL_SOCKET, unix.SO_PRIORITY, priority) }

func setUnsent(c net.Conn, bytes int) { setOption(c, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) }

func setOption(c net.Conn, level, option, value int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), level, option, value) })
}

// info returns the kernel's figures of a connection, nil when it has none.
func info(c net.Conn) *unix.TCPInfo {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	var out *unix.TCPInfo
	_ = raw.Control(func(fd uintptr) { out, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return out
}
