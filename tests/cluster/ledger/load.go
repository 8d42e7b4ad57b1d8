package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Disk is what a load drives. Methods are called concurrently.
type Disk interface {
	Reader
	WriteAt(p []byte, off int64, fua bool) error
	Zero(off, n int64) error
	Trim(off, n int64) error
	Flush() error
}

// Load writes, reads and flushes at random places of a ledger's region.
type Load struct {
	Ledger *Ledger
	// Workers is the number of requests in flight. Zero: 4.
	Workers int
	// WritesMax bounds the writes noted, to bound memory; the workers then
	// only read and flush. Zero: 200,000.
	WritesMax int
	// Pause is waited between two requests of a worker. Zero: none.
	Pause time.Duration
	Seed  uint64
	// OnFlush, if set, is called after each acknowledged flush.
	OnFlush func()
}

// Stats is what a load did.
type Stats struct {
	Reads, Writes, Zeroes, Flushes int64
	// Slowest is the longest time a request took to succeed.
	Slowest time.Duration
}

// ErrWrong is returned when a read returned what the disk must not hold.
var ErrWrong = errors.New("the disk returned wrong data")

// Run drives the disk until ctx ends (nil), a request fails (that error) or a
// read finds wrong data (ErrWrong). Requests under way when one fails are noted
// as never acknowledged if they fail too.
func (l *Load) Run(ctx context.Context, d Disk) (Stats, error) {
	workers := l.Workers
	if workers == 0 {
		workers = 4
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		stats counters
		once  sync.Once
		first error
	)
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(l.Seed, uint64(w)))
			if err := l.work(ctx, d, rnd, &stats); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	wg.Wait()
	return stats.stats(), first
}

type counters struct {
	reads, writes, zeroes, flushes, slowest atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{c.reads.Load(), c.writes.Load(), c.zeroes.Load(), c.flushes.Load(), time.Duration(c.slowest.Load())}
}

// done notes that a request of the kind counted by n, begun at start, succeeded.
func (c *counters) done(n *atomic.Int64, start time.Time) {
	n.Add(1)
	took := int64(time.Since(start))
	for {
		old := c.slowest.Load()
		if took <= old || c.slowest.CompareAndSwap(old, took) {
			return
		}
	}
}

// work is one worker: a request at a time.
func (l *Load) work(ctx context.Context, d Disk, rnd *rand.Rand, c *counters) error {
	writesMax := l.WritesMax
	if writesMax == 0 {
		writesMax = 200_000
	}
	buf := make([]byte, runMax)
	for ctx.Err() == nil {
		off, n := l.place(rnd)
		kind := rnd.IntN(100)
		if c.writes.Load()+c.zeroes.Load() >= int64(writesMax) {
			kind = kind % 30
		}
		var err error
		switch {
		case kind < 22:
			err = l.read(d, buf[:n], off, c)
		case kind < 30:
			err = l.flush(d, c)
		case kind < 34:
			err = l.zero(d, off, n, kind%2 == 0, c)
		default:
			err = l.write(d, buf[:n], off, kind < 40, c)
		}
		if err != nil {
			return err
		}
		if l.Pause > 0 {
			select {
			case <-time.After(l.Pause):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// runMax is the longest write, bytes: larger than one block, so that a torn one
// shows, and small enough for many to be in flight.
const runMax = 64 << 10

// place returns a range of sectors in the region: mostly one 4 KiB block, often
// in the region's first sixteenth so that writes overlap, sometimes odd.
func (l *Load) place(rnd *rand.Rand) (off, n int64) {
	span := l.Ledger.size
	if rnd.IntN(4) == 0 {
		span /= 16
	}
	switch rnd.IntN(8) {
	case 0: // any sectors
		n = sectorSize * (1 + rnd.Int64N(runMax/sectorSize))
		off = sectorSize * rnd.Int64N(span/sectorSize)
	case 1: // some blocks
		n = 4096 * (1 + rnd.Int64N(runMax/4096))
		off = 4096 * rnd.Int64N(span/4096)
	default:
		n, off = 4096, 4096*rnd.Int64N(span/4096)
	}
	return l.Ledger.off + off, min(n, l.Ledger.size-off)
}

func (l *Load) read(d Disk, p []byte, off int64, c *counters) error {
	start, began := time.Now(), l.Ledger.now()
	if err := d.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	c.done(&c.reads, start)
	if err := l.Ledger.check(p, off, began); err != nil {
		return fmt.Errorf("%w: %w", ErrWrong, err)
	}
	return nil
}

func (l *Load) write(d Disk, p []byte, off int64, fua bool, c *counters) error {
	start, s := time.Now(), l.Ledger.Write(p, off)
	if err := d.WriteAt(p, off, fua); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	l.Ledger.Ack(s, fua)
	c.done(&c.writes, start)
	return nil
}

func (l *Load) zero(d Disk, off, n int64, trim bool, c *counters) error {
	start, s := time.Now(), l.Ledger.Zero(off, n)
	do := d.Zero
	if trim {
		do = d.Trim
	}
	if err := do(off, n); err != nil {
		return fmt.Errorf("zero %d bytes at %d (trim %v): %w", n, off, trim, err)
	}
	l.Ledger.Ack(s, false)
	c.done(&c.zeroes, start)
	return nil
}

func (l *Load) flush(d Disk, c *counters) error {
	start, acked := time.Now(), l.Ledger.Flush()
	if err := d.Flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	acked()
	c.done(&c.flushes, start)
	if l.OnFlush != nil {
		l.OnFlush()
	}
	return nil
}
