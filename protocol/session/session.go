package session

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Session is a live connection with a peer, from SessionUp to SessionDown. All
// methods are safe for concurrent use; after its end they return the cause.
type Session struct {
	node      *Node
	peer      *peer
	conn      Conn
	ctl       Carrier
	frames    *frameReader // of ctl. Owner: control
	transport Transport
	dialed    bool
	hello     protocol.NodeHello // the peer's
	key       ed25519.PublicKey  // that the peer proved

	epoch time.Time     // when the session started; pings count from here
	rtt   atomic.Int64  // smoothed by the pongs, ns; 0: none yet
	lost  atomic.Uint64 // the most packets that Stats has told as lost

	endOnce sync.Once
	cause   error // valid after ending is closed
	ending  chan struct{}
	done    chan struct{} // closed when all goroutines have ended
	opening chan struct{} // semaphore of streams whose first frame is awaited

	sendMu sync.Mutex
	// Guarded by sendMu.
	sendBuf []byte
}

func newSession(c *candidate) *Session {
	s := &Session{
		node: c.peer.node, peer: c.peer, conn: c.conn, ctl: c.ctl, frames: c.frames, dialed: c.dialed, hello: c.hello, key: c.key, transport: c.how,
		epoch:   time.Now(),
		ending:  make(chan struct{}),
		done:    make(chan struct{}),
		opening: make(chan struct{}, openingMax),
	}
	return s
}

// Peer returns the peer's configured name.
func (s *Session) Peer() string { return s.peer.Name }

// PeerInstance returns the random number that the peer's agent drew when it
// started.
func (s *Session) PeerInstance() uint64 { return s.hello.Instance }

// Dialer says whether this side opened the connection; it is then the one that
// opens volumes' streams.
func (s *Session) Dialer() bool { return s.dialed }

// Features returns the feature bits that both sides have.
func (s *Session) Features() uint64 { return s.hello.Features & s.node.options.Features }

// PeerVersion returns the peer's protocol version.
func (s *Session) PeerVersion() (major, minor uint16) { return s.hello.Major, s.hello.Minor }

// Transport returns how the session travels.
func (s *Session) Transport() Transport { return s.transport }

// Compression returns what becomes of payloads that are sent to the peer, as of now: what is
// configured, if the peer expands it. It neither blocks nor locks.
func (s *Session) Compression() Compression {
	if s.peer.zstd.Load() && s.Features()&protocol.FeatureZstd != 0 {
		return Zstd
	}
	return NoCompression
}

// RTT returns the link's smoothed round trip; zero when unknown.
func (s *Session) RTT() time.Duration {
	if d := s.conn.Stats().RTT; d != 0 {
		return d
	}
	return time.Duration(s.rtt.Load())
}

// Stats returns the connection's figures.
func (s *Session) Stats() Stats {
	st := s.conn.Stats()
	st.RTT = s.RTT()
	// quic-go takes back what was only late: a counter that falls would be taken for
	// one that began anew.
	for {
		old := s.lost.Load()
		if st.PacketsLost <= old {
			st.PacketsLost = old
			break
		}
		if s.lost.CompareAndSwap(old, st.PacketsLost) {
			break
		}
	}
	return st
}

// Open opens a stream and sends open as its first frame. REQUIRES Dialer. It waits for the
// peer's stream limit until ctx ends, at most Options.DialTimeout.
func (s *Session) Open(ctx context.Context, open protocol.StreamOpen) (*Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, s.node.options.DialTimeout)
	defer cancel()
	c, err := s.conn.Open(ctx, open.Kind)
	if err != nil {
		return nil, fmt.Errorf("opening the %v stream of %s to %s: %w", open.Kind, open.Volume, s.Peer(), s.callError(ctx, err))
	}
	deadline, _ := ctx.Deadline()
	c.SetWriteDeadline(deadline)
	if _, err := c.Write(protocol.AppendFrame(nil, &open, nil)); err != nil {
		c.Abort(protocol.CodeTimeout)
		return nil, fmt.Errorf("opening the %v stream of %s to %s: %w", open.Kind, open.Volume, s.Peer(), s.callError(ctx, err))
	}
	c.SetWriteDeadline(time.Time{})
	return &Stream{session: s, c: c, kind: open.Kind}, nil
}

func (s *Session) callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.ioError(err)
}

// Send sends a message on the control stream, without waiting. ErrBusy: the
// peer takes nothing now, nothing was sent.
func (s *Session) Send(m protocol.Message) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.sendBuf = protocol.AppendFrame(s.sendBuf[:0], m, nil)
	ok, err := s.ctl.TryWrite(s.sendBuf)
	switch {
	case ok:
		return nil
	case err == nil:
		err = ErrBusy
	default:
		err = s.ioError(err)
	}
	return fmt.Errorf("sending %v to %s: %w", m.Type(), s.Peer(), err)
}

// Close ends the session; the peer learns code and text. The peer goroutine
// will make a new one: use Node.RemovePeer to stay apart.
func (s *Session) Close(code protocol.Code, text string) {
	s.end(code, text, fmt.Errorf("%w: %s", ErrClosed, text))
}

// end closes the connection once, with what to tell the peer and what to tell
// SessionDown. It returns when the connection has ended.
func (s *Session) end(code protocol.Code, text string, cause error) {
	s.endOnce.Do(func() {
		s.cause = cause
		close(s.ending)
	})
	s.conn.Close(code, protocol.CleanText(text))
}

// start runs the session's goroutines. done is closed when they have ended,
// which the end of the connection brings about.
func (s *Session) start() {
	var wg sync.WaitGroup
	wg.Go(s.heartbeat)
	wg.Go(s.control)
	wg.Go(func() { s.accept(&wg) })
	go func() {
		<-s.conn.Done()
		s.end(protocol.CodeNone, "", s.conn.Cause())
		wg.Wait()
		close(s.done)
	}()
}

// heartbeat sends pings and ends the session when the peer is silent: a peer
// that dies is noticed within PeerTimeout + Heartbeat. Whatever comes over the
// connection is a sign of life, not only an answer: the control stream may have
// to wait for flow control while a volume's disk stands still.
func (s *Session) heartbeat() {
	every, timeout := s.node.options.Heartbeat, s.node.options.PeerTimeout
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var ping protocol.Ping
	var last, heard time.Duration // since epoch
	var count uint64
	for {
		select {
		case <-s.ending:
			return
		case <-ticker.C:
		}
		now := time.Since(s.epoch)
		if n := s.conn.Heard(); n != count {
			count, heard = n, now
		}
		// This process may itself have been stopped: what the peer sent meanwhile
		// has not been read yet, so it gets one more beat.
		paused := now-last > 2*every
		last = now
		if silent := now - heard; silent >= timeout && !paused {
			silent = silent.Round(time.Millisecond)
			s.end(protocol.CodeTimeout, fmt.Sprintf("%s heard nothing for %v", s.node.options.Name, silent),
				fmt.Errorf("nothing heard for %v: %w", silent, ErrSilent))
			return
		}
		ping.ID++
		ping.Time = int64(now)
		_ = s.Send(&ping) // ErrBusy: the transport has a sign of life of its own, or is stuck
	}
}

// measured takes a pong's round trip into the average. Owner: control.
func (s *Session) measured(d time.Duration) {
	if old := time.Duration(s.rtt.Load()); old != 0 {
		d = old + (d-old)/rttShare
	}
	s.rtt.Store(int64(max(d, 1)))
}

// control reads the control stream.
func (s *Session) control() {
	for {
		m, err := s.frames.next()
		if err != nil {
			s.endOn(fmt.Errorf("control stream: %w", err))
			return
		}
		switch m := m.(type) {
		case *protocol.Ping:
			_ = s.Send(&protocol.Pong{ID: m.ID, Time: m.Time})
		case *protocol.Pong:
			s.measured(time.Since(s.epoch) - time.Duration(m.Time))
		case *protocol.ConnectAsk, *protocol.ReachAsk, *protocol.ReachAnswer, *protocol.Failover:
			s.node.options.Handler.Message(s, m)
		default:
			s.endOn(unexpected(m, "on the control stream"))
			return
		}
	}
}

// endOn ends the session for what was read, or not, on the control stream or
// at the start of another. An error of the connection itself means that it has
// ended: start knows the cause.
func (s *Session) endOn(err error) {
	if isViolation(err) || errors.Is(err, ErrAborted) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		s.end(protocol.CodeProtocol, err.Error(), err)
	}
}

// accept takes the streams that the peer opens.
func (s *Session) accept(wg *sync.WaitGroup) {
	for {
		select {
		case s.opening <- struct{}{}:
		case <-s.ending:
			return
		}
		c, err := s.conn.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { <-s.opening }()
			s.opened(c)
		})
	}
}

// opened reads a stream's first frame and hands the stream over.
func (s *Session) opened(c Carrier) {
	c.SetReadDeadline(time.Now().Add(s.node.options.DialTimeout))
	frames := frameReader{r: c}
	m, err := frames.next()
	if err != nil {
		c.Abort(protocol.CodeProtocol)
		if isViolation(err) {
			s.endOn(fmt.Errorf("first frame of a stream: %w", err))
		}
		return
	}
	open, ok := m.(*protocol.StreamOpen)
	if !ok {
		s.endOn(unexpected(m, "as the first frame of a stream"))
		return
	}
	c.SetReadDeadline(time.Time{})
	c.SetKind(open.Kind)
	s.node.options.Handler.StreamOpened(s, *open, &Stream{session: s, c: c, kind: open.Kind})
}

var errStopped = errors.New("stopped")
