package lasting

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is an NBD server that dies, stops or shuts down, and may carry out what it was
// sent up to the moment at which it closes the connection.
type server struct {
	t *testing.T

	mu sync.Mutex
	// Guarded by mu.
	rand   *rand.Rand
	data   [64]byte
	open   int   // connections that are not closed
	away   error // what Dial says; nil: it is there
	flags  uint16
	size   int64
	dials  int
	mortal bool  // connections break by lot
	errno  error // the answer to everything; nil: done
}

func newServer(t *testing.T) *server {
	return &server{t: t, rand: rand.New(rand.NewPCG(1, 2)), flags: nbd.TxHasFlags | nbd.TxCanMultiConn, size: 64}
}

func (s *server) dial(context.Context) (Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if s.away != nil {
		return nil, s.away
	}
	s.open++
	return &conn{s: s, ended: make(chan struct{})}, nil
}

func (s *server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// conn is a connection. late are requests that were sent and not answered.
type conn struct {
	s     *server
	over  bool     // Guarded by s.mu
	late  []func() // Guarded by s.mu
	ended chan struct{}
}

var errBroken = errors.New("broken pipe")

func (c *conn) Do(cmd, _ uint16, off uint64, n uint32, p []byte) error {
	c.s.mu.Lock()
	pause := time.Duration(c.s.rand.Int64N(int64(time.Millisecond)))
	c.s.mu.Unlock()
	time.Sleep(pause) // under way
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.over {
		return errBroken
	}
	if c.s.errno != nil {
		return c.s.errno
	}
	run := func() {
		switch cmd {
		case nbd.CmdRead:
			copy(p, c.s.data[off:])
		case nbd.CmdWrite:
			copy(c.s.data[off:], p)
		case nbd.CmdTrim, nbd.CmdWriteZeroes:
			clear(c.s.data[off : off+uint64(n)])
		}
	}
	if !c.s.mortal || c.s.rand.IntN(10) > 0 {
		run()
		return nil
	}
	switch c.s.rand.IntN(3) {
	case 0: // done, and nobody learns of it
		run()
	case 1: // done when the server has been left
		written := append([]byte(nil), p...)
		c.late = append(c.late, func() {
			if cmd == nbd.CmdWrite {
				copy(c.s.data[off:], written)
			}
		})
	case 2: // refused: it shuts down
		return nbd.ESHUTDOWN
	}
	return errBroken
}

// finish is the server's end of a connection. REQUIRES s.mu.
func (c *conn) finish() {
	if c.over {
		return
	}
	c.over = true
	for _, f := range c.late {
		f()
	}
	c.s.open--
	close(c.ended)
}

func (c *conn) Close() error {
	time.Sleep(time.Millisecond) // what is under way is answered
	c.Abort()
	return nil
}

func (c *conn) Abort() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.finish()
}

func (c *conn) Ended() <-chan struct{} { return c.ended }
func (c *conn) Size() int64            { return c.s.size }
func (c *conn) Flags() uint16          { return c.s.flags }

// TestOverSessions: whatever becomes of the connections, each reader sees what was last
// answered, and nothing older comes after it.
func TestOverSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.mortal = true
		d, err := Open(t.Context(), Options{Dial: func(ctx context.Context) (Conn, error) {
			s.set(func() {
				if s.open >= 4 { // of a session under way there are fewer
					t.Errorf("dialled while %d connections of before are open", s.open)
				}
			})
			return s.dial(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				mine := make([]byte, 8)
				for i := range 300 {
					for k := range mine {
						mine[k] = byte(i*8 + w)
					}
					if err := d.WriteAt(mine, int64(w*8)); err != nil {
						t.Errorf("write: %v", err)
					}
					got := make([]byte, 8)
					if err := d.ReadAt(got, int64(w*8)); err != nil || string(got) != string(mine) {
						t.Errorf("worker %d round %d reads %v after writing %v (%v)", w, i, got, mine, err)
						return
					}
					if err := d.Flush(); err != nil {
						t.Errorf("flush: %v", err)
					}
				}
			})
		}
		wg.Wait()
		d.Close()
		if s.dials < 100 {
			t.Errorf("only %d connections were made: nothing was tested", s.dials)
		}
	})
}

// TestOverlap: writes of one place that are under way together end in the order in which
// they came.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.mortal = true
		d, err := Open(t.Context(), Options{Dial: s.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for round := range 100 {
			var wg sync.WaitGroup
			for i := range 5 {
				wg.Go(func() {
					time.Sleep(time.Duration(i)) // in this order, all at once
					if err := d.WriteAt([]byte{byte(i), byte(i)}, int64(i%2)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if s.data[0] != 4 || s.data[1] != 4 {
				t.Fatalf("round %d: %v, want the last write of each", round, s.data[:3])
			}
		}
	})
}

// TestServerAway: requests wait, and go on.
func TestServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		var states []State
		d, err := Open(t.Context(), Options{Dial: s.dial, DeadTime: time.Minute, OnState: func(st State) { states = append(states, st) }})
		if err != nil {
			t.Fatal(err)
		}
		s.set(func() { s.away = errors.New("connection refused"); s.errno = errBroken })
		time.AfterFunc(50*time.Second, func() { s.set(func() { s.away, s.errno, s.size = nil, nil, 128 }) })
		began := time.Now()
		if err := d.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 50*time.Second || took > 51*time.Second {
			t.Errorf("the write took %v", took)
		}
		if d.Size() != 128 {
			t.Errorf("size %d: the server's disk has grown to 128", d.Size())
		}
		d.Close()
		if err := d.Flush(); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		words := ""
		for _, st := range states {
			words += st.Word + " "
		}
		if words != "connected waiting connected " || states[2].Sessions != 2 || states[2].Pause < 50*time.Second {
			t.Errorf("states: %+v", states)
		}
	})
}

// TestDies: by the dead time, by the server's word, and by another disk in its place;
// nothing is sent after that.
func TestDies(t *testing.T) {
	tests := map[string]struct {
		change func(s *server)
		within time.Duration
	}{
		"away":    {func(s *server) { s.away = errors.New("connection refused") }, 61 * time.Second},
		"gone":    {func(s *server) { s.away = fmt.Errorf("token: %w", ErrGone) }, time.Second},
		"smaller": {func(s *server) { s.size = 32 }, time.Second},
		"poorer":  {func(s *server) { s.flags = nbd.TxHasFlags }, time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t)
				d, err := Open(t.Context(), Options{Dial: s.dial, DeadTime: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				s.set(func() { tt.change(s); s.errno = nbd.ESHUTDOWN })
				began := time.Now()
				if err := d.WriteAt([]byte("x"), 0); !errors.Is(err, ErrDead) || time.Since(began) > tt.within {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				s.set(func() { s.away, s.errno, s.size, s.flags = nil, nil, 64, nbd.TxHasFlags|nbd.TxCanMultiConn })
				time.Sleep(time.Hour)
				if err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrDead) {
					t.Errorf("later: %v", err)
				}
				if s.open != 0 || s.data[0] != 0 {
					t.Errorf("%d connections, data %v", s.open, s.data[0])
				}
				d.Close()
			})
		})
	}
}

// TestAnswers: an error of the server's is the caller's, and no reason to ask again.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		d, err := Open(t.Context(), Options{Dial: s.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s.set(func() { s.errno = nbd.ENOSPC })
		if err := d.Zero(0, 8, true); !errors.Is(err, nbd.ENOSPC) {
			t.Error(err)
		}
		if s.dials != 4 {
			t.Errorf("%d connections", s.dials)
		}
		s.set(func() { s.errno = nil; clear(s.data[:]); s.data[3] = 1 })
		if err := d.Trim(0, 8); err != nil || s.data[3] != 0 {
			t.Errorf("trim: %v, %d", err, s.data[3])
		}
	})
}

// TestIdle: a server that leaves while nothing is under way is noticed.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		var conns []Conn
		d, err := Open(t.Context(), Options{Dial: func(ctx context.Context) (Conn, error) {
			c, err := s.dial(ctx)
			s.set(func() { conns = append(conns, c) })
			return c, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		var third Conn
		s.set(func() { third = conns[2] })
		third.Abort()
		time.Sleep(time.Second)
		s.set(func() {
			if s.dials != 8 || s.open != 4 {
				t.Errorf("%d connections made, %d open; want 8 and 4", s.dials, s.open)
			}
		})
		d.Close()
	})
}

// TestOneConnection: an export that does not allow several gets one.
func TestOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.flags = nbd.TxHasFlags
		d, err := Open(t.Context(), Options{Dial: s.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if s.open != 1 {
			t.Errorf("%d connections", s.open)
		}
	})
	if _, err := Open(t.Context(), Options{Dial: func(context.Context) (Conn, error) { return nil, errBroken }}); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}
