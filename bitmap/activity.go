package bitmap

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// ActivityPage is one page of the activity map as it goes to disk: Data has
// PageBytes bytes, extent Index*ExtentsPerActivityPage+e is bit e%8 of byte e/8.
type ActivityPage struct {
	Index int64
	Data  []byte
}

// phase is where an extent stands; see the diagram in doc.go.
type phase uint8

const (
	cold    phase = iota
	arming        // touched; its bit is to be written
	writing       // its bit is in the snapshot that is being written
	hot           // its bit is durable
)

// chunkExtents is how many extents' bookkeeping is allocated together: 4 GiB of
// volume for 24 KiB of memory.
const chunkExtents = 1024

type extentInfo struct {
	seq   uint64 // highest sequence that touched it
	last  int64  // latest time that it was touched
	phase phase
}

type chunk struct {
	extents [chunkExtents]extentInfo
	marks   [chunkExtents / 64]uint64 // a bit per extent that is not cold
	active  int                       // how many they are
	oldest  int64                     // no active extent was last touched before; makes Cool skip chunks
}

// Activity is the write-intent map: an extent's bit is durable before its first
// write, so after a crash only the extents on the map can have been mid-write.
// Ranges are bytes inside the volume; others panic. Times are in any unit and
// epoch, as long as they agree with each other.
type Activity struct {
	size    int64
	chunks  []*chunk // nil: all cold
	count   int      // extents that are not cold
	arming  int      // extents to be written
	pages   int64
	changed []uint64 // a bit per page: differs from what the last snapshot took

	out        bool    // a snapshot is being written
	outPages   []int64 // its pages
	outExtents []int64 // its writing extents
	toArm      []int64 // arming extents, in the order they were touched

	spare *chunk // one kept, so that a lone extent that comes and goes costs no allocation
}

// NewActivity returns an empty map for a volume of size bytes.
func NewActivity(size int64) *Activity {
	n := Extents(size)
	pages := divUp(n, ExtentsPerActivityPage)
	return &Activity{
		size:    size,
		chunks:  make([]*chunk, divUp(n, chunkExtents)),
		pages:   pages,
		changed: make([]uint64, divUp(pages, 64)),
	}
}

// Pages returns the number of pages.
func (a *Activity) Pages() int64 { return a.pages }

// Touch says that [off, off+n) will be written by the operation with sequence
// seq at time now. Cold extents become arming. It returns true when every extent
// of the range is durably marked: the write may start. Otherwise the caller
// waits until Durable says so (after a Snapshot was written). The touch itself is
// remembered in both cases. An empty range is durable.
func (a *Activity) Touch(off, n int64, seq uint64, now int64) (durable bool) {
	first, end := a.extents(off, n)
	durable = true
	for e := first; e < end; e++ {
		c := a.chunks[e/chunkExtents]
		if c == nil {
			c = a.addChunk(e / chunkExtents)
		}
		x := &c.extents[e%chunkExtents]
		x.seq = max(x.seq, seq)
		if x.phase == hot {
			x.last = max(x.last, now)
			continue
		}
		durable = false
		a.touchSlow(c, x, e, now)
	}
	return durable
}

func (a *Activity) touchSlow(c *chunk, x *extentInfo, e, now int64) {
	if x.phase != cold {
		x.last = max(x.last, now)
		return
	}
	a.enter(c, e, now)
	x.phase = arming
	a.arming++
	a.toArm = append(a.toArm, e)
	a.mark(e / ExtentsPerActivityPage)
}

func (a *Activity) addChunk(k int64) *chunk {
	c := a.spare
	if c == nil {
		c = new(chunk)
	}
	a.spare = nil
	a.chunks[k] = c
	return c
}

// enter accounts for a cold extent of c that comes onto the map.
func (a *Activity) enter(c *chunk, e, now int64) {
	if c.active == 0 || now < c.oldest {
		c.oldest = now
	}
	i := e % chunkExtents
	c.extents[i].last = now
	c.marks[i/64] |= 1 << (uint(i) % 64)
	c.active++
	a.count++
}

// Durable reports whether every extent of [off, off+n) is durably marked.
func (a *Activity) Durable(off, n int64) bool {
	first, end := a.extents(off, n)
	for e := first; e < end; e++ {
		c := a.chunks[e/chunkExtents]
		if c == nil || c.extents[e%chunkExtents].phase != hot {
			return false
		}
	}
	return true
}

// Arming reports whether some extent waits to be taken by a Snapshot.
func (a *Activity) Arming() bool { return a.arming > 0 }

// Changed reports whether a Snapshot would return pages: extents wait to be
// armed, or some were cooled (for which nobody waits).
func (a *Activity) Changed() bool {
	for _, w := range a.changed {
		if w != 0 {
			return true
		}
	}
	return false
}

// Count returns the number of extents on the map: arming, writing or hot.
func (a *Activity) Count() int { return a.count }

// Snapshot appends the pages that must be written so that the map as it is now
// is on disk; the extents that were arming are writing from now on. Buffers of
// dst beyond its length are reused. If a page was returned, Written or Failed
// must follow before the next Snapshot (else it panics); none: nothing changed.
func (a *Activity) Snapshot(dst []ActivityPage) []ActivityPage {
	if a.out {
		panic("bitmap: Snapshot while another is being written")
	}
	a.outPages = a.outPages[:0]
	for i, w := range a.changed {
		for ; w != 0; w &= w - 1 {
			p := int64(i)*64 + int64(bits.TrailingZeros64(w))
			a.outPages = append(a.outPages, p)
			dst = a.appendPage(dst, p)
		}
		a.changed[i] = 0
	}
	a.out = len(a.outPages) > 0
	a.outExtents, a.toArm = a.toArm, a.outExtents[:0]
	for _, e := range a.outExtents {
		a.extent(e).phase = writing
	}
	a.arming = 0
	return dst
}

func (a *Activity) appendPage(dst []ActivityPage, p int64) []ActivityPage {
	var buf []byte
	if len(dst) < cap(dst) {
		buf = dst[:len(dst)+1][len(dst)].Data
	}
	if cap(buf) < PageBytes {
		buf = make([]byte, PageBytes)
	}
	buf = buf[:0]
	first := p * ExtentsPerActivityPage / chunkExtents // 31 chunks a page
	for k := first; k < first+ExtentsPerActivityPage/chunkExtents; k++ {
		c := &noChunk
		if k < int64(len(a.chunks)) && a.chunks[k] != nil {
			c = a.chunks[k]
		}
		for _, w := range c.marks {
			buf = binary.LittleEndian.AppendUint64(buf, w)
		}
	}
	return append(dst, ActivityPage{Index: p, Data: buf})
}

var noChunk chunk

// Written says that the pages of the last Snapshot are durable: its writing
// extents are hot.
func (a *Activity) Written() {
	a.settle(hot)
}

// Failed says that the last Snapshot may not be on disk: its writing extents are
// arming again.
func (a *Activity) Failed() {
	for _, e := range a.outExtents {
		a.toArm = append(a.toArm, e)
		a.arming++
	}
	for _, p := range a.outPages {
		a.mark(p)
	}
	a.settle(arming)
}

func (a *Activity) settle(to phase) {
	if !a.out {
		panic("bitmap: no Snapshot is being written")
	}
	for _, e := range a.outExtents {
		a.extent(e).phase = to
	}
	a.out = false
	a.outPages, a.outExtents = a.outPages[:0], a.outExtents[:0]
}

// Cool takes at most max extents off the map that are hot, were last touched
// idle or longer before now, and for which may agrees (nil: always); lastSeq is
// the highest sequence that touched the extent, 0 if it comes from Load. It
// returns them, ascending. Their bits are gone from the next Snapshot, but nothing
// waits for that: an extent that is still marked on disk costs only time after a
// crash.
//
// REQUIRES: may returns true only if every write to the extent is done, the
// pages of every peer's Set that cover the extent are durable, and every
// connected peer has confirmed a flush that covers lastSeq.
func (a *Activity) Cool(now, idle int64, max int, may func(extent int64, lastSeq uint64) bool) []int64 {
	var cooled []int64
	for k, c := range a.chunks {
		if len(cooled) >= max {
			break
		}
		if c != nil && now-c.oldest >= idle {
			cooled = a.coolChunk(cooled, int64(k), now-idle, max, may)
		}
	}
	return cooled
}

func (a *Activity) coolChunk(cooled []int64, k, before int64, max int, may func(int64, uint64) bool) []int64 {
	c := a.chunks[k]
	oldest := int64(math.MaxInt64)
	c.each(func(i int64) {
		x := &c.extents[i]
		e := k*chunkExtents + i
		if x.phase != hot || x.last > before || len(cooled) >= max || may != nil && !may(e, x.seq) {
			oldest = min(oldest, x.last)
			return
		}
		*x = extentInfo{}
		c.marks[i/64] &^= 1 << (uint(i) % 64)
		c.active--
		a.count--
		a.mark(e / ExtentsPerActivityPage)
		cooled = append(cooled, e)
	})
	c.oldest = oldest
	if c.active == 0 {
		a.chunks[k], a.spare = nil, c
	}
	return cooled
}

// each calls yield for every extent of the chunk that is not cold, ascending.
// yield may make that extent cold.
func (c *chunk) each(yield func(i int64)) {
	for k, w := range c.marks {
		for ; w != 0; w &= w - 1 {
			yield(int64(k)*64 + int64(bits.TrailingZeros64(w)))
		}
	}
}

// Active calls yield for every extent on the map, ascending. yield must not
// change the map.
func (a *Activity) Active(yield func(extent int64)) {
	for k, c := range a.chunks {
		if c != nil {
			c.each(func(i int64) { yield(int64(k)*chunkExtents + i) })
		}
	}
}

// Load puts an extent onto the map that recovery found marked on disk: hot,
// without a sequence, last touched at time 0.
func (a *Activity) Load(extent int64) {
	if extent < 0 || extent >= Extents(a.size) {
		panic(fmt.Sprintf("bitmap: extent %d of %d", extent, Extents(a.size)))
	}
	c := a.chunks[extent/chunkExtents]
	if c == nil {
		c = a.addChunk(extent / chunkExtents)
	}
	if x := &c.extents[extent%chunkExtents]; x.phase == cold {
		a.enter(c, extent, 0)
		x.phase = hot
	}
}

// MarkChanged makes the next Snapshot return the page, to rewrite one that was
// found damaged.
func (a *Activity) MarkChanged(page int64) {
	if page < 0 || page >= a.pages {
		panic(fmt.Sprintf("bitmap: activity page %d of %d", page, a.pages))
	}
	a.mark(page)
}

// extents returns the extents [first, end) of a byte range.
func (a *Activity) extents(off, n int64) (first, end int64) {
	if off < 0 || n < 0 || off > a.size || n > a.size-off {
		panic(fmt.Sprintf("bitmap: bytes [%d, +%d) outside a volume of %d", off, n, a.size))
	}
	if n == 0 {
		return 0, 0
	}
	return off / ExtentSize, (off+n-1)/ExtentSize + 1
}

func (a *Activity) extent(e int64) *extentInfo {
	return &a.chunks[e/chunkExtents].extents[e%chunkExtents]
}

func (a *Activity) mark(p int64) { a.changed[p/64] |= 1 << (uint(p) % 64) }
