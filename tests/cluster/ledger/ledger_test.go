package ledger

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a disk without faults.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) ReadAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) WriteAt(p []byte, off int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}

func (m *memory) Zero(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Trim(off, n int64) error { return m.Zero(off, n) }
func (m *memory) Flush() error            { return nil }

func (m *memory) clone() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{data: append([]byte(nil), m.data...)}
}

const kib = 1 << 10

// put writes a block and acknowledges it.
func put(l *Ledger, m *memory, off int64) Stamp {
	p := make([]byte, 4*kib)
	s := l.Write(p, off)
	m.WriteAt(p, off, false)
	l.Ack(s, false)
	return s
}

func TestLoadOnAFaultlessDisk(t *testing.T) {
	l := New(8*kib, 512*kib)
	m := &memory{data: make([]byte, 1<<20)}
	load := Load{Ledger: l, WritesMax: 5000, Seed: 1}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	flushes := 0
	load.OnFlush = func() {
		mu.Lock()
		defer mu.Unlock()
		if flushes++; flushes == 400 {
			cancel()
		}
	}
	stats, err := load.Run(ctx, m)
	if err != nil || stats.Writes == 0 || stats.Reads == 0 || stats.Zeroes == 0 {
		t.Fatalf("load: %v, %+v", err, stats)
	}
	for _, rule := range []Rule{Acked, Flushed, Ordered} {
		v, err := l.Judge(m, rule)
		if err != nil || v.Err() != nil || v.Written == 0 {
			t.Errorf("%v: %v %v", rule, err, v.Err())
		}
	}
}

// TestJudge: what each rule lets pass. The history: write 1, flush, write 2,
// write 3 to another block, and a write 4 that was never acknowledged.
func TestJudge(t *testing.T) {
	type state struct{ empty, one, two, three, four *memory }
	history := func() (*Ledger, state) {
		var s state
		l := New(0, 64*kib)
		m := &memory{data: make([]byte, 64*kib)}
		s.empty = m.clone()
		put(l, m, 0)
		l.Flush()()
		s.one = m.clone()
		put(l, m, 0)
		s.two = m.clone()
		put(l, m, 8*kib)
		s.three = m.clone()
		p := make([]byte, 4*kib)
		l.Write(p, 0)
		m.WriteAt(p, 0, false)
		s.four = m
		return l, s
	}
	tests := []struct {
		name  string
		state func(state) *memory
		ok    [3]bool // Acked, Flushed, Ordered
	}{
		{"everything", func(s state) *memory { return s.four }, [3]bool{true, true, true}},
		{"without the unacknowledged", func(s state) *memory { return s.three }, [3]bool{true, true, true}},
		{"an acknowledged write lost", func(s state) *memory { return s.two }, [3]bool{false, true, true}},
		{"all unflushed lost", func(s state) *memory { return s.one }, [3]bool{false, true, true}},
		{"a flushed write lost", func(s state) *memory { return s.empty }, [3]bool{false, false, true}},
		{"a flushed write lost, a later one there", func(s state) *memory {
			m := s.three.clone()
			m.Zero(0, 4*kib)
			return m
		}, [3]bool{false, false, false}},
		{"a torn sector", func(s state) *memory {
			m := s.four.clone()
			copy(m.data[256:512], s.two.data[256:512])
			return m
		}, [3]bool{false, false, false}},
		{"two writes mixed at a sector's edge", func(s state) *memory {
			m := s.four.clone()
			copy(m.data[512:1024], s.two.data[512:1024])
			return m
		}, [3]bool{true, true, true}},
		{"a sector at the wrong place", func(s state) *memory {
			m := s.four.clone()
			copy(m.data[512:1024], s.four.data[0:512])
			return m
		}, [3]bool{false, false, false}},
		{"bytes of another", func(s state) *memory {
			m := s.four.clone()
			m.data[20*kib] = 1
			return m
		}, [3]bool{false, false, false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, s := history()
			for i, rule := range []Rule{Acked, Flushed, Ordered} {
				v, err := l.Judge(tt.state(s), rule)
				if err != nil {
					t.Fatal(err)
				}
				if got := v.Err() == nil; got != tt.ok[i] {
					t.Errorf("%v: allowed %v, want %v: %v", rule, got, tt.ok[i], v.Err())
				}
			}
		})
	}
}

// TestOverlapEndsEitherWay: two writes under way at once may end either way,
// until a later one is acknowledged.
func TestOverlapEndsEitherWay(t *testing.T) {
	l := New(0, 4*kib)
	a, b := &memory{data: make([]byte, 4*kib)}, &memory{data: make([]byte, 4*kib)}
	s1, s2 := l.Write(a.data, 0), l.Write(b.data, 0)
	l.Ack(s2, false)
	l.Ack(s1, false)
	for _, m := range []*memory{a, b} {
		if v, _ := l.Judge(m, Acked); v.Err() != nil {
			t.Error(v.Err())
		}
	}
	put(l, b.clone(), 0)
	if v, _ := l.Judge(b, Acked); v.Err() == nil {
		t.Error("a write issued after both were acknowledged may be missing")
	}
}

// TestRebase: an unacknowledged write that was not found must not appear later;
// one that was found must stay.
func TestRebase(t *testing.T) {
	l := New(0, 8*kib)
	m := &memory{data: make([]byte, 8*kib)}
	lost := make([]byte, 4*kib)
	l.Write(lost, 0)
	l.Write(m.data[4*kib:], 4*kib)
	if err := l.Rebase(m); err != nil {
		t.Fatal(err)
	}
	if v, _ := l.Judge(m, Flushed); v.Err() != nil {
		t.Error(v.Err())
	}
	back := m.clone()
	back.WriteAt(lost, 0, false)
	if v, _ := l.Judge(back, Ordered); v.Err() == nil {
		t.Error("a write that was lost may come back")
	}
	gone := m.clone()
	gone.Zero(4*kib, 4*kib)
	if v, _ := l.Judge(gone, Flushed); v.Err() == nil {
		t.Error("a write that was found may disappear")
	}
}

// forgetful is a disk that loses one acknowledged write in a hundred.
type forgetful struct {
	memory
	writes int
}

func (f *forgetful) WriteAt(p []byte, off int64, fua bool) error {
	f.mu.Lock()
	f.writes++
	lose := f.writes%100 == 0
	f.mu.Unlock()
	if lose {
		return nil
	}
	return f.memory.WriteAt(p, off, fua)
}

func TestLoadFindsALostWrite(t *testing.T) {
	l := New(0, 64*kib)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := (&Load{Ledger: l, Seed: 2}).Run(ctx, &forgetful{memory: memory{data: make([]byte, 64*kib)}})
	if !errors.Is(err, ErrWrong) || !strings.Contains(err.Error(), "must be there") {
		t.Errorf("a disk that loses writes: %v", err)
	}
}

var errGone = errors.New("gone")

// mortal is a disk that fails after some writes.
type mortal struct {
	memory
	left int
}

func (d *mortal) WriteAt(p []byte, off int64, fua bool) error {
	d.mu.Lock()
	d.left--
	dead := d.left < 0
	d.mu.Unlock()
	if dead {
		return errGone
	}
	return d.memory.WriteAt(p, off, fua)
}

func TestLoadEndsWithTheDisk(t *testing.T) {
	l := New(0, 256*kib)
	d := &mortal{memory: memory{data: make([]byte, 256*kib)}, left: 500}
	stats, err := (&Load{Ledger: l, Seed: 3}).Run(t.Context(), d)
	if !errors.Is(err, errGone) || stats.Writes != 500 {
		t.Fatalf("%v, %+v", err, stats)
	}
	if issued, acked, _ := l.Writes(); issued <= acked || int64(acked) != stats.Writes+stats.Zeroes {
		t.Errorf("issued %d, acknowledged %d", issued, acked)
	}
	if v, _ := l.Judge(&d.memory, Acked); v.Err() != nil {
		t.Error(v.Err())
	}
}
