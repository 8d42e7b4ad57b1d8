package lasting

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd"
)

// session is a set of connections that live and end together.
type session struct {
	conns []Conn
	next  atomic.Uint32
	lost  chan struct{} // closed when nobody uses it any more
	why   error         // written before lost is closed
}

// pick takes the connections in turn.
func (s *session) pick() Conn { return s.conns[s.next.Add(1)%uint32(len(s.conns))] }

// end returns when the server has closed every connection, having answered or dropped
// what was sent; at the end of ctx it cuts them, and reports that.
func (s *session) end(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		for _, c := range s.conns {
			c.Abort()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() { _ = c.Close() }) // it was over anyway
	}
	wg.Wait()
	return ctx.Err()
}

// establish makes one session, or returns Dial's error.
func (d *Disk) establish(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	s := &session{lost: make(chan struct{})}
	want := 1
	for len(s.conns) < want {
		c, err := d.opt.Dial(ctx)
		if err != nil {
			for _, made := range s.conns {
				made.Abort() // nothing was sent
			}
			return nil, err
		}
		s.conns = append(s.conns, c)
		if c.Flags()&nbd.TxCanMultiConn != 0 {
			want = d.opt.Conns
		}
	}
	return s, nil
}

// run is the disk's goroutine: one session after the other.
func (d *Disk) run(s *session) {
	defer close(d.ended)
	for n := 2; ; n++ {
		select {
		case <-s.lost:
		case <-d.stop:
			d.shut()
			_ = s.end(context.Background()) // answers what is at the server
			return
		}
		since := time.Now()
		d.opt.Log.Warn("the server is away: requests wait", "reason", s.why, "dead_time", d.opt.DeadTime)
		d.opt.OnState(State{Word: Waiting, Why: s.why.Error(), Sessions: n - 1})
		next, err := d.renew(s)
		if errors.Is(err, ErrClosed) {
			d.shut()
			return
		}
		if err == nil {
			err = d.adopt(next)
		}
		if err != nil {
			d.die(err)
			return
		}
		pause := time.Since(since)
		d.opt.Log.Info("the server is back", "pause", pause, "sessions", n)
		d.opt.OnState(State{Word: Connected, Sessions: n, Pause: pause})
		s = next
	}
}

// renew waits for the old session's end, then tries to make a new one until the dead
// time is over.
func (d *Disk) renew(old *session) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), d.opt.DeadTime,
		fmt.Errorf("the server was away for longer than %v", d.opt.DeadTime))
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-d.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := old.end(ctx); err != nil {
		return nil, d.whyEnded(ctx, old.why)
	}
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		s, err := d.establish(ctx)
		if err == nil || errors.Is(err, ErrGone) {
			return s, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, d.whyEnded(ctx, err)
		}
	}
}

func (d *Disk) whyEnded(ctx context.Context, last error) error {
	select {
	case <-d.stop:
		return ErrClosed
	default:
		return fmt.Errorf("%w: %w", context.Cause(ctx), last)
	}
}

// adopt lets requests use a session, unless it is of another disk.
func (d *Disk) adopt(s *session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	size, flags := s.conns[0].Size(), s.conns[0].Flags()
	if size < d.size || flags&d.flags != d.flags {
		for _, c := range s.conns {
			c.Abort()
		}
		return fmt.Errorf("the export has changed: %d bytes with flags %#x instead of %d with %#x", size, flags, d.size, d.flags)
	}
	d.size = size
	d.change(s, nil)
	d.watch(s)
	return nil
}

// errLeft: a connection ended while no request was under way.
var errLeft = errors.New("the server has closed the connection")

// watch notices a server that leaves while nobody asks it anything.
func (d *Disk) watch(s *session) {
	for _, c := range s.conns {
		go func() { // ends with the connection, which ends with the session
			<-c.Ended()
			d.lose(s, errLeft)
		}()
	}
}

// shut fails what waits, and what comes.
func (d *Disk) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.change(nil, ErrClosed)
}
