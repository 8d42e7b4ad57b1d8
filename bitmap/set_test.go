package bitmap

import (
	"runtime"
	"testing"
)

const tebi = 1 << 40

func TestGeometry(t *testing.T) {
	if BlocksPerPage != 31744 || PageBytes != 3968 || ExtentsPerActivityPage%chunkExtents != 0 {
		t.Fatalf("%d blocks, %d bytes", BlocksPerPage, PageBytes)
	}
	for _, test := range []struct{ size, blocks, extents int64 }{
		{0, 0, 0}, {1, 1, 1}, {4096, 1, 1}, {4097, 2, 1}, {4 << 20, 1024, 1}, {4<<20 + 1, 1025, 2},
		{tebi, 1 << 28, 1 << 18}, {1<<63 - 1, 1 << 51, 1 << 41},
	} {
		if b, e := Blocks(test.size), Extents(test.size); b != test.blocks || e != test.extents {
			t.Errorf("size %d: %d blocks, %d extents; want %d, %d", test.size, b, e, test.blocks, test.extents)
		}
	}
}

func TestTouchedAndCovered(t *testing.T) {
	const size = 10*4096 + 100
	tests := []struct{ off, n, touchedFrom, touchedTo, coveredFrom, coveredTo int64 }{
		{0, 0, 0, 0, 0, 0},
		{0, 1, 0, 1, 0, 0},
		{0, 4095, 0, 1, 0, 0},
		{0, 4096, 0, 1, 0, 1},
		{1, 4096, 0, 2, 1, 1},
		{1, 8191, 0, 2, 1, 2},
		{4096, 4097, 1, 3, 1, 2},
		{4095, 2, 0, 2, 1, 1},
		{9 * 4096, 4096, 9, 10, 9, 10},
		{10 * 4096, 100, 10, 11, 10, 11},
		{10 * 4096, 99, 10, 11, 10, 10},
		{10*4096 + 1, 99, 10, 11, 11, 11},
		{0, size, 0, 11, 0, 11},
		{size, 0, 10, 10, 11, 11},
	}
	for _, test := range tests {
		from, to := Touched(test.off, test.n)
		if from != test.touchedFrom || to != test.touchedTo {
			t.Errorf("Touched(%d, %d) = %d, %d; want %d, %d", test.off, test.n, from, to, test.touchedFrom, test.touchedTo)
		}
		from, to = Covered(test.off, test.n, size)
		if from != test.coveredFrom || to != test.coveredTo {
			t.Errorf("Covered(%d, %d) = %d, %d; want %d, %d", test.off, test.n, from, to, test.coveredFrom, test.coveredTo)
		}
	}
}

func TestSetPanicsOutside(t *testing.T) {
	s := NewSet(100)
	for name, f := range map[string]func(){
		"Set":         func() { s.Set(0, 101) },
		"Clear":       func() { s.Clear(-1, 2) },
		"Test":        func() { s.Test(100) },
		"Any":         func() { s.Any(99, 101) },
		"MarkChanged": func() { s.MarkChanged(1) },
		"LoadPage":    func() { s.LoadPage(0, make([]byte, 1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s outside the set did not panic", name)
				}
			}()
			f()
		}()
	}
	if s.Set(101, 50) != 0 || s.Clear(5, 5) != 0 || s.Any(7, 7) {
		t.Error("an empty range did something")
	}
}

func TestMarkChangedPutsBack(t *testing.T) {
	s := NewSet(3 * BlocksPerPage)
	s.Set(0, 1)
	s.Set(2*BlocksPerPage, 2*BlocksPerPage+1)
	if got := s.ChangedPages(nil); len(got) != 2 || got[0] != 0 || got[1] != 2 {
		t.Fatalf("changed %v", got)
	}
	s.Set(0, 1) // no change
	s.Clear(5, 9)
	if got := s.ChangedPages(nil); len(got) != 0 {
		t.Fatalf("changed without a change: %v", got)
	}
	s.MarkChanged(2)
	if got := s.ChangedPages(nil); len(got) != 1 || got[0] != 2 {
		t.Fatalf("changed %v", got)
	}
}

// A full set of 1 TiB costs kilobytes.
func TestFullSetIsSmall(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := NewSet(Blocks(tebi))
	s.SetAll()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 128<<10 {
		t.Errorf("%d bytes", used)
	}
	if s.Count() != 1<<28 {
		t.Errorf("count %d", s.Count())
	}
}

func BenchmarkSetBlock(b *testing.B) {
	s := NewSet(Blocks(tebi))
	s.Set(0, 1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		at := int64(i % BlocksPerPage)
		s.Set(at, at+1)
	}
}

// One block that comes and goes in an empty page: the page is reused.
func BenchmarkSetClearBlock(b *testing.B) {
	s := NewSet(Blocks(tebi))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		at := int64(i) * 7919 % s.Blocks()
		s.Set(at, at+1)
		s.Clear(at, at+1)
	}
}

func BenchmarkSetAllClearAll1TiB(b *testing.B) {
	s := NewSet(Blocks(tebi))
	b.ReportAllocs()
	for b.Loop() {
		s.SetAll()
		s.Clear(0, s.Blocks())
	}
}

func BenchmarkNextEmpty1TiB(b *testing.B) {
	s := NewSet(Blocks(tebi))
	b.ReportAllocs()
	for b.Loop() {
		s.Next(0, 256)
	}
}

func BenchmarkNextFull(b *testing.B) {
	s := NewSet(Blocks(tebi))
	s.SetAll()
	b.ReportAllocs()
	at := int64(0)
	for b.Loop() {
		start, n := s.Next(at, 256)
		if at = start + n; at >= s.Blocks() {
			at = 0
		}
	}
}

func BenchmarkChangedPages1TiB(b *testing.B) {
	s := NewSet(Blocks(tebi))
	var buf []int64
	b.ReportAllocs()
	for b.Loop() {
		s.MarkChanged(4000)
		buf = s.ChangedPages(buf[:0])
	}
}

func BenchmarkAppendPage(b *testing.B) {
	s := NewSet(BlocksPerPage)
	s.Set(7, 99)
	buf := make([]byte, 0, PageBytes)
	b.SetBytes(PageBytes)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.AppendPage(buf[:0], 0)
	}
}
