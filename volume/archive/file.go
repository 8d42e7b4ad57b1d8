package archive

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// Base is the store that is about to be overwritten, or that a view lies over.
type Base interface {
	ReadAt(p []byte, off int64) error
	Extents(off, n int64, limit int) ([]blockdev.Extent, error)
}

// File is one archive. Safe for concurrent use.
type File struct {
	st   Storage
	head Header
	room func(more int64) error // says whether so many bytes may be appended; nil: any

	write sync.Mutex // held while a segment is gathered and appended
	// Guarded by write.
	seq   uint64
	limit int64 // bytes that may be appended while following; 0: none
	buf   []byte

	syncing sync.Mutex // held during Sync

	mu sync.RWMutex
	// Guarded by mu.
	idx     *index
	state   state
	end     int64 // bytes appended
	durable int64 // of them
	bytes   int64 // of data
	failed  error
	damage  error
	users   int // views, and the Dir
}

// create starts an archive. It owns st when it succeeds. Durable on return.
func create(st Storage, h Header) (*File, error) {
	if err := h.validate(); err != nil {
		return nil, err
	}
	f := &File{st: st, head: h, idx: newIndex(), end: dataAt, durable: dataAt, users: 1, state: state{seq: 1, phase: Collecting, end: dataAt}}
	b := make([]byte, dataAt)
	copy(b, h.encode())
	for i := range 2 {
		copy(b[stateAt+i*stateBytes:], f.state.encode(h.File))
	}
	if _, err := st.WriteAt(b, 0); err != nil {
		return nil, fmt.Errorf("creating an archive: %w", err)
	}
	if err := st.Sync(); err != nil {
		return nil, fmt.Errorf("creating an archive: %w", err)
	}
	return f, nil
}

// open reads an archive. It owns st when it succeeds. For writing, what a crash
// left behind the last good segment is cut off, and what may only be in the cache is
// written again: Durable on return is all that the index has.
func open(st Storage, writing bool) (*File, error) {
	size, err := st.Size()
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	s, err := scan(st, size)
	if err != nil {
		return nil, err
	}
	f := &File{st: st, head: s.header, idx: s.index, state: s.state, end: s.end, durable: s.end, seq: s.seq, bytes: s.bytes, damage: s.damage, users: 1}
	if !writing || f.damage != nil {
		return f, nil
	}
	if err := f.settle(min(s.tail, s.end), size); err != nil {
		return nil, fmt.Errorf("making an archive whole: %w", err)
	}
	return f, nil
}

// settle rewrites the tail as it is: if an earlier sync failed, the page cache may
// hold it clean though the disk does not have it.
func (f *File) settle(tail, size int64) error {
	if size > f.end {
		if err := f.st.Truncate(f.end); err != nil {
			return err
		}
	}
	buf := make([]byte, 1<<20)
	for at := tail; at < f.end; {
		b := buf[:min(int64(len(buf)), f.end-at)]
		if _, err := f.st.ReadAt(b, at); err != nil {
			return err
		}
		if _, err := f.st.WriteAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return f.st.Sync()
}

// Header returns what was written when the archive was begun.
func (f *File) Header() Header { return f.head }

func (f *File) err() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.failed
}

func (f *File) fail(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return f.failed
}

// blockRange returns the blocks that [off, off+n) touches.
func blockRange(off, n int64) (from, to int64) {
	return off / blockSize, (off + n + blockSize - 1) / blockSize
}

// covered reports whether every block of the list is archived and durable.
func (f *File) covered(list []blockdev.Extent) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.failed != nil || f.durable < f.end {
		return false
	}
	for _, e := range list {
		for b, to := blockRange(e.Off, e.Len); b < to; b++ {
			if !f.idx.has(b) {
				return false
			}
		}
	}
	return true
}

// keep archives what the base holds in the ranges and is not archived yet. Of a
// range that is Zero (it is about to be zeroed) blocks that read as zeroes are left
// out. Durable on return. The caller overwrites nothing before that, and sees to it
// that nobody else overwrites an unarchived block meanwhile.
func (f *File) keep(list []blockdev.Extent, base Base) error {
	if !anyZero(list) && f.covered(list) {
		return nil
	}
	end, err := f.append(list, base)
	if err != nil {
		return err
	}
	return f.sync(end)
}

func anyZero(list []blockdev.Extent) bool {
	for _, e := range list {
		if e.Zero {
			return true
		}
	}
	return false
}

// append gathers and appends; it returns how much of the file must be durable.
func (f *File) append(list []blockdev.Extent, base Base) (int64, error) {
	f.write.Lock()
	defer f.write.Unlock()
	if err := f.err(); err != nil {
		return 0, err
	}
	g := gatherer{f: f, base: base}
	for _, e := range list {
		if err := g.gather(e); err != nil {
			return 0, err
		}
	}
	if err := g.flush(); err != nil {
		return 0, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.end, nil
}

// gatherer fills segments. It belongs to one append.
type gatherer struct {
	f    *File
	base Base
	seg  segment
	data []byte
}

// gather adds the absent blocks of a range.
func (g *gatherer) gather(e blockdev.Extent) error {
	if err := blockdev.CheckRange(g.f.head.Size, e.Off, e.Len); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	b, to := blockRange(e.Off, e.Len)
	off, end := b*blockSize, min(to*blockSize, g.f.head.Size)
	for off < end {
		exts, err := g.base.Extents(off, end-off, 64)
		if err != nil {
			return fmt.Errorf("archive: reading what is to be kept: %w", err)
		}
		for _, x := range exts {
			off += x.Len
			if !x.Zero {
				continue
			}
			from, until := (x.Off+blockSize-1)/blockSize, x.End()/blockSize
			if x.End() == end {
				until = to
			}
			if from >= until || from < b {
				continue
			}
			if err := g.read(b, from); err != nil {
				return err
			}
			if !e.Zero {
				if err := g.zero(from, until); err != nil {
					return err
				}
			}
			b = until
		}
	}
	return g.read(b, to)
}

// zero adds the absent blocks of [from, to) as zeroes.
func (g *gatherer) zero(from, to int64) error {
	for from < to {
		n := g.absent(from, min(to, from+segmentMax))
		if n == 0 {
			from++
			continue
		}
		if err := g.add(entry{block: from, count: n}, nil); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// absent returns how many blocks from the first on are not archived.
func (g *gatherer) absent(from, to int64) int64 {
	g.f.mu.RLock()
	defer g.f.mu.RUnlock()
	b := from
	for b < to && !g.f.idx.has(b) {
		b++
	}
	return b - from
}

// read adds the absent blocks of [from, to) with what the base holds.
func (g *gatherer) read(from, to int64) error {
	for from < to {
		n := g.absent(from, min(to, from+segmentMax))
		if n == 0 {
			from++
			continue
		}
		if cap(g.f.buf) == 0 {
			g.f.buf = make([]byte, segmentMax*blockSize)
		}
		buf := g.f.buf[:n*blockSize]
		length := min(n*blockSize, g.f.head.Size-from*blockSize)
		clear(buf[length:])
		if err := g.base.ReadAt(buf[:length], from*blockSize); err != nil {
			return fmt.Errorf("archive: reading what is to be kept: %w", err)
		}
		for i := range n {
			block := buf[i*blockSize : (i+1)*blockSize]
			e := entry{block: from + i}
			if allZero(block) {
				e.count = 1
			} else {
				e.sum = digest(g.f.head.File, e.block, block)
			}
			if err := g.add(e, block); err != nil {
				return err
			}
		}
		from += n
	}
	return nil
}

var zeroes [blockSize]byte

func allZero(b []byte) bool { return [blockSize]byte(b) == zeroes }

// add puts an entry into the segment and writes the segment when it is full.
func (g *gatherer) add(e entry, block []byte) error {
	if len(g.seg.entries) == segmentMax {
		if err := g.flush(); err != nil {
			return err
		}
	}
	if last := len(g.seg.entries) - 1; e.count > 0 && last >= 0 {
		if p := &g.seg.entries[last]; p.count > 0 && p.block+p.count == e.block && p.count+e.count <= segmentMax {
			p.count += e.count
			return nil
		}
	}
	g.seg.entries = append(g.seg.entries, e)
	if e.count == 0 {
		g.data = append(g.data, block...)
	}
	return nil
}

// flush appends the segment, unsynced.
func (g *gatherer) flush() error {
	f := g.f
	if len(g.seg.entries) == 0 {
		return nil
	}
	f.mu.RLock()
	at, durable, following, grown, failed := f.end, f.durable, f.state.phase == Following, f.end-f.state.from, f.failed
	f.mu.RUnlock()
	if failed != nil {
		return failed
	}
	if following && grown >= f.limit {
		return ErrLimit
	}
	g.seg.seq, g.seg.durable = f.seq+1, durable
	if f.room != nil {
		if err := f.room(g.seg.bytes()); err != nil {
			return err
		}
	}
	out := append(g.seg.appendHead(make([]byte, 0, g.seg.bytes()), f.head.File), g.data...)
	if _, err := f.st.WriteAt(out, at); err != nil {
		return f.fail(err)
	}
	f.seq++
	f.mu.Lock()
	f.idx.add(&g.seg, at)
	f.end += int64(len(out))
	f.bytes += int64(len(g.data))
	f.mu.Unlock()
	g.seg.entries, g.data = g.seg.entries[:0], g.data[:0]
	return nil
}

// sync returns when the file is durable up to end. Whoever waits for another's sync
// may find that it covered his.
func (f *File) sync(end int64) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	f.mu.RLock()
	done, appended, failed := f.durable >= end, f.end, f.failed
	f.mu.RUnlock()
	if failed != nil {
		return failed
	}
	if done {
		return nil
	}
	if err := f.st.Sync(); err != nil {
		return f.fail(err)
	}
	f.mu.Lock()
	f.durable = max(f.durable, appended)
	f.mu.Unlock()
	return nil
}

// change rewrites the state durably, the slot that does not hold the newest. It
// needs no space, and works for a file that has failed: what is sealed says so.
func (f *File) change(fn func(*state)) error {
	f.write.Lock()
	defer f.write.Unlock()
	f.syncing.Lock()
	defer f.syncing.Unlock()
	f.mu.RLock()
	next, end, failed := f.state, f.end, f.failed
	f.mu.RUnlock()
	if failed == nil { // what the state calls durable must be
		if err := f.st.Sync(); err != nil {
			failed = f.fail(err)
		}
	}
	next.seq++
	if failed == nil {
		next.end = end
	}
	fn(&next)
	at := stateAt + int64(next.seq%2)*stateBytes
	if _, err := f.st.WriteAt(next.encode(f.head.File), at); err != nil {
		return f.fail(err)
	}
	if err := f.st.Sync(); err != nil {
		return f.fail(err)
	}
	f.mu.Lock()
	f.state = next
	if failed == nil {
		f.durable = max(f.durable, end)
	}
	f.mu.Unlock()
	return nil
}

// complete begins to follow: the sync that discards has ended.
func (f *File) complete(now time.Time) error {
	return f.change(func(s *state) {
		s.phase, s.whole, s.synced, s.from = Following, true, now, s.end
	})
}

// follow has a file that has failed, and whose end could not be written, follow as far
// as this process goes: it does not count as exact, what it cannot keep has it sealed,
// and it holds nobody up. On the disk it may still collect.
func (f *File) follow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil && f.state.phase == Collecting {
		f.state.phase = Following
	}
}

// seal ends an archive.
func (f *File) seal(now time.Time, why string) error {
	return f.change(func(s *state) { s.phase, s.sealed, s.why = Sealed, now, why })
}

// Phase returns where the archive stands.
func (f *File) Phase() Phase {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.state.phase
}

// readBlock fills p with an archived block, checked against its digest.
func (f *File) readBlock(p []byte, block int64, at place) error {
	if at.pos == zeroPlace {
		clear(p)
		return nil
	}
	if n, err := f.st.ReadAt(p[:blockSize], at.pos); n < blockSize {
		if err == nil || errors.Is(err, io.EOF) {
			err = ErrDamaged
		}
		return fmt.Errorf("archive %s: block %d: %w", f.head.Name(), block, err)
	}
	if digest(f.head.File, block, p[:blockSize]) != at.sum {
		return fmt.Errorf("archive %s: block %d does not match its digest: %w", f.head.Name(), block, ErrDamaged)
	}
	return nil
}

func (f *File) at(block int64) place {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.idx.at(block)
}

// Each calls fn for every archived block in ascending order; data is valid until it
// returns, nil: zeroes.
func (f *File) Each(fn func(block int64, data []byte) error) error {
	f.mu.RLock()
	chunks := f.idx.sorted()
	f.mu.RUnlock()
	buf := make([]byte, blockSize)
	for _, c := range chunks {
		for i := range int64(chunkBlocks) {
			block := c*chunkBlocks + i
			p := f.at(block)
			if p.pos == noPlace {
				continue
			}
			data := buf
			if p.pos == zeroPlace {
				data = nil
			} else if err := f.readBlock(buf, block, p); err != nil {
				return err
			}
			if err := fn(block, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// retain and Release count who uses the file; the last closes it.
func (f *File) retain() {
	f.mu.Lock()
	f.users++
	f.mu.Unlock()
}

// Release gives the file up.
func (f *File) Release() error {
	f.mu.Lock()
	f.users--
	last := f.users == 0
	f.mu.Unlock()
	if last {
		return f.st.Close()
	}
	return nil
}

func (f *File) inUse() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.users
}
