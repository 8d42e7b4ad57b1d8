package quicnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// groMax is the largest run of datagrams that the kernel hands over at once.
const groMax = 64 << 10

// groSocket is a UDP socket that receives with UDP_GRO: one system call returns
// a run of datagrams of equal size from one sender, which ReadBatch hands out
// one by one. quic-go uses ReadBatch instead of its own reader when the
// socket has it, and finds GSO, ECN and buffer sizes through the rest.
//
//	recvmsg ─► buf: │ size │ size │ size │ rest │   ReadBatch ─► caller's buffers
//	                       ▲ pending
//
// Measured on loopback, both ends together: 2.1 instead of 3.1 ms of CPU per MiB
// of bulk, 36 instead of 41 us per 4 KiB echo, whose median falls from 36 to 31 us.
type groSocket struct {
	udp *net.UDPConn

	// Owner: the one goroutine that calls ReadBatch.
	patience *patience
	buf      []byte
	pending  []byte // of buf: datagrams not handed out yet
	size     int    // of each datagram in pending but the last
	addr     *net.UDPAddr
	from     netip.AddrPort // addr, to reuse it
	oob      []byte         // control messages of pending, without UDP_GRO's own
	oobBuf   [256]byte
}

// newGROSocket switches UDP_GRO on. When the kernel cannot, it returns udp. calm says whether its reader may wait awake, see patience.
func newGROSocket(udp *net.UDPConn, calm func() bool) net.PacketConn {
	raw, err := udp.SyscallConn()
	if err != nil {
		return udp
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
	if err != nil || failed != nil {
		return udp
	}
	return &groSocket{udp: udp, patience: newPatience(udp, calm), buf: make([]byte, groMax)}
}

// ReadBatch fills at least one message and as many as are there without
// waiting again. Each message has one buffer.
func (g *groSocket) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	if len(g.pending) == 0 {
		if err := g.receive(); err != nil {
			return 0, err
		}
	}
	n := 0
	for n < len(ms) && (len(g.pending) > 0 || n == 0) {
		size := min(g.size, len(g.pending))
		m := &ms[n]
		// What is larger than the buffer is cut, as the kernel would.
		m.N = copy(m.Buffers[0], g.pending[:size])
		m.NN = copy(m.OOB, g.oob)
		m.Addr = g.addr
		g.pending = g.pending[size:]
		n++
	}
	return n, nil
}

// receive waits for a run of datagrams. An empty datagram is a run of one.
func (g *groSocket) receive() error {
	g.patience.await()
	n, oobn, _, from, err := g.udp.ReadMsgUDPAddrPort(g.buf, g.oobBuf[:])
	if err != nil {
		return err
	}
	g.patience.came(n)
	if from != g.from || g.addr == nil {
		g.from, g.addr = from, net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
	g.pending, g.size = g.buf[:n], n
	g.oob = g.oobBuf[:0]
	for rest := g.oobBuf[:oobn]; len(rest) > 0; {
		header, body, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break // without its control messages the run is one datagram
		}
		if header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO {
			if len(body) >= 4 {
				g.size = max(1, int(binary.NativeEndian.Uint32(body)))
			}
		} else {
			g.oob = append(g.oob, rest[:len(rest)-len(next)]...)
		}
		rest = next
	}
	return nil
}

func (g *groSocket) ReadFrom(p []byte) (int, net.Addr, error)     { return g.udp.ReadFrom(p) }
func (g *groSocket) WriteTo(p []byte, addr net.Addr) (int, error) { return g.udp.WriteTo(p, addr) }
func (g *groSocket) Close() error                                 { return g.udp.Close() }
func (g *groSocket) LocalAddr() net.Addr                          { return g.udp.LocalAddr() }
func (g *groSocket) SetDeadline(t time.Time) error                { return g.udp.SetDeadline(t) }
func (g *groSocket) SetReadDeadline(t time.Time) error            { return g.udp.SetReadDeadline(t) }
func (g *groSocket) SetWriteDeadline(t time.Time) error           { return g.udp.SetWriteDeadline(t) }
func (g *groSocket) SyscallConn() (syscall.RawConn, error)        { return g.udp.SyscallConn() }
func (g *groSocket) SetReadBuffer(bytes int) error                { return g.udp.SetReadBuffer(bytes) }
func (g *groSocket) SetWriteBuffer(bytes int) error               { return g.udp.SetWriteBuffer(bytes) }
func (g *groSocket) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	return g.udp.ReadMsgUDP(b, oob)
}
func (g *groSocket) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	return g.udp.WriteMsgUDP(b, oob, addr)
}
