package tcpnet

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// tryMax is the largest p that TryWrite takes: it fits in a batch.
const tryMax = 32 << 10

// stream is a session.Carrier: a TLS connection of its own.
type stream struct {
	net       net.Conn
	wire      *wire
	tls       *tls.Conn
	conn      *conn // set before the stream is handed out
	certified bool  // this side presented a certificate
	ofPeer    bool  // accepted from the host of a configured peer. Owner: accept, until it is a guest
	aborted   atomic.Bool
	once      sync.Once

	writeMu sync.Mutex // held while writing
}

func newStream(c net.Conn, heard *atomic.Uint64, side func(net.Conn, *tls.Config) *tls.Conn, config *tls.Config) *stream {
	s := &stream{net: c, wire: newWire(c, heard), certified: len(config.Certificates) > 0}
	s.tls = side(s.wire, config)
	return s
}

// Read implements session.Carrier. It returns as many whole records as have come: a reader that
// asks whether more is here sees all of what the peer sent at once.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.tls.Read(p)
	for err == nil && n < len(p) && s.wire.whole() {
		var m int
		m, err = s.tls.Read(p[n:])
		n += m
	}
	if n > 0 {
		return n, nil // an error stays, and comes back with the next call
	}
	return 0, s.ours(err)
}

// Write implements session.Carrier.
func (s *stream) Write(p []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.wire.hold = true
	n, err := s.tls.Write(p)
	s.wire.hold = false
	if e := s.wire.flush(); err == nil {
		err = e
	}
	return n, s.ours(err)
}

// TryWrite implements session.Carrier.
func (s *stream) TryWrite(p []byte) (ok bool, err error) {
	if len(p) > tryMax || !s.writeMu.TryLock() {
		return false, nil
	}
	defer s.writeMu.Unlock()
	if s.wire.busy() {
		return false, nil
	}
	s.wire.hold = true
	_, err = s.tls.Write(p)
	s.wire.hold = false
	if err == nil {
		err = s.wire.nowait()
	}
	return err == nil, s.ours(err)
}

// SetReadDeadline implements session.Carrier.
func (s *stream) SetReadDeadline(t time.Time) error { return s.net.SetReadDeadline(t) }

// SetWriteDeadline implements session.Carrier.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.net.SetWriteDeadline(t) }

// SetKind implements session.Carrier.
func (s *stream) SetKind(kind protocol.StreamKind) {
	switch kind {
	case protocol.StreamWrite:
		setPriority(s.net, priorityWrite)
	case protocol.StreamBulk:
		setPriority(s.net, priorityBulk)
		setUnsent(s.net, unsentMax)
		s.wire.bulk()
	}
}

// SetShare implements session.Carrier.
func (s *stream) SetShare(on bool) {
	if on {
		setPriority(s.net, priorityShare)
	} else {
		setPriority(s.net, priorityBulk)
	}
}

// Close implements session.Carrier.
func (s *stream) Close() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	err := s.wire.settle()
	if err == nil {
		err = s.tls.CloseWrite()
	}
	if c, ok := s.net.(interface{ CloseWrite() error }); ok && err == nil {
		err = c.CloseWrite()
	}
	return s.ours(err)
}

// Abort implements session.Carrier. The peer's kernel learns of it by a reset.
func (s *stream) Abort(protocol.Code) {
	s.aborted.Store(true)
	s.end(abortive)
	if s.conn != nil {
		s.conn.left(s)
	}
}

// ending is how a socket is closed.
type ending bool

const (
	graceful ending = false // the kernel delivers what was written
	abortive ending = true  // and tells the peer of a reset instead
)

// end closes the socket, once.
func (s *stream) end(how ending) {
	s.once.Do(func() {
		if s.conn != nil {
			s.conn.retire(s)
		}
		if c, ok := s.net.(*net.TCPConn); ok && how == abortive {
			c.SetLinger(0)
		}
		s.wire.Close()
	})
}

// ours turns an error of the connection into package session's.
func (s *stream) ours(err error) error {
	switch {
	case err == nil:
		return nil
	case s.aborted.Load():
		return session.ErrAborted
	}
	if s.conn != nil && s != s.conn.ctl { // whose own end comes later, in order
		select {
		case <-s.conn.done:
			return s.conn.Cause()
		default:
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if f := failure(err, s.certified); f != nil {
		return f
	}
	return session.ErrAborted // the peer's Abort, or the network's
}
