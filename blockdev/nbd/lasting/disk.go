package lasting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd"
)

// Errors of a Disk.
var (
	// ErrDead: the server was away for longer than the dead time, or has said that it
	// will never serve this client again. It lasts.
	ErrDead = errors.New("the disk is dead")
	// ErrGone is what Options.Dial wraps when the server has said so.
	ErrGone = errors.New("the server does not serve this client any more")
	// ErrClosed: the disk was closed.
	ErrClosed = errors.New("the disk is closed")
)

// Conn is one connection to an export; *client.Client is one.
type Conn interface {
	// Do sends one command and waits for its reply. An nbd.Errno is the server's
	// answer; any other error means that the connection is over and the answer unknown.
	// p is not touched after Do has returned.
	Do(cmd, flags uint16, off uint64, length uint32, p []byte) error
	// Close says goodbye and waits until the server has closed the connection, in
	// whatever state it is. Calls of Do get their answers first.
	Close() error
	// Abort cuts the connection; calls of Do fail.
	Abort()
	// Ended is closed when the server has closed the connection.
	Ended() <-chan struct{}
	Size() int64   // bytes
	Flags() uint16 // nbd.Tx...
}

// Options of Open.
type Options struct {
	// Dial makes a connection; ctx bounds it. Required.
	Dial func(ctx context.Context) (Conn, error)
	// Conns is how many connections a session has, if the export allows more than one;
	// 0: 4.
	Conns int
	// DeadTime is how long requests wait for a server; 0: 10 minutes.
	DeadTime time.Duration
	// Log; nil: discards.
	Log *slog.Logger
	// OnState is told each change, from the disk's goroutine; nil: ignored.
	OnState func(State)
}

// State is what a disk is doing.
type State struct {
	Word     string        // "connected", "waiting" or "dead"
	Why      string        // of waiting and dead
	Sessions int           // how many there have been
	Pause    time.Duration // how long requests had waited before this session
}

// The words of a State.
const (
	Connected = "connected"
	Waiting   = "waiting"
	Dead      = "dead"
)

const (
	connsDefault = 4
	deadDefault  = 10 * time.Minute
	dialTime     = 5 * time.Second // one attempt
	// Attempts begin retryFirst apart, so that a restart of the server costs little more
	// than it takes, and slow down to retryLast.
	retryFirst = 10 * time.Millisecond
	retryLast  = 250 * time.Millisecond
)

func (o Options) withDefaults() Options {
	if o.Dial == nil {
		panic("lasting: Options.Dial is nil")
	}
	if o.Conns <= 0 {
		o.Conns = connsDefault
	}
	if o.DeadTime <= 0 {
		o.DeadTime = deadDefault
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnState == nil {
		o.OnState = func(State) {}
	}
	return o
}

// Disk is an export that lasts. All methods may be called concurrently.
type Disk struct {
	opt   Options
	order order
	stop  chan struct{} // closed by Close
	ended chan struct{} // closed when the disk's goroutine has ended

	closeOnce sync.Once

	mu sync.Mutex
	// Guarded by mu.
	size    int64
	flags   uint16
	cur     *session
	over    error         // ErrDead or ErrClosed, with the reason
	changed chan struct{} // closed, and replaced, when cur or over changes
}

// Open makes the first session; ctx bounds it. The error is Dial's.
func Open(ctx context.Context, o Options) (*Disk, error) {
	d := &Disk{opt: o.withDefaults(), stop: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{})}
	s, err := d.establish(ctx)
	if err != nil {
		return nil, err
	}
	d.size, d.flags, d.cur = s.conns[0].Size(), s.conns[0].Flags(), s
	d.watch(s)
	d.opt.OnState(State{Word: Connected, Sessions: 1})
	go d.run(s)
	return d, nil
}

// Size returns the export's size, bytes, as the last session had it. It never falls.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

// Flags returns the transmission flags of the first session.
func (d *Disk) Flags() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flags
}

// ReadAt fills p from off. REQUIRES len(p) <= nbd.MaxPayload, here and in WriteAt.
func (d *Disk) ReadAt(p []byte, off int64) error {
	return d.do(nbd.CmdRead, 0, off, int64(len(p)), p)
}

// WriteAt writes p at off.
func (d *Disk) WriteAt(p []byte, off int64) error {
	return d.do(nbd.CmdWrite, 0, off, int64(len(p)), p)
}

// Trim gives the content of a range up. The length is bytes and has no limit.
func (d *Disk) Trim(off, n int64) error { return d.do(nbd.CmdTrim, 0, off, n, nil) }

// Zero makes a range read as zeroes. noHole: it stays allocated.
func (d *Disk) Zero(off, n int64, noHole bool) error {
	var flags uint16
	if noHole {
		flags = nbd.CmdFlagNoHole
	}
	return d.do(nbd.CmdWriteZeroes, flags, off, n, nil)
}

// Flush makes durable what was answered before it was called.
func (d *Disk) Flush() error { return d.do(nbd.CmdFlush, 0, 0, 0, nil) }

// stepMax is the most that one command covers: the length on the wire has 32 bits.
const stepMax = 1 << 31

func (d *Disk) do(cmd, flags uint16, off, n int64, p []byte) error {
	if cmd != nbd.CmdFlush {
		c := d.order.enter(off, n, cmd == nbd.CmdRead)
		defer d.order.leave(c)
	}
	for {
		k := min(n, stepMax)
		if err := d.one(cmd, flags, off, k, p); err != nil {
			return err
		}
		if off, n = off+k, n-k; n == 0 {
			return nil
		}
	}
}

// one has a single command executed, over as many sessions as it takes.
func (d *Disk) one(cmd, flags uint16, off, n int64, p []byte) error {
	for {
		s, err := d.session()
		if err != nil {
			return err
		}
		err = s.pick().Do(cmd, flags, uint64(off), uint32(n), p)
		var e nbd.Errno
		if err == nil || errors.As(err, &e) && e != nbd.ESHUTDOWN {
			return err
		}
		d.lose(s, err)
	}
}

// session returns the current one, waiting until there is one.
func (d *Disk) session() (*session, error) {
	for {
		d.mu.Lock()
		s, over, changed := d.cur, d.over, d.changed
		d.mu.Unlock()
		switch {
		case over != nil:
			return nil, over
		case s != nil:
			return s, nil
		}
		<-changed
	}
}

// lose ends the session for everybody; only the first word counts.
func (d *Disk) lose(s *session, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur != s {
		return
	}
	s.why = why
	d.change(nil, nil)
	close(s.lost)
}

// change sets what requests find. REQUIRES d.mu.
func (d *Disk) change(s *session, over error) {
	d.cur, d.over = s, over
	close(d.changed)
	d.changed = make(chan struct{})
}

// Close ends the disk: what waits for a server fails with ErrClosed, what is at the
// server is answered first. Nothing is flushed.
func (d *Disk) Close() error {
	d.closeOnce.Do(func() { close(d.stop) })
	<-d.ended
	return nil
}

func (d *Disk) die(why error) {
	d.opt.Log.Error("the disk is dead: every request fails from now on", "reason", why)
	d.mu.Lock()
	d.change(nil, fmt.Errorf("%w: %w", ErrDead, why))
	d.mu.Unlock()
	d.opt.OnState(State{Word: Dead, Why: why.Error()})
}
