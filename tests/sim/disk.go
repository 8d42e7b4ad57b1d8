package sim

import (
	"errors"
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/blockdev"
)

const sectorSize = 512

// version is a value that a sector had since it was last stable.
type version struct {
	no  uint64
	val uint64
}

// disk is a store with a volatile cache. Sectors hold a number instead of bytes.
// It outlives the processes that use it.
type disk struct {
	w      *World
	cur    []uint64 // what a read sees
	stable []uint64 // what survives a power cut in any case
	pend   map[int32][]version
	no     uint64
	failed bool // every operation fails from now on
	slow   int64
	order  []*diskOp // under way
	failOp int       // 0: none; else the n-th write or flush from now fails
	space  int       // so many writes find no space
}

// diskOp is a write on its way.
type diskOp struct {
	off, n int64
	vals   []uint64 // nil: zeroes
	done   bool
}

var (
	errIO    = errors.New("input/output error")
	errSpace = blockdev.ErrNoSpace
)

func newDisk(w *World, size int64) *disk {
	n := (size + sectorSize - 1) / sectorSize
	return &disk{w: w, cur: make([]uint64, n), stable: make([]uint64, n), pend: map[int32][]version{}}
}

func (d *disk) set(s int32, v uint64) {
	d.cur[s] = v
	d.no++
	d.pend[s] = append(d.pend[s], version{d.no, v})
}

// write starts a write of values (nil: zeroes). done is called, through after,
// when it is over; the sectors change some time before.
func (d *disk) write(p *process, off, n int64, vals []uint64, fua bool, done func(error)) {
	op := &diskOp{off: off, n: n, vals: vals}
	d.order = append(d.order, op)
	if d.w.p(0.5) {
		d.apply(op)
	}
	err := d.trouble(true)
	p.after(d.latency(n), func() {
		switch {
		case err == nil:
			d.apply(op)
			if fua {
				d.stabilise(off, n)
			}
		case !op.done:
			d.partly(op)
		}
		d.end(op)
		done(err)
	})
}

// trouble says how the next operation ends.
func (d *disk) trouble(space bool) error {
	if d.failed {
		return errIO
	}
	if d.failOp > 0 {
		if d.failOp--; d.failOp == 0 {
			d.failed = true
			d.w.count("disk failed")
			return errIO
		}
	}
	if space && d.space > 0 {
		d.space--
		return errSpace
	}
	return nil
}

// has reports whether a client's write is here, or on its way into the cache.
func (d *disk) has(c *clientOp) bool {
	for _, op := range d.order {
		if op.off == c.r.Off && op.n == c.r.Len && len(op.vals) == len(c.vals) && (len(c.vals) == 0 || op.vals[0] == c.vals[0]) {
			return true
		}
	}
	for s := c.r.Off / sectorSize; s < (c.r.Off+c.r.Len)/sectorSize; s++ {
		if d.cur[s] != c.value(int32(s)) {
			return false
		}
	}
	return true
}

func (d *disk) end(op *diskOp) {
	if i := slices.Index(d.order, op); i >= 0 {
		d.order = slices.Delete(d.order, i, i+1)
	}
}

func (d *disk) apply(op *diskOp) {
	if op.done {
		return
	}
	op.done = true
	first := op.off / sectorSize
	for i := int64(0); i < op.n/sectorSize; i++ {
		v := uint64(0)
		if op.vals != nil {
			v = op.vals[i]
		} else if d.cur[first+i] == 0 && len(d.pend[int32(first+i)]) == 0 {
			continue
		}
		d.set(int32(first+i), v)
	}
}

// partly leaves a write half done, whole sectors.
func (d *disk) partly(op *diskOp) {
	op.done = true
	keep := d.w.n(3) // none, some, all
	first := op.off / sectorSize
	for i := int64(0); i < op.n/sectorSize; i++ {
		if keep == 0 || keep == 1 && d.w.p(0.5) {
			continue
		}
		v := uint64(0)
		if op.vals != nil {
			v = op.vals[i]
		}
		if v == 0 && d.cur[first+i] == 0 {
			continue
		}
		d.set(int32(first+i), v)
	}
}

func (d *disk) stabilise(off, n int64) {
	for s := off / sectorSize; s < (off+n)/sectorSize; s++ {
		if l := d.pend[int32(s)]; len(l) > 0 {
			d.stable[s] = l[len(l)-1].val
			delete(d.pend, int32(s))
		}
	}
}

// flush makes everything stable that was in the cache when it began.
func (d *disk) flush(p *process, done func(error)) {
	mark := d.no
	err := d.trouble(false)
	p.after(d.latency(64<<10), func() {
		if err == nil {
			d.upTo(mark)
		}
		done(err)
	})
}

func (d *disk) upTo(mark uint64) {
	for s, l := range d.pend { // the order does not matter
		i := 0
		for i < len(l) && l[i].no <= mark {
			i++
		}
		if i == 0 {
			continue
		}
		d.stable[s] = l[i-1].val
		if i == len(l) {
			delete(d.pend, s)
		} else {
			d.pend[s] = l[i:]
		}
	}
}

// read calls done with the values of the range, taken at some moment until then.
func (d *disk) read(p *process, off, n int64, done func([]uint64, error)) {
	var vals []uint64
	if d.w.p(0.5) {
		vals = d.values(off, n)
	}
	p.after(d.latency(n), func() {
		if d.failed {
			done(nil, errIO)
			return
		}
		if vals == nil {
			vals = d.values(off, n)
		}
		done(vals, nil)
	})
}

func (d *disk) values(off, n int64) []uint64 {
	return slices.Clone(d.cur[off/sectorSize : (off+n+sectorSize-1)/sectorSize])
}

// zeroRun returns the length of the extent at off, whole sectors, and whether it
// reads as zeroes.
func (d *disk) zeroRun(off, n int64) (length int64, zero bool) {
	first, end := off/sectorSize, (off+n+sectorSize-1)/sectorSize
	zero = d.cur[first] == 0
	s := first + 1
	for s < end && (d.cur[s] == 0) == zero {
		s++
	}
	return min((s-first)*sectorSize, n), zero
}

func (d *disk) latency(n int64) int64 {
	t := d.w.between(20*micro, d.w.sc.diskTime) + n/2 // 2 GB/s
	if d.w.p(0.01) {
		t += d.w.between(0, 50*milli)
	}
	return t + d.slow
}

// killed: the process is gone. What it had under way may be done, in part, or not;
// the cache stays.
func (d *disk) killed() {
	for _, op := range d.order {
		if !op.done {
			d.partly(op)
		}
	}
	d.order = nil
}

// powerCut loses what was not stable: each sector keeps the stable value or any
// it had since.
func (d *disk) powerCut() {
	d.killed()
	sectors := make([]int32, 0, len(d.pend))
	for s := range d.pend {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors)
	how := d.w.n(4) // all lost, all kept, or each by itself
	for _, s := range sectors {
		l := d.pend[s]
		k := -1
		switch how {
		case 0:
		case 1:
			k = len(l) - 1
		default:
			k = d.w.n(len(l)+1) - 1
		}
		if k >= 0 {
			d.stable[s] = l[k].val
		}
		d.cur[s] = d.stable[s]
	}
	clear(d.pend)
}

// digests returns a number for each block of the values.
func digests(vals []uint64, seed uint64) []uint64 {
	const per = bitmap.BlockSize / sectorSize
	var out []uint64
	for len(vals) > 0 {
		n := min(len(vals), per)
		h := seed
		for _, v := range vals[:n] {
			h = (h ^ v) * 0x9e3779b97f4a7c15
			h ^= h >> 29
		}
		out = append(out, h)
		vals = vals[n:]
	}
	return out
}
