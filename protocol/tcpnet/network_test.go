package tcpnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol/session"
)

// simulated is a network in memory of places 10.0.0.1 and 10.0.0.2, with a round trip
// of 2 ms. What is sent toward a place that is cut off waits; a dial to or from one ends
// with its context.
type simulated struct {
	mu sync.Mutex
	// Guarded by mu.
	cut       [3]bool
	change    chan struct{} // closed by the next change of cut
	listeners [3]*simListener
}

// simWindow is how much one direction of a connection holds that nobody has read.
const (
	simWindow  = 256 << 10
	simLatency = time.Millisecond
)

func simulate() *simulated { return &simulated{change: make(chan struct{})} }

// Opener implements sessiontest.Link.
func (n *simulated) Opener(place int) session.Opener {
	return func(p session.Port) (session.Endpoint, error) {
		return openOn(network{
			listen: func(address string) (net.Listener, error) { return n.listen(place, address) },
			dial:   func(ctx context.Context, address string) (net.Conn, error) { return n.dial(ctx, place, address) },
		}, p)
	}
}

// Cut implements sessiontest.Link.
func (n *simulated) Cut(toward int, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[toward] = cut
	close(n.change)
	n.change = make(chan struct{})
}

// isCut says whether a place is cut off, and when that may change.
func (n *simulated) isCut(place int) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[place], n.change
}

type simListener struct {
	addr  simAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type simAddr string

func (simAddr) Network() string  { return "tcp" }
func (a simAddr) String() string { return string(a) }

func (n *simulated) listen(place int, address string) (net.Listener, error) {
	l := &simListener{addr: simAddr(address), conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.listeners[place] = l
	n.mu.Unlock()
	return l, nil
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *simListener) Addr() net.Addr { return l.addr }

func (n *simulated) dial(ctx context.Context, from int, address string) (net.Conn, error) {
	to := 3 - from
	for _, place := range []int{to, from} { // SYN, and its answer
		for {
			cut, change := n.isCut(place)
			if !cut {
				break
			}
			select {
			case <-change:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	n.mu.Lock()
	l := n.listeners[to]
	n.mu.Unlock()
	there, back := newSimPipe(n, to), newSimPipe(n, from)
	mine := &simConn{out: there, in: back, local: simAddr("10.0.0.9:1"), remote: simAddr(address)}
	theirs := &simConn{out: back, in: there, local: simAddr(address), remote: simAddr("10.0.0.9:1")}
	select {
	case l.conns <- theirs:
		return mine, nil
	case <-l.done:
		return nil, unix.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// simPipe is one direction of a connection. carry moves what was written to what can be
// read, after the latency and while the place is not cut off.
type simPipe struct {
	network *simulated
	toward  int
	mu      sync.Mutex
	cond    *sync.Cond
	sent    []byte // written, on the way
	data    []byte // arrived
	closed  bool   // no more will be written
	reset   bool
	dead    chan struct{} // closed by reset or the end
	wake    chan struct{}
}

func newSimPipe(n *simulated, toward int) *simPipe {
	p := &simPipe{network: n, toward: toward, dead: make(chan struct{}), wake: make(chan struct{}, 1)}
	p.cond = sync.NewCond(&p.mu)
	go p.carry()
	return p
}

func (p *simPipe) carry() {
	for {
		select {
		case <-p.wake:
		case <-p.dead:
			return
		}
		select {
		case <-time.After(simLatency):
		case <-p.dead:
			return
		}
		for {
			cut, change := p.network.isCut(p.toward)
			if !cut {
				break
			}
			select {
			case <-change:
			case <-p.dead:
				return
			}
		}
		p.mu.Lock()
		p.data = append(p.data, p.sent...)
		p.sent = p.sent[:0]
		ended := p.closed
		p.cond.Broadcast()
		p.mu.Unlock()
		if ended {
			return
		}
	}
}

func (p *simPipe) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// end lets no more be written, or with reset nothing more be read either.
func (p *simPipe) end(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reset && !p.reset {
		p.reset = true
		close(p.dead)
	}
	p.closed = true
	p.kick()
	p.cond.Broadcast()
}

// simConn is one end of a connection. It has deadlines, and CloseWrite.
type simConn struct {
	in, out       *simPipe
	local, remote simAddr

	mu          sync.Mutex
	read, write simDeadline // guarded by mu
	closed      bool        // guarded by mu
}

type simDeadline struct {
	timer *time.Timer
	past  bool
}

// state returns what ends a call, if anything does.
func (c *simConn) state(d *simDeadline) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case d.past:
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *simConn) Read(b []byte) (int, error) {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if err := c.state(&c.read); err != nil {
			return 0, err
		}
		switch {
		case p.reset:
			return 0, unix.ECONNRESET
		case len(p.data) > 0:
			n := copy(b, p.data)
			p.data = append(p.data[:0], p.data[n:]...)
			p.cond.Broadcast()
			return n, nil
		case p.closed && len(p.sent) == 0:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func (c *simConn) Write(b []byte) (int, error) {
	p := c.out
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := 0; ; {
		if err := c.state(&c.write); err != nil {
			return n, err
		}
		if p.closed {
			return n, unix.EPIPE
		}
		room := min(simWindow-len(p.sent)-len(p.data), len(b)-n)
		if room > 0 {
			p.sent = append(p.sent, b[n:n+room]...)
			n += room
			p.kick()
		}
		if n == len(b) {
			return n, nil
		}
		p.cond.Wait()
	}
}

func (c *simConn) CloseWrite() error {
	c.out.end(false)
	return nil
}

// Close resets the connection, as a socket's with SO_LINGER 0. What toward a cut place is
// said of it arrives never.
func (c *simConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.mu.Unlock()
	for _, p := range []*simPipe{c.in, c.out} {
		if cut, _ := p.network.isCut(c.out.toward); cut && p == c.out {
			go p.resetLater()
			continue
		}
		p.end(true)
	}
	return nil
}

// resetLater resets when the place is there again.
func (p *simPipe) resetLater() {
	for {
		cut, change := p.network.isCut(p.toward)
		if !cut {
			p.end(true)
			return
		}
		select {
		case <-change:
		case <-p.dead:
			return
		}
	}
}

func (c *simConn) LocalAddr() net.Addr  { return c.local }
func (c *simConn) RemoteAddr() net.Addr { return c.remote }

func (c *simConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.set(&c.read, c.in, t)
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.set(&c.write, c.out, t)
	return nil
}

func (c *simConn) set(d *simDeadline, p *simPipe, t time.Time) {
	c.mu.Lock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.past, d.timer = false, nil
	if !t.IsZero() {
		d.past = !t.After(time.Now())
		if !d.past {
			d.timer = time.AfterFunc(time.Until(t), func() {
				c.mu.Lock()
				d.past = true
				c.mu.Unlock()
				p.broadcast()
			})
		}
	}
	c.mu.Unlock()
	p.broadcast()
}

func (p *simPipe) broadcast() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

// TestSimulation: the network itself delays, holds and cuts.
func TestSimulation(t *testing.T) {
	n := simulate()
	l, err := n.listen(2, "10.0.0.2:7790")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	a, err := n.dial(t.Context(), 1, "10.0.0.2:7790")
	if err != nil {
		t.Fatal(err)
	}
	b := <-accepted
	a.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	n.Cut(2, true)
	a.Write([]byte("later"))
	b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := b.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read over a cut link: %v", err)
	}
	n.Cut(2, false)
	b.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "later" {
		t.Errorf("%q, %v", got, err)
	}
	a.Close()
	if _, err := b.Read(got); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read after a reset: %v", err)
	}
	b.Close()
}
