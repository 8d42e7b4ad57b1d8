package quicnet

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol/session"
)

// endpoint is a UDP socket that dials and accepts.
type endpoint struct {
	port      session.Port
	config    *quic.Config
	socket    net.PacketConn
	transport *quic.Transport
	listener  *quic.EarlyListener
	ofPeers   atomic.Int64 // connections accepted from peers' hosts and not ended
	others    atomic.Int64 // the same from others
}

// Open is a session.Opener: it opens the UDP port.
func Open(port session.Port) (session.Endpoint, error) {
	udp, err := listenUDP(port.Listen)
	if err != nil {
		return nil, err
	}
	return openOn(newGROSocket(udp, port.Calm), port)
}

// openOn runs on a socket, which it closes in the end.
func openOn(socket net.PacketConn, port session.Port) (*endpoint, error) {
	e := &endpoint{port: port, socket: socket}
	e.config = &quic.Config{
		HandshakeIdleTimeout:           port.DialTimeout,
		MaxIdleTimeout:                 max(idleMin, 2*port.PeerTimeout),
		InitialStreamReceiveWindow:     streamWindowInitial,
		MaxStreamReceiveWindow:         streamWindowMax,
		InitialConnectionReceiveWindow: connWindowInitial,
		MaxConnectionReceiveWindow:     connWindowMax,
		MaxIncomingStreams:             session.StreamsMax,
		MaxIncomingUniStreams:          -1,
		// Pings of QUIC itself pass where flow control holds the heartbeat back.
		KeepAlivePeriod: port.Heartbeat,
	}
	resetKey := quic.StatelessResetKey(port.Identity.Derive("quic stateless reset"))
	e.transport = &quic.Transport{
		Conn: e.socket,
		// A key that survives a restart lets a restarted node tell its peers at
		// once that their connections are gone.
		StatelessResetKey:   &resetKey,
		VerifySourceAddress: func(net.Addr) bool { return e.accepted() >= retryAbove },
		ConnContext:         e.admit,
	}
	listener, err := e.transport.ListenEarly(session.ServerTLS(port.Certificate, port.Allowed), e.config)
	if err != nil {
		e.socket.Close()
		return nil, err
	}
	e.listener = listener
	return e, nil
}

func listenUDP(listen string) (*net.UDPConn, error) {
	addr, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return nil, err
	}
	// quic-go asks for buffers of 7 MiB itself, by force where it may.
	return net.ListenUDP("udp", addr)
}

// admit bounds the number of accepted connections by their first packet: of those from peers' hosts, and of others. Some of the
// others may be a peer's, too, which is not always where it is configured. One goroutine calls it.
func (e *endpoint) admit(ctx context.Context, from *quic.ClientInfo) (context.Context, error) {
	count := &e.others
	if e.port.PeerOn != nil && e.port.PeerOn(session.HostOf(from.RemoteAddr)) {
		count = &e.ofPeers
	}
	if count.Load() >= int64(connsSpare+2*e.port.Peers()) {
		return nil, errors.New("too many connections")
	}
	count.Add(1)
	context.AfterFunc(ctx, func() { count.Add(-1) })
	return ctx, nil
}

// accepted returns how many connections were accepted and have not ended.
func (e *endpoint) accepted() int64 { return e.ofPeers.Load() + e.others.Load() }

// CheckCongestion implements session.Endpoint.
func (e *endpoint) CheckCongestion(string) error {
	return errors.New("QUIC has one congestion control: leave congestion out, or use transport = \"tcp\"")
}

// Addr implements session.Endpoint.
func (e *endpoint) Addr() net.Addr { return e.socket.LocalAddr() }

// Accept implements session.Endpoint.
func (e *endpoint) Accept(ctx context.Context) (session.Conn, error) {
	c, err := e.listener.Accept(ctx)
	if err != nil {
		return nil, err
	}
	return newConn(c, false), nil
}

// Dial implements session.Endpoint.
func (e *endpoint) Dial(ctx context.Context, address string, keys []ed25519.PublicKey) (session.Conn, error) {
	addr, err := resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	c, err := e.transport.Dial(ctx, addr, session.ClientTLS(e.port.Certificate, keys), e.config)
	if err != nil {
		return nil, ours(err)
	}
	return newConn(c, true), nil
}

// Close implements session.Endpoint.
func (e *endpoint) Close() error {
	e.listener.Close()
	e.transport.Close()
	e.socket.Close()
	return nil
}

// resolve looks an address up; a literal one needs no resolver.
func resolve(ctx context.Context, address string) (*net.UDPAddr, error) {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return net.UDPAddrFromAddrPort(ap), nil
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrs[0].Unmap(), uint16(port))), nil
}
