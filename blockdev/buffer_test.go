package blockdev

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
)

func TestPoolClasses(t *testing.T) {
	p := NewPool(MaxBuffer)
	for _, tt := range []struct{ n, class int }{
		{0, 4096}, {1, 4096}, {4096, 4096}, {4097, 8192}, {65536, 65536}, {65537, 131072},
		{MaxBuffer - 1, MaxBuffer}, {MaxBuffer, MaxBuffer},
	} {
		b := p.Get(tt.n, nil)
		if len(b.Bytes()) != tt.n || p.Out() != int64(tt.class) {
			t.Errorf("%d bytes: buffer of %d, %d out, want %d", tt.n, len(b.Bytes()), p.Out(), tt.class)
		}
		b.Release()
		if p.Out() != 0 {
			t.Errorf("%d bytes out after Release", p.Out())
		}
	}
	for _, n := range []int{-1, MaxBuffer + 1} {
		mustPanic(t, func() { p.Get(n, nil) })
	}
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestBufferReferences(t *testing.T) {
	p := NewPool(0)
	b := p.Get(100, nil)
	b.Retain()
	b.Release()
	if p.Out() != 4096 {
		t.Error("returned while a reference is held")
	}
	b.Release()
	if p.Out() != 0 {
		t.Error("not returned with the last reference")
	}
	mustPanic(t, b.Release)
	loose := NewBuffer(10)
	loose.Release()
	mustPanic(t, loose.Retain)
}

func TestPoolReuses(t *testing.T) {
	p := NewPool(0)
	p.Get(4096, nil).Release()
	if n := testing.AllocsPerRun(100, func() { p.Get(4000, nil).Release() }); n != 0 {
		t.Errorf("%v allocations for a buffer that was idle", n)
	}
}

func TestPoolKeepsOnlyAQuarterIdle(t *testing.T) {
	p := NewPool(64 << 20)
	var out []*Buffer
	for range 16 {
		out = append(out, p.Get(4<<20, nil))
	}
	for _, b := range out {
		b.Release()
	}
	if p.idleBytes != 16<<20 {
		t.Errorf("%d bytes idle, want a quarter of the limit", p.idleBytes)
	}
}

// TestPoolIdleIsShared: a burst of large buffers must not keep the small ones
// from being reused for ever after.
func TestPoolIdleIsShared(t *testing.T) {
	p := NewPool(64 << 20)
	burst := func(n, count int) {
		var out []*Buffer
		for range count {
			out = append(out, p.Get(n, nil))
		}
		for _, b := range out {
			b.Release()
		}
	}
	burst(1<<20, 64) // fills what may be idle
	burst(4096, 100)
	if n := testing.AllocsPerRun(100, func() { p.Get(4096, nil).Release() }); n != 0 {
		t.Errorf("%v allocations for a small buffer after a burst of large ones", n)
	}
	if p.idleBytes > p.keepBytes {
		t.Errorf("%d bytes idle, at most %d wanted", p.idleBytes, p.keepBytes)
	}
	burst(MaxBuffer, 1) // never kept
	if len(p.idle[maxClassBits-minClassBits]) != 0 || len(p.idle[0]) != 100 {
		t.Error("one huge buffer pushed the others out")
	}
}

func TestPoolBoundAndOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(MaxBuffer)
		whole := p.Get(MaxBuffer, nil)
		if p.TryGet(1) != nil {
			t.Fatal("beyond the bound")
		}
		var order []int
		var mu sync.Mutex
		start := func(id, n int) {
			go func() {
				b := p.Get(n, nil)
				mu.Lock()
				order = append(order, id)
				mu.Unlock()
				if id != 3 {
					b.Release()
				}
			}()
			synctest.Wait()
		}
		start(1, 4096)
		start(2, MaxBuffer) // must not be overtaken by 3 and 4
		start(3, 4096)
		start(4, 8192)
		if p.TryGet(1) != nil {
			t.Fatal("TryGet overtook the queue")
		}
		whole.Release()
		synctest.Wait()
		if len(order) != 4 || order[0] != 1 || order[1] != 2 {
			t.Errorf("served in order %v", order)
		}
		if p.Out() != 4096 {
			t.Errorf("%d bytes out, want the 4096 that 3 keeps", p.Out())
		}
	})
}

func TestPoolStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(MaxBuffer)
		half := p.Get(MaxBuffer/2, nil)
		stop := make(chan struct{})
		big := make(chan *Buffer, 1)
		small := make(chan *Buffer, 1)
		go func() { big <- p.Get(MaxBuffer, stop) }()
		synctest.Wait()
		go func() { small <- p.Get(4096, nil) }()
		synctest.Wait()
		if len(small) != 0 {
			t.Fatal("the queue was overtaken")
		}
		close(stop)
		synctest.Wait()
		if b := <-big; b != nil {
			t.Error("a stopped Get got a buffer")
		}
		// The one behind must not wait for a Release that may never come.
		if len(small) != 1 {
			t.Fatal("the next in the queue still waits")
		}
		(<-small).Release()
		half.Release()
		if p.Out() != 0 || len(p.waiters) != 0 {
			t.Errorf("%d bytes out, %d waiters at the end", p.Out(), len(p.waiters))
		}
	})
}

// TestPoolStopWhileGranted: a Get that is stopped and served before it runs
// again takes the buffer or leaves it, but does not lose it.
func TestPoolStopWhileGranted(t *testing.T) {
	for _, stopFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := NewPool(MaxBuffer)
			whole := p.Get(MaxBuffer, nil)
			stop, got := make(chan struct{}), make(chan *Buffer, 1)
			go func() { got <- p.Get(4096, stop) }()
			synctest.Wait()
			p.mu.Lock() // holds the waiter in abandon until it is granted
			if stopFirst {
				close(stop)
			}
			p.outBytes -= MaxBuffer
			p.grant()
			if !stopFirst {
				close(stop)
			}
			p.outBytes += MaxBuffer
			p.mu.Unlock()
			whole.Release()
			if b := <-got; b != nil {
				b.Release()
			}
			if p.Out() != 0 {
				t.Errorf("stop first %v: %d bytes out at the end", stopFirst, p.Out())
			}
		})
	}
}

// TestPoolStress: stops race with grants; nothing leaks, the bound holds.
func TestPoolStress(t *testing.T) {
	p := NewPool(MaxBuffer)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 300 {
				stop := make(chan struct{})
				if r.IntN(2) == 0 {
					go close(stop)
				}
				b := p.Get(1<<(12+r.IntN(13)), stop)
				if out := p.Out(); out > MaxBuffer {
					t.Errorf("%d bytes out", out)
				}
				if b != nil {
					b.Release()
				}
			}
		})
	}
	wg.Wait()
	if p.Out() != 0 || len(p.waiters) != 0 {
		t.Errorf("%d bytes out, %d waiters at the end", p.Out(), len(p.waiters))
	}
}

func BenchmarkPool(b *testing.B) {
	p := NewPool(64 << 20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p.Get(4096, nil).Release()
		}
	})
}
