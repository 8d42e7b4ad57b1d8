package fault

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
)

// Device is a blockdev.Device that disturbs the operations its rules name and
// passes the rest to inner. It owns inner: Close closes it. Safe for concurrent
// use.
type Device struct {
	inner  blockdev.Device
	closed chan struct{} // closed by Close
	script *scriptFile   // nil unless FromFile

	mu sync.Mutex
	// Guarded by mu.
	rules    []*ruleState
	changed  chan struct{} // closed and replaced when rules change
	rand     *rand.Rand
	failure  error
	isClosed bool
	hit      int
	waiting  int
}

// ruleState is a rule and how often it was met.
type ruleState struct {
	Rule
	met  int // operations that matched
	used int // operations that got the fault
}

var _ blockdev.Device = (*Device)(nil)

// New returns a device over inner with the given rules; seed decides where
// Rule.Probability has to.
func New(inner blockdev.Device, seed uint64, rules ...Rule) *Device {
	d := &Device{
		inner: inner, closed: make(chan struct{}), changed: make(chan struct{}),
		rand: rand.New(rand.NewPCG(seed, 0)),
	}
	d.Set(rules...)
	return d
}

// Set replaces the rules, counting afresh. Operations that hang or wait by a rule
// that is no longer there go on. A device that has failed stays failed.
func (d *Device) Set(rules ...Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = nil
	for _, r := range rules {
		d.rules = append(d.rules, &ruleState{Rule: r})
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// Hit returns how many operations got a fault so far.
func (d *Device) Hit() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hit
}

// Waiting returns how many operations are held by a hang or delay now.
func (d *Device) Waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

// pick returns the rule that applies to the operation, or nil, and the channel
// that tells when rules change.
func (d *Device) pick(op blockdev.Op, off, n int64) (*ruleState, <-chan struct{}, error) {
	if d.script != nil {
		d.script.refresh(d)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.isClosed:
		return nil, nil, blockdev.ErrClosed
	case d.failure != nil:
		return nil, nil, d.failure
	}
	for _, r := range d.rules {
		if !r.matches(op, off, n) {
			continue
		}
		r.met++
		if r.Nth > 0 && r.met != r.Nth || r.Count > 0 && r.used >= r.Count {
			continue
		}
		if r.Probability > 0 && d.rand.Float64() >= r.Probability {
			continue
		}
		r.used++
		d.hit++
		return r, d.changed, nil
	}
	return nil, nil, nil
}

// run performs an operation under the rules. do performs the first k bytes of it
// on inner.
func (d *Device) run(op blockdev.Op, off, n int64, do func(k int64) error) error {
	r, changed, err := d.pick(op, off, n)
	if err != nil {
		return err
	}
	if r == nil {
		return do(n)
	}
	what := fmt.Sprintf("%v of %d bytes at %d (injected: %v)", op, n, off, r.Rule)
	switch r.Action {
	case Error:
		return d.fail(op, fmt.Errorf("%s: %w", what, unix.EIO))
	case NoSpace:
		return fmt.Errorf("%s: %w: %w", what, blockdev.ErrNoSpace, unix.ENOSPC)
	case Short:
		if err := do(n / 2 / blockdev.SectorSize * blockdev.SectorSize); err != nil {
			return err
		}
		return d.fail(op, fmt.Errorf("%s: %w", what, unix.EIO))
	case Delay, Hang:
		if err := d.hold(r, changed); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return do(n)
	}
	panic(fmt.Sprintf("fault: rule with %v", r.Action))
}

// fail returns err, and makes it sticky unless a read failed.
func (d *Device) fail(op blockdev.Op, err error) error {
	if op == blockdev.OpRead {
		return err
	}
	err = fmt.Errorf("%w: %w", blockdev.ErrFailed, err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failure == nil {
		d.failure = err
	}
	return d.failure
}

// scriptPoll is how often a held operation looks whether the script has changed.
const scriptPoll = 20 * time.Millisecond

// hold waits for the end of a delay, or until the rule is gone.
func (d *Device) hold(r *ruleState, changed <-chan struct{}) error {
	d.mu.Lock()
	d.waiting++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.waiting--
		d.mu.Unlock()
	}()
	var end, poll <-chan time.Time
	if r.Action == Delay {
		timer := time.NewTimer(r.Delay)
		defer timer.Stop()
		end = timer.C
	}
	if d.script != nil {
		ticker := time.NewTicker(scriptPoll)
		defer ticker.Stop()
		poll = ticker.C
	}
	for {
		select {
		case <-d.closed:
			return blockdev.ErrClosed
		case <-end:
			return nil
		case <-changed:
			var still bool
			if still, changed = d.has(r.Rule); !still {
				return nil
			}
		case <-poll:
			d.script.refresh(d)
		}
	}
}

// has tells whether there is such a rule now, and the channel that tells when
// rules change next.
func (d *Device) has(r Rule) (bool, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.rules {
		if o.Rule == r {
			return true, d.changed
		}
	}
	return false, d.changed
}

// Size returns the inner store's size in bytes.
func (d *Device) Size() int64 { return d.inner.Size() }

// check refuses what the contract refuses, before any rule is asked.
func (d *Device) check(off, n int64) error {
	return blockdev.CheckRange(d.inner.Size(), off, n)
}

// ReadAt reads from inner, under the rules for read.
func (d *Device) ReadAt(p []byte, off int64) error {
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	return d.run(blockdev.OpRead, off, int64(len(p)), func(k int64) error {
		return d.inner.ReadAt(p[:k], off)
	})
}

// WriteAt writes to inner, under the rules for write.
func (d *Device) WriteAt(p []byte, off int64, flags blockdev.Flags) error {
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	return d.run(blockdev.OpWrite, off, int64(len(p)), func(k int64) error {
		return d.inner.WriteAt(p[:k], off, flags)
	})
}

// Zero zeroes in inner, under the rules for zero.
func (d *Device) Zero(off, n int64, flags blockdev.Flags) error {
	if err := d.check(off, n); err != nil {
		return err
	}
	return d.run(blockdev.OpZero, off, n, func(k int64) error {
		return d.inner.Zero(off, k, flags)
	})
}

// Trim trims in inner, under the rules for trim.
func (d *Device) Trim(off, n int64, flags blockdev.Flags) error {
	if err := d.check(off, n); err != nil {
		return err
	}
	return d.run(blockdev.OpTrim, off, n, func(k int64) error {
		return d.inner.Trim(off, k, flags)
	})
}

// Flush flushes inner, under the rules for flush. A short flush does not reach
// inner at all.
func (d *Device) Flush() error {
	return d.run(blockdev.OpFlush, 0, blockdev.SectorSize, func(k int64) error {
		if k == 0 {
			return nil
		}
		return d.inner.Flush()
	})
}

// Extents asks inner; no rule applies, but a failed device answers nothing.
func (d *Device) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	if err := d.check(off, n); err != nil {
		return nil, err
	}
	d.mu.Lock()
	failure := d.failure
	if d.isClosed {
		failure = blockdev.ErrClosed
	}
	d.mu.Unlock()
	if failure != nil {
		return nil, failure
	}
	return d.inner.Extents(off, n, limit)
}

// Close ends every hang and delay with ErrClosed and closes inner.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.isClosed {
		d.mu.Unlock()
		return blockdev.ErrClosed
	}
	d.isClosed = true
	close(d.closed)
	d.mu.Unlock()
	return d.inner.Close()
}
