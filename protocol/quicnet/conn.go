package quicnet

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// conn is a session.Conn.
type conn struct {
	q      *quic.Conn
	dialed bool
}

func newConn(q *quic.Conn, dialed bool) *conn {
	return &conn{q: q, dialed: dialed}
}

// Handshake implements session.Conn.
func (c *conn) Handshake(ctx context.Context) error {
	select {
	case <-c.q.HandshakeComplete():
		return nil
	case <-c.q.Context().Done():
		return ours(context.Cause(c.q.Context()))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TLS implements session.Conn.
func (c *conn) TLS() tls.ConnectionState { return c.q.ConnectionState().TLS }

// Control implements session.Conn.
func (c *conn) Control(ctx context.Context) (session.Carrier, error) {
	open := c.q.AcceptStream
	if c.dialed {
		open = c.q.OpenStreamSync
	}
	q, err := open(ctx)
	if err != nil {
		return nil, ours(err)
	}
	q.SetPriority(urgencyControl, false)
	return &stream{q}, nil
}

// Open implements session.Conn.
func (c *conn) Open(ctx context.Context, kind protocol.StreamKind) (session.Carrier, error) {
	q, err := c.q.OpenStreamSync(ctx)
	if err != nil {
		return nil, ours(err)
	}
	s := &stream{q}
	s.SetKind(kind)
	return s, nil
}

// Accept implements session.Conn.
func (c *conn) Accept() (session.Carrier, error) {
	q, err := c.q.AcceptStream(c.q.Context())
	if err != nil {
		return nil, ours(err)
	}
	return &stream{q}, nil
}

// Close implements session.Conn.
func (c *conn) Close(code protocol.Code, text string) {
	c.q.CloseWithError(quic.ApplicationErrorCode(code), text)
}

// Done implements session.Conn.
func (c *conn) Done() <-chan struct{} { return c.q.Context().Done() }

// Cause implements session.Conn.
func (c *conn) Cause() error { return ours(context.Cause(c.q.Context())) }

// RemoteAddr implements session.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.q.RemoteAddr() }

// Heard implements session.Conn.
func (c *conn) Heard() uint64 { return c.q.ConnectionStats().PacketsReceived }

// Stats implements session.Conn.
func (c *conn) Stats() session.Stats {
	s := c.q.ConnectionStats()
	return session.Stats{
		RTT: s.SmoothedRTT, BytesSent: s.BytesSent, BytesReceived: s.BytesReceived, PacketsSent: s.PacketsSent,
		PacketsLost: s.PacketsLost, CongestionWindow: s.CongestionWindow, GSO: c.q.ConnectionState().GSO,
	}
}
