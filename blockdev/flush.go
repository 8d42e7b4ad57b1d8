package blockdev

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Flush makes everything that completed before the call durable. Flushes that
// wait for one another share one fdatasync. An error makes the device failed and
// is never followed by another attempt.
func (f *File) Flush() error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.exit()
	return f.flush()
}

func (f *File) flush() error {
	return f.flushes.do(f.syncOnce)
}

// syncOnce is one fdatasync. Run by one goroutine at a time.
func (f *File) syncOnce() error {
	if x := f.failure.Load(); x != nil {
		return x.err
	}
	for {
		err := f.fdatasync(f.flushFD)
		switch err {
		case nil:
			return nil
		case unix.EINTR: // not done, nothing reported yet
			continue
		}
		return f.fail("flush", err)
	}
}

// flushGroup runs one flush at a time and lets everyone who asks while one runs
// share the next: a round that begins after the call covers all that completed
// before it.
type flushGroup struct {
	mu sync.Mutex
	// Guarded by mu.
	cur, next *flushRound
}

// flushRound is one flush and those who wait for it.
type flushRound struct {
	lead chan struct{} // one token: whoever takes it runs the round
	done chan struct{} // closed after err is set
	err  error
}

func newFlushRound() *flushRound {
	return &flushRound{lead: make(chan struct{}, 1), done: make(chan struct{})}
}

// do returns the result of a run of sync that began after the call of do.
func (g *flushGroup) do(sync func() error) error {
	g.mu.Lock()
	if g.cur == nil {
		r := newFlushRound()
		g.cur = r
		g.mu.Unlock()
		return g.run(r, sync)
	}
	if g.next == nil {
		g.next = newFlushRound()
	}
	r := g.next
	g.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-r.lead:
		return g.run(r, sync)
	}
}

// run executes the round r, which is g.cur, and starts the next.
func (g *flushGroup) run(r *flushRound, sync func() error) error {
	err := sync()
	g.mu.Lock()
	g.cur, g.next = g.next, nil
	if g.cur != nil {
		g.cur.lead <- struct{}{}
	}
	g.mu.Unlock()
	r.err = err
	close(r.done)
	return err
}
