package bitmap

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const ext = int64(ExtentSize)

func activeOf(a *Activity) (out []int64) {
	a.Active(func(e int64) { out = append(out, e) })
	return out
}

// bitsOf returns the extents marked in pages.
func bitsOf(pages []ActivityPage) (out []int64) {
	for _, p := range pages {
		for i, b := range p.Data {
			for k := range 8 {
				if b>>k&1 != 0 {
					out = append(out, p.Index*ExtentsPerActivityPage+int64(i*8+k))
				}
			}
		}
	}
	return out
}

func TestActivityLife(t *testing.T) {
	a := NewActivity(tebi)
	if a.Touch(3*ext-1, 2, 7, 100) || !a.Arming() || !a.Changed() || a.Durable(2*ext, 1) {
		t.Fatal("a cold range is durable")
	}
	pages := a.Snapshot(nil)
	if got := bitsOf(pages); !slices.Equal(got, []int64{2, 3}) || a.Arming() || a.Changed() {
		t.Fatalf("snapshot of %v", got)
	}
	if a.Touch(2*ext, 1, 8, 101) || a.Arming() {
		t.Fatal("touching a writing extent")
	}
	if a.Touch(5*ext, 1, 9, 102) || !a.Arming() { // not in the snapshot
		t.Fatal("touching a cold extent while a snapshot is written")
	}
	a.Written()
	if !a.Durable(2*ext, 2*ext) || a.Durable(5*ext, 1) || !a.Touch(2*ext, 5, 10, 103) || a.Count() != 3 {
		t.Fatal("after Written")
	}
	if a.Durable(3*ext, 3*ext) || !a.Durable(0, 0) || !a.Touch(tebi, 0, 0, 0) {
		t.Fatal("ranges")
	}
}

func TestActivityFailed(t *testing.T) {
	a := NewActivity(tebi)
	a.Touch(0, 1, 1, 1)
	a.Snapshot(nil)
	a.Failed()
	if !a.Arming() || !a.Changed() || a.Durable(0, 1) {
		t.Fatal("a failed snapshot leaves nothing to do")
	}
	if got := bitsOf(a.Snapshot(nil)); !slices.Equal(got, []int64{0}) {
		t.Fatalf("snapshot of %v", got)
	}
	a.Written()
	if !a.Durable(0, 1) {
		t.Fatal("not durable")
	}
}

func TestActivityCool(t *testing.T) {
	a := NewActivity(tebi)
	a.Touch(0, 4*ext, 5, 100)
	if got := a.Cool(1000, 10, 9, nil); got != nil {
		t.Fatalf("arming extents cooled: %v", got)
	}
	a.Snapshot(nil)
	if got := a.Cool(1000, 10, 9, nil); got != nil {
		t.Fatalf("writing extents cooled: %v", got)
	}
	a.Written()
	a.Touch(ext, 1, 6, 995)
	asked := map[int64]uint64{}
	got := a.Cool(1000, 10, 2, func(e int64, seq uint64) bool { asked[e] = seq; return e != 0 })
	if !slices.Equal(got, []int64{2, 3}) || asked[0] != 5 || asked[2] != 5 || len(asked) != 3 {
		t.Fatalf("cooled %v, asked %v", got, asked)
	}
	if a.Arming() || !a.Changed() || a.Count() != 2 {
		t.Fatal("cooling makes nobody wait, but a page to write")
	}
	// Touched again before the page without the bit was written.
	if a.Touch(2*ext, 1, 7, 1001) || a.Durable(2*ext, 1) || !a.Arming() {
		t.Fatal("a cooled extent is durable")
	}
	pages := a.Snapshot(nil)
	if got := bitsOf(pages); !slices.Equal(got, []int64{0, 1, 2}) {
		t.Fatalf("snapshot of %v", got)
	}
	// Cooled while the snapshot that still marks it is written.
	if got := a.Cool(9999, 10, 9, func(e int64, _ uint64) bool { return e == 1 }); !slices.Equal(got, []int64{1}) {
		t.Fatalf("cooled %v", got)
	}
	if a.Touch(ext, 1, 8, 10000) {
		t.Fatal("cooled during the write, durable without another one")
	}
	a.Written()
	if a.Durable(ext, 1) || !a.Durable(2*ext, 1) || !a.Arming() {
		t.Fatal("Written made an extent hot that was touched after the snapshot")
	}
}

func TestActivityLoad(t *testing.T) {
	a := NewActivity(3*ext + 1)
	a.Load(3)
	a.Load(3)
	if a.Count() != 1 || a.Changed() || !a.Touch(3*ext, 1, 1, 1) {
		t.Fatal("a loaded extent is not hot")
	}
	a.MarkChanged(0)
	if got := bitsOf(a.Snapshot(nil)); !slices.Equal(got, []int64{3}) {
		t.Fatalf("snapshot of %v", got)
	}
}

func TestActivityPanics(t *testing.T) {
	for name, f := range map[string]func(a *Activity){
		"beyond":        func(a *Activity) { a.Touch(ext, 1, 0, 0) },
		"overflow":      func(a *Activity) { a.Touch(1, 1<<63-1, 0, 0) },
		"negative":      func(a *Activity) { a.Durable(-1, 1) },
		"load":          func(a *Activity) { a.Load(1) },
		"written":       func(a *Activity) { a.Written() },
		"two snapshots": func(a *Activity) { a.Touch(0, 1, 0, 0); a.Snapshot(nil); a.Snapshot(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", name)
				}
			}()
			f(NewActivity(ext))
		}()
	}
}

// modelExtent is what the naive model knows of an extent.
type modelExtent struct {
	state string // "", arming, writing, hot
	seq   uint64
	last  int64
}

// TestActivityAgainstModel also keeps a disk: the pages of confirmed snapshots.
// While one is written the disk may hold the old or the new version of each page.
func TestActivityAgainstModel(t *testing.T) {
	const extents = ExtentsPerActivityPage + 100
	rapid.Check(t, func(t *rapid.T) {
		a := NewActivity(extents * ext)
		model := map[int64]modelExtent{}
		disk := map[int64]bool{}
		var flying []ActivityPage // nil: none
		var now int64
		some := rapid.OneOf(rapid.Int64Range(0, 5), rapid.Int64Range(chunkExtents-2, chunkExtents+2), rapid.Int64Range(ExtentsPerActivityPage-3, extents-1))
		finish := func(from, to string) {
			for e, x := range model {
				if x.state == from {
					x.state = to
					model[e] = x
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"touch": func(t *rapid.T) {
				now += rapid.Int64Range(-1, 5).Draw(t, "dt")
				first := some.Draw(t, "extent")
				n := rapid.Int64Range(1, min(3, extents-first)).Draw(t, "n")
				seq := rapid.Uint64Range(0, 100).Draw(t, "seq")
				want := true
				for e := first; e < first+n; e++ {
					x := model[e]
					if x.state == "" {
						x = modelExtent{state: "arming", last: now}
					}
					x.seq, x.last = max(x.seq, seq), max(x.last, now)
					model[e] = x
					want = want && x.state == "hot"
				}
				if got := a.Touch(first*ext, n*ext, seq, now); got != want || a.Durable(first*ext, n*ext) != want {
					t.Fatalf("Touch(%d, %d) = %v", first, n, got)
				}
				for e := first; want && e < first+n; e++ {
					marked := disk[e]
					for _, p := range flying { // it may have overwritten the disk
						if p.Index == e/ExtentsPerActivityPage {
							marked = marked && slices.Contains(bitsOf([]ActivityPage{p}), e)
						}
					}
					if !marked {
						t.Fatalf("extent %d may be written and is not surely on disk", e)
					}
				}
			},
			"snapshot": func(t *rapid.T) {
				if flying != nil {
					return
				}
				flying = a.Snapshot(nil)
				finish("arming", "writing")
			},
			"written": func(t *rapid.T) {
				if flying == nil {
					return
				}
				a.Written()
				for _, p := range flying {
					for e := p.Index * ExtentsPerActivityPage; e < min((p.Index+1)*ExtentsPerActivityPage, extents); e++ {
						delete(disk, e)
					}
				}
				for _, e := range bitsOf(flying) {
					disk[e] = true
				}
				flying = nil
				finish("writing", "hot")
			},
			"failed": func(t *rapid.T) {
				if flying == nil {
					return
				}
				a.Failed()
				flying = nil
				finish("writing", "arming")
			},
			"cool": func(t *rapid.T) {
				idle, limit := rapid.Int64Range(0, 10).Draw(t, "idle"), rapid.IntRange(0, 3).Draw(t, "max")
				odd := rapid.Bool().Draw(t, "odd only")
				var want []int64
				for e, x := range model {
					if x.state == "hot" && now-x.last >= idle && (!odd || e%2 == 1) {
						want = append(want, e)
					}
				}
				slices.Sort(want)
				want = want[:min(limit, len(want))]
				got := a.Cool(now, idle, limit, func(e int64, seq uint64) bool {
					if seq != model[e].seq {
						t.Fatalf("extent %d has sequence %d, want %d", e, seq, model[e].seq)
					}
					return !odd || e%2 == 1
				})
				if !slices.Equal(got, want) {
					t.Fatalf("cooled %v, want %v", got, want)
				}
				for _, e := range want {
					delete(model, e)
				}
			},
			"": func(t *rapid.T) {
				var want []int64
				arming := false
				for e, x := range model {
					want = append(want, e)
					arming = arming || x.state == "arming"
				}
				slices.Sort(want)
				if got := activeOf(a); !slices.Equal(got, want) || a.Count() != len(want) || a.Arming() != arming {
					t.Fatalf("active %v, want %v; arming %v", got, want, a.Arming())
				}
				if !a.Changed() && flying == nil {
					for e := range disk {
						if _, ok := model[e]; !ok {
							t.Fatalf("extent %d is marked on disk, not on the map, and nothing is to be written", e)
						}
					}
				}
			},
		})
	})
}

// Hot extents cost no allocation.
func TestTouchHotAllocatesNothing(t *testing.T) {
	a := NewActivity(tebi)
	a.Touch(0, ext, 1, 1)
	a.Snapshot(nil)
	a.Written()
	if n := testing.AllocsPerRun(100, func() { a.Touch(4096, 4096, 2, 2) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTouchHot(b *testing.B) {
	a := NewActivity(tebi)
	a.Touch(0, 1024*ext, 1, 1)
	a.Snapshot(nil)
	a.Written()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		a.Touch(int64(i*4096)%(1024*ext), 4096, uint64(i), int64(i))
	}
}

func BenchmarkTouchHotRandom1TiB(b *testing.B) {
	a := NewActivity(tebi)
	a.Touch(0, tebi, 1, 1)
	a.Snapshot(nil)
	a.Written()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		a.Touch(int64(uint64(i)*0x9E3779B97F4A7C15>>24)&^4095, 4096, uint64(i), int64(i))
	}
}

// A cold extent's whole way: touch, snapshot, written, cooled, snapshot.
func BenchmarkArmAndCool(b *testing.B) {
	a := NewActivity(tebi)
	var pages []ActivityPage
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		a.Touch(i*ext%tebi, 4096, 1, i)
		pages = a.Snapshot(pages[:0])
		a.Written()
		a.Cool(i, 0, 1, nil)
	}
}

func BenchmarkSnapshot1TiBAllActive(b *testing.B) {
	a := NewActivity(tebi)
	a.Touch(0, tebi, 1, 1)
	a.Snapshot(nil)
	a.Written()
	var pages []ActivityPage
	b.ReportAllocs()
	for b.Loop() {
		a.MarkChanged(3)
		pages = a.Snapshot(pages[:0])
		a.Written()
	}
}

func BenchmarkCool1TiBNothingIdle(b *testing.B) {
	a := NewActivity(tebi)
	a.Touch(0, tebi, 1, 1)
	a.Snapshot(nil)
	a.Written()
	b.ReportAllocs()
	for b.Loop() {
		a.Cool(5, 10, 100, nil)
	}
}
