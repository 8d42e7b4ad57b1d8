package tcpnet

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// network is where connections come from; tests have one of their own.
type network struct {
	listen func(address string) (net.Listener, error)
	dial   func(ctx context.Context, address string) (net.Conn, error)
}

// endpoint is a listening port, and where connections are dialed from.
type endpoint struct {
	port     session.Port
	network  network
	listener net.Listener
	accepted chan *conn // control connections, for Accept
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	guests  []*stream // that have not said what they are, the oldest first
	conns   map[*conn]bool
	tickets map[ticket]*conn // of accepted ones
	closed  bool
}

// Open is a session.Opener: it listens on the TCP port.
func Open(port session.Port) (session.Endpoint, error) {
	return openOn(network{
		listen: func(address string) (net.Listener, error) { return net.Listen("tcp", address) },
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: from(port.Listen)}).DialContext(ctx, "tcp", address)
		},
	}, port)
}

// from returns where to dial from: the address that the node listens on, if it is one, as
// its peers and their firewalls know it.
func from(listen string) net.Addr {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || at.Addr().IsUnspecified() {
		return nil // the kernel chooses
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), 0))
}

func openOn(on network, port session.Port) (*endpoint, error) {
	listener, err := on.listen(port.Listen)
	if err != nil {
		return nil, err
	}
	e := &endpoint{port: port, network: on, listener: listener, accepted: make(chan *conn),
		conns: map[*conn]bool{}, tickets: map[ticket]*conn{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.wg.Go(e.accept)
	return e, nil
}

// CheckCongestion implements session.Endpoint.
func (e *endpoint) CheckCongestion(name string) error { return checkCongestion(name) }

// Addr implements session.Endpoint.
func (e *endpoint) Addr() net.Addr { return e.listener.Addr() }

// Accept implements session.Endpoint.
func (e *endpoint) Accept(ctx context.Context) (session.Conn, error) {
	select {
	case c := <-e.accepted:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.ctx.Done():
		return nil, session.ErrClosed
	}
}

// Dial implements session.Endpoint.
func (e *endpoint) Dial(ctx context.Context, address string, keys []ed25519.PublicKey) (session.Conn, error) {
	s, err := e.dial(ctx, address, keys, session.ALPN, new(atomic.Uint64))
	if err != nil {
		return nil, err
	}
	return e.begin(s, true)
}

// begin makes s the control stream of a connection.
func (e *endpoint) begin(s *stream, dialed bool) (*conn, error) {
	c, err := newConn(e, s, dialed)
	if err != nil {
		s.end(abortive)
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		s.end(abortive)
		return nil, session.ErrClosed
	}
	e.conns[c] = true
	if !dialed {
		e.tickets[c.ticket] = c
	}
	e.wg.Go(c.pump)
	return c, nil
}

// ended forgets a connection.
func (e *endpoint) ended(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
	delete(e.tickets, c.ticket)
}

// dial opens a TLS connection to who has one of the keys.
func (e *endpoint) dial(ctx context.Context, address string, keys []ed25519.PublicKey, alpn string, heard *atomic.Uint64) (*stream, error) {
	c, err := e.network.dial(ctx, address)
	if err != nil {
		return nil, unreachable(err)
	}
	config := session.ClientTLS(e.port.Certificate, keys)
	config.NextProtos = []string{alpn}
	config.DynamicRecordSizingDisabled = true
	s := newStream(c, heard, tls.Client, config)
	if err := s.tls.HandshakeContext(ctx); err != nil {
		s.end(abortive)
		return nil, handshakeFailed(ctx, err, s.certified)
	}
	e.tune(s)
	return s, nil
}

// tune sets what is configured for the peer that has proved its key.
func (e *endpoint) tune(s *stream) {
	if key, err := session.PresentedKey(s.tls.ConnectionState()); err == nil && e.port.Congestion != nil {
		if name := e.port.Congestion(key); name != "" {
			setCongestion(s.net, name) // which was there when the peer was configured
		}
	}
}

// accept takes connections. One that cannot be taken, because the process has no
// descriptors left, is tried again.
func (e *endpoint) accept() {
	for {
		c, err := e.listener.Accept()
		switch {
		case err == nil:
		case e.ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		default:
			select {
			case <-time.After(acceptPause):
			case <-e.ctx.Done():
			}
			continue
		}
		config := session.ServerTLS(e.port.Certificate, e.port.Allowed)
		// VerifyConnection asks for the certificate, so that its absence has an error
		// of its own.
		config.ClientAuth = tls.RequestClientCert
		config.NextProtos = []string{session.ALPN, alpnStream}
		config.DynamicRecordSizingDisabled = true
		s := newStream(c, new(atomic.Uint64), tls.Server, config)
		e.greet(s)
		e.wg.Go(func() { e.welcome(s) })
	}
}

// greet makes s a guest, and ends the oldest if there are too many: of those that are from no peer's host, if there are any.
func (e *endpoint) greet(s *stream) {
	most := guestsMax + 2*e.port.Peers()
	s.ofPeer = e.port.PeerOn != nil && e.port.PeerOn(session.HostOf(s.net.RemoteAddr()))
	var oldest *stream
	e.mu.Lock()
	e.guests = append(e.guests, s)
	if len(e.guests) > most {
		i := max(0, slices.IndexFunc(e.guests, func(g *stream) bool { return !g.ofPeer }))
		oldest = e.guests[i]
		e.guests = slices.Delete(e.guests, i, i+1)
	}
	e.mu.Unlock()
	if oldest != nil {
		oldest.end(abortive)
	}
}

// known takes s off the guests.
func (e *endpoint) known(s *stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, g := range e.guests {
		if g == s {
			e.guests = slices.Delete(e.guests, i, i+1)
			return
		}
	}
}

// welcome finds out what an accepted connection is.
func (e *endpoint) welcome(s *stream) {
	defer e.known(s)
	ctx, cancel := context.WithTimeout(e.ctx, e.port.DialTimeout)
	defer cancel()
	if err := s.tls.HandshakeContext(ctx); err != nil {
		addr := s.net.RemoteAddr()
		e.turnAway(s)
		e.port.Failed(addr, handshakeFailed(ctx, err, s.certified))
		return
	}
	e.tune(s)
	if s.tls.ConnectionState().NegotiatedProtocol == alpnStream {
		e.join(ctx, s)
		return
	}
	c, err := e.begin(s, false)
	if err != nil {
		return
	}
	select {
	case e.accepted <- c:
	case <-ctx.Done():
		c.Close(protocol.CodeBusy, "")
	}
}

// turnAway ends a connection after the other side had time to read the alert.
func (e *endpoint) turnAway(s *stream) {
	if c, ok := s.net.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		s.net.SetReadDeadline(time.Now().Add(turnMax))
		discard(s.net, turnBytes)
	}
	s.end(graceful)
}

// join gives s to the session that its Join names, whose peer has the same key.
func (e *endpoint) join(ctx context.Context, s *stream) {
	deadline, _ := ctx.Deadline()
	s.net.SetReadDeadline(deadline)
	frame := make([]byte, protocol.HeaderLen+protocol.JoinTicketLen)
	c, err := e.sessionOf(s, frame)
	if err != nil || !c.take(s) {
		s.end(abortive)
	}
}

// sessionOf reads Join and returns the connection that it names.
func (e *endpoint) sessionOf(s *stream, frame []byte) (*conn, error) {
	join, err := readJoin(s, frame)
	if err != nil {
		return nil, err
	}
	key, err := session.PresentedKey(s.tls.ConnectionState())
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	c := e.tickets[join.Ticket]
	e.mu.Unlock()
	if c == nil || !c.key.Equal(key) {
		return nil, fmt.Errorf("a stream for no session: %w", protocol.ErrMalformed)
	}
	s.net.SetReadDeadline(time.Time{})
	return c, nil
}

// Close implements session.Endpoint.
func (e *endpoint) Close() error {
	e.mu.Lock()
	e.closed = true
	guests := slices.Clone(e.guests)
	conns := e.conns
	e.conns = map[*conn]bool{}
	e.mu.Unlock()
	e.cancel()
	e.listener.Close()
	for _, s := range guests {
		s.end(abortive)
	}
	for c := range conns {
		c.Close(protocol.CodeShutdown, "stopping")
	}
	e.wg.Wait()
	return nil
}
