package tcpnet

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// conn is a session.Conn: a control connection and those of its streams.
type conn struct {
	endpoint *endpoint
	ctl      *stream
	key      ed25519.PublicKey // the peer's
	state    tls.ConnectionState
	ticket   ticket
	dialed   bool
	heard    *atomic.Uint64
	joined   chan *stream  // the peer's streams, for Accept
	slots    chan struct{} // semaphore of the streams that this side opened
	ctlRead  net.Conn      // what pump has read, for the session
	ctlPump  net.Conn      // the other end of ctlRead
	done     chan struct{} // closed when it has ended

	mu sync.Mutex
	// Guarded by mu.
	streams map[*stream]bool // without ctl; true: has a slot
	past    session.Stats    // of streams that have ended
	cause   error            // set before done is closed
	parting chan struct{}    // set with cause by Close; closed when the peer has been told
}

// errNotDialer: the other side may be behind a firewall that lets its own connections out
// and none in.
var errNotDialer = errors.New("only the side that dialed the session opens streams")

// ticket is protocol.Join's.
type ticket [protocol.JoinTicketLen]byte

// newConn makes a connection of a control stream whose handshake is over.
func newConn(e *endpoint, ctl *stream, dialed bool) (*conn, error) {
	c := &conn{
		endpoint: e, ctl: ctl, dialed: dialed, state: ctl.tls.ConnectionState(), heard: ctl.wire.heard,
		joined:  make(chan *stream, joinedMax),
		slots:   make(chan struct{}, session.StreamsMax-1),
		done:    make(chan struct{}),
		streams: map[*stream]bool{},
	}
	var err error
	if c.key, err = session.PresentedKey(c.state); err != nil {
		return nil, err
	}
	secret, err := c.state.ExportKeyingMaterial(protocol.JoinLabel, nil, len(c.ticket))
	if err != nil {
		return nil, fmt.Errorf("session ticket: %w", err)
	}
	copy(c.ticket[:], secret)
	ctl.conn = c
	setPriority(ctl.net, priorityControl)
	c.ctlRead, c.ctlPump = net.Pipe()
	return c, nil
}

// Handshake implements session.Conn: it is over.
func (c *conn) Handshake(context.Context) error { return nil }

// TLS implements session.Conn.
func (c *conn) TLS() tls.ConnectionState { return c.state }

// Control implements session.Conn.
func (c *conn) Control(context.Context) (session.Carrier, error) {
	return &control{c}, nil
}

// Open implements session.Conn.
func (c *conn) Open(ctx context.Context, kind protocol.StreamKind) (session.Carrier, error) {
	if !c.dialed {
		return nil, errNotDialer
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return nil, c.Cause()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := c.join(ctx)
	if err != nil {
		<-c.slots
		return nil, err
	}
	s.SetKind(kind)
	return s, nil
}

// join opens a connection for a stream.
func (c *conn) join(ctx context.Context) (*stream, error) {
	s, err := c.endpoint.dial(ctx, c.ctl.net.RemoteAddr().String(), []ed25519.PublicKey{c.key}, alpnStream, c.heard)
	if err != nil {
		return nil, c.orCause(err)
	}
	if !c.add(s, true) {
		s.end(abortive)
		return nil, c.Cause()
	}
	deadline, _ := ctx.Deadline()
	s.SetWriteDeadline(deadline)
	// With StreamOpen it makes one packet, or nearly.
	if _, err := s.Write(protocol.AppendFrame(nil, &protocol.Join{Ticket: c.ticket}, nil)); err != nil {
		s.end(abortive)
		c.forget(s)
		return nil, c.orCause(err)
	}
	s.SetWriteDeadline(time.Time{})
	return s, nil
}

// orCause returns the connection's cause if it has ended, else err.
func (c *conn) orCause(err error) error {
	select {
	case <-c.done:
		return c.Cause()
	default:
		return err
	}
}

// Accept implements session.Conn.
func (c *conn) Accept() (session.Carrier, error) {
	select {
	case s := <-c.joined:
		return s, nil
	case <-c.done:
		return nil, c.Cause()
	}
}

// take gives a stream that the peer opened to Accept; false: it may have no more.
func (c *conn) take(s *stream) bool {
	if !c.add(s, false) {
		return false
	}
	select {
	case c.joined <- s:
		return true
	default:
		c.forget(s)
		return false
	}
}

// add makes s a stream of c, unless c has ended or has too many.
func (c *conn) add(s *stream, slot bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil || len(c.streams) >= joinedMax {
		return false
	}
	s.conn = c
	c.streams[s] = slot
	return true
}

// forget takes s out of the streams and says whether it had a slot.
func (c *conn) forget(s *stream) (slot bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot = c.streams[s]
	delete(c.streams, s)
	return slot
}

// left is told that s was aborted on this side.
func (c *conn) left(s *stream) {
	if c.forget(s) {
		<-c.slots
	}
}

// Close implements session.Conn.
func (c *conn) Close(code protocol.Code, text string) {
	parting := make(chan struct{})
	if !c.finish(session.ErrClosed, parting) {
		return
	}
	c.ctl.net.SetDeadline(time.Now().Add(lingerMax))
	c.endpoint.wg.Go(func() {
		defer close(parting)
		// pump reads on: closed with bytes unread, the socket would tell the peer
		// of a reset, and maybe nothing else.
		if _, err := c.ctl.Write(protocol.AppendFrame(nil, &protocol.Close{Code: code, Text: text}, nil)); err == nil {
			c.ctl.Close()
		}
	})
}

// lost ends the connection because of what happened to its control stream.
func (c *conn) lost(cause error) {
	if c.finish(cause, nil) {
		c.ctl.end(abortive)
	}
}

// finish ends all streams but control, once.
func (c *conn) finish(cause error, parting chan struct{}) bool {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return false
	}
	c.cause, c.parting = cause, parting
	streams := c.streams
	c.streams = map[*stream]bool{}
	close(c.done)
	c.mu.Unlock()
	c.ctlRead.Close()
	c.ctlPump.Close()
	for s := range streams {
		s.end(abortive)
	}
	c.endpoint.ended(c)
	return true
}

// Done implements session.Conn.
func (c *conn) Done() <-chan struct{} { return c.done }

// Cause implements session.Conn.
func (c *conn) Cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// RemoteAddr implements session.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.ctl.net.RemoteAddr() }

// Heard implements session.Conn: reads of any of its streams that brought something.
func (c *conn) Heard() uint64 { return c.heard.Load() }

// Stats implements session.Conn. The round trip is not the kernel's, which counts how
// long an acknowledgement may be delayed on a connection that says little.
func (c *conn) Stats() session.Stats {
	c.mu.Lock()
	out := c.past
	all := make([]*stream, 0, len(c.streams)+1)
	for s := range c.streams {
		all = append(all, s)
	}
	c.mu.Unlock()
	for _, s := range append(all, c.ctl) {
		i := info(s.net)
		if i == nil {
			continue
		}
		out.CongestionWindow += uint64(i.Snd_cwnd) * uint64(i.Snd_mss)
		count(&out, i)
	}
	return out
}

// retire counts what a stream has done that ends now.
func (c *conn) retire(s *stream) {
	if i := info(s.net); i != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		count(&c.past, i)
	}
}

func count(st *session.Stats, i *unix.TCPInfo) {
	st.GSO = true
	st.BytesSent += i.Bytes_sent
	st.BytesReceived += i.Bytes_received
	st.PacketsSent += uint64(i.Segs_out)
	st.PacketsLost += uint64(i.Total_retrans)
}
