package blockdev

import (
	"slices"
	"sync"
	"sync/atomic"
)

const (
	memoryChunk  = BlockSize // bytes; a hole is never smaller
	memoryShards = 64
)

// Memory is a sparse Device in RAM, for tests: only chunks that were written
// cost anything. It is never failed or full, and flushing does nothing: it is
// lost with the process.
type Memory struct {
	size   int64
	closed atomic.Bool
	shards [memoryShards]memoryShard
}

// memoryShard holds the chunks whose number modulo memoryShards is its index.
type memoryShard struct {
	mu sync.RWMutex
	// Guarded by mu, contents too: a sector is never seen half written.
	chunks map[int64]*[memoryChunk]byte
}

var _ Device = (*Memory)(nil)
var _ NowaitReader = (*Memory)(nil)

// NewMemory returns an empty store of size bytes.
func NewMemory(size int64) *Memory {
	m := &Memory{size: size}
	for i := range m.shards {
		m.shards[i].chunks = make(map[int64]*[memoryChunk]byte)
	}
	return m
}

func (m *Memory) check(off, n int64) error {
	if err := CheckRange(m.size, off, n); err != nil {
		return err
	}
	if m.closed.Load() {
		return ErrClosed
	}
	return nil
}

func (m *Memory) shard(chunk int64) *memoryShard { return &m.shards[chunk%memoryShards] }

// eachChunk calls do for every chunk that [off, off+n) touches: the chunk's
// number, the offset inside it, and the number of bytes.
func eachChunk(off, n int64, do func(chunk int64, at, k int)) {
	for n > 0 {
		at := off % memoryChunk
		k := min(n, memoryChunk-at)
		do(off/memoryChunk, int(at), int(k))
		off, n = off+k, n-k
	}
}

// Size returns the size in bytes.
func (m *Memory) Size() int64 { return m.size }

// ReadAt fills p from off.
func (m *Memory) ReadAt(p []byte, off int64) error {
	if err := m.check(off, int64(len(p))); err != nil {
		return err
	}
	eachChunk(off, int64(len(p)), func(chunk int64, at, k int) {
		s := m.shard(chunk)
		s.mu.RLock()
		if c := s.chunks[chunk]; c != nil {
			copy(p[:k], c[at:])
		} else {
			clear(p[:k])
		}
		s.mu.RUnlock()
		p = p[k:]
	})
	return nil
}

// ReadNowait is ReadAt: memory never waits.
func (m *Memory) ReadNowait(p []byte, off int64) (bool, error) {
	return true, m.ReadAt(p, off)
}

// WriteAt writes p at off.
func (m *Memory) WriteAt(p []byte, off int64, flags Flags) error {
	if err := m.check(off, int64(len(p))); err != nil {
		return err
	}
	eachChunk(off, int64(len(p)), func(chunk int64, at, k int) {
		s := m.shard(chunk)
		s.mu.Lock()
		copy(s.chunk(chunk)[at:], p[:k])
		s.mu.Unlock()
		p = p[k:]
	})
	return nil
}

// chunk returns the chunk, made if needed. REQUIRES s.mu.
func (s *memoryShard) chunk(i int64) *[memoryChunk]byte {
	c := s.chunks[i]
	if c == nil {
		c = new([memoryChunk]byte)
		s.chunks[i] = c
	}
	return c
}

// Zero makes the range read as zeroes. NoHole allocates the range, which with
// FastZero is refused: it costs what writing costs.
func (m *Memory) Zero(off, n int64, flags Flags) error {
	if err := m.check(off, n); err != nil {
		return err
	}
	if flags&NoHole == 0 {
		m.drop(off, n)
		return nil
	}
	if flags&FastZero != 0 && n > 0 {
		return ErrNotFast
	}
	eachChunk(off, n, func(chunk int64, at, k int) {
		s := m.shard(chunk)
		s.mu.Lock()
		clear(s.chunk(chunk)[at : at+k])
		s.mu.Unlock()
	})
	return nil
}

// Trim frees the range.
func (m *Memory) Trim(off, n int64, flags Flags) error {
	if err := m.check(off, n); err != nil {
		return err
	}
	m.drop(off, n)
	return nil
}

// drop frees the chunks inside the range and clears those at its edges.
func (m *Memory) drop(off, n int64) {
	if n == 0 {
		return
	}
	first := (off + memoryChunk - 1) / memoryChunk
	last := (off + n) / memoryChunk // exclusive
	if first > last {               // inside one chunk
		m.clearEdge(off, n)
		return
	}
	m.clearEdge(off, first*memoryChunk-off)
	m.clearEdge(last*memoryChunk, off+n-last*memoryChunk)
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		// Go through what exists or through the range, whichever is shorter: a
		// trim of an empty 1 TiB must cost nothing.
		if int64(len(s.chunks)) < (last-first)/memoryShards {
			for c := range s.chunks {
				if first <= c && c < last {
					delete(s.chunks, c)
				}
			}
		} else {
			start := first + ((int64(i)-first)%memoryShards+memoryShards)%memoryShards
			for c := start; c < last; c += memoryShards {
				delete(s.chunks, c)
			}
		}
		s.mu.Unlock()
	}
}

// clearEdge zeroes part of one chunk, if it exists.
func (m *Memory) clearEdge(off, n int64) {
	eachChunk(off, n, func(chunk int64, at, k int) {
		s := m.shard(chunk)
		s.mu.Lock()
		if c := s.chunks[chunk]; c != nil {
			clear(c[at : at+k])
		}
		s.mu.Unlock()
	})
}

// Flush does nothing.
func (m *Memory) Flush() error {
	if m.closed.Load() {
		return ErrClosed
	}
	return nil
}

// Extents reports chunks that exist as data and the rest as holes.
func (m *Memory) Extents(off, n int64, limit int) ([]Extent, error) {
	if err := m.check(off, n); err != nil {
		return nil, err
	}
	first, last := off/memoryChunk, (off+n+memoryChunk-1)/memoryChunk
	limit = max(limit, 1)
	var list []Extent
	pos, end := off, off+n
	for _, c := range m.present(first, last) {
		start, stop := max(c*memoryChunk, off), min((c+1)*memoryChunk, end)
		list = AppendExtent(list, Extent{Off: pos, Len: start - pos, Hole: true, Zero: true})
		list = AppendExtent(list, Extent{Off: start, Len: stop - start})
		pos = stop
		if len(list) > limit {
			break
		}
	}
	list = AppendExtent(list, Extent{Off: pos, Len: end - pos, Hole: true, Zero: true})
	if len(list) > limit {
		list = list[:limit]
	}
	return list, nil
}

// present returns the numbers of the chunks in [first, last), ascending.
func (m *Memory) present(first, last int64) []int64 {
	var have []int64
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		if int64(len(s.chunks)) < last-first {
			for c := range s.chunks {
				if first <= c && c < last {
					have = append(have, c)
				}
			}
		} else {
			for c := first; c < last; c++ {
				if s.chunks[c] != nil {
					have = append(have, c)
				}
			}
		}
		s.mu.RUnlock()
	}
	slices.Sort(have)
	return have
}

// Allocated returns the bytes of RAM the contents take.
func (m *Memory) Allocated() int64 {
	var n int64
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		n += int64(len(s.chunks)) * memoryChunk
		s.mu.RUnlock()
	}
	return n
}

// Close makes every later call fail with ErrClosed.
func (m *Memory) Close() error {
	if m.closed.Swap(true) {
		return ErrClosed
	}
	return nil
}
