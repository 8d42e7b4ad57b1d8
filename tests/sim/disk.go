package sim

import (
	"errors"
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/blockdev"
)

const sectorSize = 512

// sectorsPage is how many sectors a page of a disk has.
const sectorsPage = 64

// sectors is a page of a disk.
type sectors struct {
	cur    [sectorsPage]uint64 // what a read sees
	stable [sectorsPage]uint64 // what survives a power cut in any case
	last   [sectorsPage]uint64 // version of cur
	fixed  [sectorsPage]uint64 // version that FUA has made stable
}

// version is a value that a sector had; its number is its place in disk.cache.
type version struct {
	s   int32
	val uint64
}

// disk is a store with a volatile cache. Sectors hold a number instead of bytes.
// It outlives the processes that use it.
type disk struct {
	w      *World
	size   int64      // sectors
	pages  []*sectors // nil: never written
	cache  []version  // those that no flush has made stable, oldest first
	base   uint64     // number of cache[0]
	failed bool       // every operation fails from now on
	slow   int64
	order  []*diskOp      // under way
	failOp int            // 0: none; else the n-th write or flush from now fails
	space  int            // so many writes find no space
	unread int            // so many reads fail
	hangs  int64          // until when something may hang
	bad    map[int64]bool // sectors that cannot be read until they are written
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
	return &disk{w: w, size: n, pages: make([]*sectors, (n+sectorsPage-1)/sectorsPage), base: 1}
}

// at returns what a sector reads as.
func (d *disk) at(s int64) uint64 {
	if p := d.pages[s/sectorsPage]; p != nil {
		return p.cur[s%sectorsPage]
	}
	return 0
}

func (d *disk) set(s int64, v uint64) {
	p := d.pages[s/sectorsPage]
	if p == nil {
		p = new(sectors)
		d.pages[s/sectorsPage] = p
	}
	p.cur[s%sectorsPage] = v
	p.last[s%sectorsPage] = d.base + uint64(len(d.cache))
	d.cache = append(d.cache, version{int32(s), v})
}

// volatile reports whether a sector has versions that are not stable.
func (d *disk) volatile(s int64) bool {
	p := d.pages[s/sectorsPage]
	return p != nil && p.last[s%sectorsPage] >= d.base && p.last[s%sectorsPage] > p.fixed[s%sectorsPage]
}

// stable returns what a sector has after a power cut, unless a newer version of it
// happens to get there.
func (d *disk) stable(s int64) uint64 {
	if p := d.pages[s/sectorsPage]; p != nil {
		return p.stable[s%sectorsPage]
	}
	return 0
}

// eachVolatile calls fn for every version that may, or may not, survive a power cut.
func (d *disk) eachVolatile(fn func(s int64, v uint64)) {
	for i, v := range d.cache {
		if d.base+uint64(i) > d.pages[v.s/sectorsPage].fixed[v.s%sectorsPage] {
			fn(int64(v.s), v.val)
		}
	}
}

// differ calls fn for every sector that a and b hold different values in.
func differ(a, b *disk, fn func(s int64)) {
	for i, p := range a.pages {
		q := b.pages[i]
		if p == q {
			continue // nil
		}
		for k := range int64(sectorsPage) {
			if s := int64(i)*sectorsPage + k; a.at(s) != b.at(s) {
				fn(s)
			}
		}
	}
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
		if p.point("store write") {
			return
		}
		switch {
		case err == nil:
			d.apply(op)
			if fua {
				if p.point("store write through") {
					return
				}
				d.stabilise(off, n)
			}
		case !op.done:
			d.partly(op)
		}
		d.end(op)
		if p.point("end of a store write") {
			return
		}
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
		d.w.count("write without space")
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
		if d.at(s) != c.value(int32(s)) {
			return false
		}
	}
	return true
}

// caches reports whether anything is in the cache only.
func (d *disk) caches() (any bool) {
	d.eachVolatile(func(int64, uint64) { any = true })
	return any
}

// writing reports whether a write of a sector is under way.
func (d *disk) writing(s int64) bool {
	for _, op := range d.order {
		if s >= op.off/sectorSize && s < (op.off+op.n)/sectorSize {
			return true
		}
	}
	return false
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
		if len(d.bad) > 0 {
			delete(d.bad, first+i)
		}
		v := uint64(0)
		if op.vals != nil {
			v = op.vals[i]
		} else if d.at(first+i) == 0 && !d.volatile(first+i) {
			continue
		}
		d.set(first+i, v)
	}
}

// partly leaves a write half done, whole sectors.
func (d *disk) partly(op *diskOp) {
	op.done = true
	keep := d.w.n(3) // none, some, all
	if c := d.w.points; c != nil && (!c.kind.power || c.kind.keepStore) {
		keep = 2
	}
	first := op.off / sectorSize
	for i := int64(0); i < op.n/sectorSize; i++ {
		if keep == 0 || keep == 1 && d.w.p(0.5) {
			continue
		}
		v := uint64(0)
		if op.vals != nil {
			v = op.vals[i]
		}
		if v == 0 && d.at(first+i) == 0 {
			continue
		}
		d.set(first+i, v)
	}
}

func (d *disk) stabilise(off, n int64) {
	for s := off / sectorSize; s < (off+n)/sectorSize; s++ {
		if d.volatile(s) {
			p, k := d.pages[s/sectorsPage], s%sectorsPage
			p.stable[k], p.fixed[k] = p.cur[k], p.last[k]
		}
	}
}

// flush makes everything stable that was in the cache when it began.
func (d *disk) flush(p *process, done func(error)) {
	mark := d.base + uint64(len(d.cache))
	err := d.trouble(false)
	p.after(d.latency(64<<10), func() {
		if p.point("store sync") {
			return
		}
		if err == nil {
			d.upTo(mark)
		}
		if p.point("end of a store sync") {
			return
		}
		done(err)
	})
}

// upTo makes every version below mark stable.
func (d *disk) upTo(mark uint64) {
	if mark <= d.base {
		return
	}
	n := min(int(mark-d.base), len(d.cache))
	for i, v := range d.cache[:n] {
		p, k := d.pages[v.s/sectorsPage], v.s%sectorsPage
		if d.base+uint64(i) > p.fixed[k] {
			p.stable[k] = v.val
		}
	}
	d.cache = append(d.cache[:0], d.cache[n:]...)
	d.base += uint64(n)
}

// read calls done with the values of the range, taken at some moment until then.
func (d *disk) read(p *process, off, n int64, done func([]uint64, error)) {
	var vals []uint64
	if d.w.p(0.5) {
		vals = d.values(off, n)
	}
	p.after(d.latency(n), func() {
		switch {
		case d.unread > 0:
			d.unread--
			d.w.count("read failed")
			done(nil, errIO)
			return
		case d.failed || d.isBad(off, n):
			done(nil, errIO)
			return
		}
		if vals == nil {
			vals = d.values(off, n)
		}
		done(vals, nil)
	})
}

// isBad reports whether a sector of the range cannot be read.
func (d *disk) isBad(off, n int64) bool {
	if len(d.bad) == 0 {
		return false
	}
	for s := off / sectorSize; s < (off+n+sectorSize-1)/sectorSize; s++ {
		if d.bad[s] {
			return true
		}
	}
	return false
}

func (d *disk) values(off, n int64) []uint64 {
	first := off / sectorSize
	vals := make([]uint64, (off+n+sectorSize-1)/sectorSize-first)
	for i := 0; i < len(vals); {
		s := first + int64(i)
		k := s % sectorsPage
		if p := d.pages[s/sectorsPage]; p != nil {
			copy(vals[i:], p.cur[k:])
		}
		i += int(sectorsPage - k)
	}
	return vals
}

// zeroRun returns the length of the extent at off, whole sectors, and whether it
// reads as zeroes.
func (d *disk) zeroRun(off, n int64) (length int64, zero bool) {
	first, end := off/sectorSize, (off+n+sectorSize-1)/sectorSize
	zero = d.at(first) == 0
	s := first + 1
	for s < end {
		if zero && s%sectorsPage == 0 && d.pages[s/sectorsPage] == nil {
			s = min(s+sectorsPage, end)
			continue
		}
		if (d.at(s) == 0) != zero {
			break
		}
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
	var list []version // volatile ones by sector, oldest first
	for i, v := range d.cache {
		if d.base+uint64(i) > d.pages[v.s/sectorsPage].fixed[v.s%sectorsPage] {
			list = append(list, v)
		}
	}
	slices.SortStableFunc(list, func(a, b version) int { return int(a.s) - int(b.s) })
	how := d.w.n(4) // all lost, all kept, or each by itself
	if c := d.w.points; c != nil && c.kind.keepStore {
		how = 1
	}
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].s == list[0].s {
			n++
		}
		k := -1
		switch how {
		case 0:
		case 1:
			k = n - 1
		default:
			k = d.w.n(n+1) - 1
		}
		p, s := d.pages[list[0].s/sectorsPage], list[0].s%sectorsPage
		if k >= 0 {
			p.stable[s] = list[k].val
		}
		p.cur[s] = p.stable[s]
		list = list[n:]
	}
	d.base += uint64(len(d.cache))
	d.cache = d.cache[:0]
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
