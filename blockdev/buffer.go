package blockdev

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Buffer is a reference-counted byte slice from a Pool. Whoever needs the bytes
// beyond a call retains the buffer and releases it once; the last release gives
// it back. This lets one payload go to the store and to every peer uncopied, and
// still never be reused while a slow link has it.
type Buffer struct {
	b    []byte
	refs atomic.Int32
	pool *Pool
}

// Bytes returns the buffer's bytes. They may be read while a reference is held;
// only the sole owner may write them.
func (b *Buffer) Bytes() []byte { return b.b }

// Truncate takes all but the first n bytes off the buffer until it is back in its
// pool. REQUIRES the sole owner, and no more than there are.
func (b *Buffer) Truncate(n int) { b.b = b.b[:n] }

// Retain adds a reference.
func (b *Buffer) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("blockdev: Retain of a released buffer")
	}
}

// Release drops a reference; the last one returns the buffer to its pool.
func (b *Buffer) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		if b.pool != nil {
			b.pool.put(b)
		}
	case n < 0:
		panic("blockdev: Release of a released buffer")
	}
}

// NewBuffer returns a buffer of n bytes with one reference that belongs to no
// pool.
func NewBuffer(n int) *Buffer {
	b := &Buffer{b: make([]byte, n)}
	b.refs.Store(1)
	return b
}

const (
	minClassBits = 12 // 4 KiB, the smallest class
	maxClassBits = 25 // 32 MiB, the largest request
	// MaxBuffer is the largest buffer a Pool hands out, in bytes.
	MaxBuffer = 1 << maxClassBits
)

// Pool hands out buffers in power-of-two classes from 4 KiB to 32 MiB and bounds
// the bytes that are out at once: Get waits when the bound is reached, which is
// the back-pressure that keeps a fast client from growing memory. Idle buffers
// are kept up to keepBytes, so memory stays below limitBytes + keepBytes. Safe
// for concurrent use.
type Pool struct {
	limitBytes int64
	keepBytes  int64

	mu sync.Mutex
	// Guarded by mu.
	outBytes  int64
	idleBytes int64
	idle      [maxClassBits - minClassBits + 1][]*Buffer
	waiters   []*poolWaiter // FIFO, so that a large request is not starved
}

// poolWaiter is a Get that waits. Room for it is reserved before ready gets a
// value: an idle buffer, or nil when the waiter has to allocate one.
type poolWaiter struct {
	class int
	ready chan *Buffer // one slot: granting never blocks
}

// NewPool returns a pool with at most limitBytes out at once (raised to
// MaxBuffer, so that every legal request can be served) that keeps at most a
// quarter of that idle.
func NewPool(limitBytes int64) *Pool {
	limitBytes = max(limitBytes, MaxBuffer)
	return &Pool{limitBytes: limitBytes, keepBytes: limitBytes / 4}
}

// Get returns a buffer of n bytes (0 <= n <= MaxBuffer) with one reference,
// waiting while too many bytes are out; requests are served in order. Its
// content is arbitrary. It returns nil when stop is closed first.
func (p *Pool) Get(n int, stop <-chan struct{}) *Buffer {
	class := classOf(n)
	p.mu.Lock()
	if len(p.waiters) == 0 {
		if b, ok := p.reserve(class); ok {
			p.mu.Unlock()
			return p.finish(b, class, n)
		}
	}
	w := &poolWaiter{class: class, ready: make(chan *Buffer, 1)}
	p.waiters = append(p.waiters, w)
	p.mu.Unlock()
	select {
	case b := <-w.ready:
		return p.finish(b, class, n)
	case <-stop:
		p.abandon(w)
		return nil
	}
}

// TryGet is Get without waiting: nil when the bound is reached or others wait.
func (p *Pool) TryGet(n int) *Buffer {
	class := classOf(n)
	p.mu.Lock()
	if len(p.waiters) > 0 {
		p.mu.Unlock()
		return nil
	}
	b, ok := p.reserve(class)
	p.mu.Unlock()
	if !ok {
		return nil
	}
	return p.finish(b, class, n)
}

// Out returns the bytes now handed out.
func (p *Pool) Out() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outBytes
}

func classOf(n int) int {
	if n < 0 || n > MaxBuffer {
		panic(fmt.Sprintf("blockdev: buffer of %d bytes", n))
	}
	if n <= 1<<minClassBits {
		return 0
	}
	return bits.Len(uint(n-1)) - minClassBits
}

func classBytes(class int) int64 { return 1 << (class + minClassBits) }

// reserve counts a buffer of the class as out, if the bound allows, and returns
// an idle one or nil when the caller must make it. REQUIRES p.mu.
func (p *Pool) reserve(class int) (*Buffer, bool) {
	size := classBytes(class)
	if p.outBytes+size > p.limitBytes {
		return nil, false
	}
	p.outBytes += size
	l := p.idle[class]
	if len(l) == 0 {
		return nil, true
	}
	b := l[len(l)-1]
	l[len(l)-1] = nil
	p.idle[class] = l[:len(l)-1]
	p.idleBytes -= size
	return b, true
}

// finish turns a reservation into a buffer of n bytes. It allocates, so it runs
// without p.mu.
func (p *Pool) finish(b *Buffer, class, n int) *Buffer {
	if b == nil {
		b = &Buffer{b: make([]byte, classBytes(class)), pool: p}
	}
	b.b = b.b[:n]
	b.refs.Store(1)
	return b
}

// abandon takes back what a waiter asked for, granted or not.
func (p *Pool) abandon(w *poolWaiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case b := <-w.ready: // granted while it gave up
		p.unreserve(b, w.class)
	default:
		i := slices.Index(p.waiters, w)
		p.waiters = slices.Delete(p.waiters, i, i+1)
	}
	p.grant() // a large request may have held small ones back
}

// unreserve counts a buffer as back and keeps it (if any) idle. REQUIRES p.mu.
func (p *Pool) unreserve(b *Buffer, class int) {
	p.outBytes -= classBytes(class)
	if b != nil && p.makeRoom(class) {
		p.idle[class] = append(p.idle[class], b)
		p.idleBytes += classBytes(class)
	}
}

// makeRoom drops idle buffers until one more of the class fits, always of the
// class that has the most bytes idle, so that after a burst of large buffers the
// small ones are kept again. False: the class itself has the most, or its buffers
// are too large to push others out (more than a quarter of all). REQUIRES p.mu.
func (p *Pool) makeRoom(class int) bool {
	size := classBytes(class)
	if size > p.keepBytes/4 {
		return false
	}
	for p.idleBytes+size > p.keepBytes {
		most := class
		for c := range p.idle {
			if int64(len(p.idle[c]))*classBytes(c) > int64(len(p.idle[most]))*classBytes(most) {
				most = c
			}
		}
		if most == class {
			return false
		}
		last := len(p.idle[most]) - 1
		p.idle[most][last] = nil
		p.idle[most] = p.idle[most][:last]
		p.idleBytes -= classBytes(most)
	}
	return true
}

// grant serves waiters in order, as far as the bound allows. REQUIRES p.mu.
func (p *Pool) grant() {
	for len(p.waiters) > 0 {
		w := p.waiters[0]
		b, ok := p.reserve(w.class)
		if !ok {
			return
		}
		p.waiters[0] = nil
		p.waiters = p.waiters[1:]
		w.ready <- b
	}
}

func (p *Pool) put(b *Buffer) {
	p.mu.Lock()
	p.unreserve(b, classOf(cap(b.b)))
	p.grant()
	p.mu.Unlock()
}
