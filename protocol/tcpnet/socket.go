package tcpnet

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setPriority and setUnsent ask for what a kernel may not have; without it bulk data
// only competes as an equal.

func setPriority(c net.Conn, priority int) { setOption(c, unix.SOL_SOCKET, unix.SO_PRIORITY, priority) }

func setUnsent(c net.Conn, bytes int) { setOption(c, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) }

func setOption(c net.Conn, level, option, value int) {
	onSocket(c, func(fd int) { _ = unix.SetsockoptInt(fd, level, option, value) })
}

// onSocket calls f with the descriptor of a connection that has one.
func onSocket(c net.Conn, f func(fd int)) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// setCongestion chooses a connection's congestion control.
func setCongestion(c net.Conn, name string) {
	onSocket(c, func(fd int) { _ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) })
}

// checkCongestion tries a congestion control on a socket of its own.
func checkCongestion(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel has no congestion control %q: load its module (modprobe tcp_%[1]s), or leave congestion out", name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("congestion control %q is not allowed to this user: add it to sysctl net.ipv4.tcp_allowed_congestion_control, or leave congestion out", name)
	case err != nil:
		return fmt.Errorf("congestion control %q: %w", name, err)
	}
	return nil
}

// info returns the kernel's figures of a connection, nil when it has none.
func info(c net.Conn) (out *unix.TCPInfo) {
	onSocket(c, func(fd int) { out, _ = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO) })
	return out
}
