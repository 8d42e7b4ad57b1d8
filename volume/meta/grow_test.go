package meta

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// longDisk is a disk that can become longer.
type longDisk struct {
	*disk
	longer bool
}

func (d *longDisk) Extend(size int64) error {
	if err := d.step(); err != nil {
		return err
	}
	d.size, d.longer = max(d.size, size), true
	d.done()
	return nil
}

// sizes are volumes that end in the middle of a page, of a run, of a segment.
var growSizes = [][2]int64{
	{1 << 20, 2 << 20},
	{bitmap.BlocksPerPage * bitmap.BlockSize, bitmap.BlocksPerPage*bitmap.BlockSize + 512},
	{5 * bitmap.BlocksPerPage * bitmap.BlockSize, 40 * bitmap.BlocksPerPage * bitmap.BlockSize},
	{100 << 30, 300 << 30},
}

// full writes every bit of the first peer's bitmap, some extents, and a generation.
func fullBatch(size int64) *Batch {
	s := testSuper(size)
	s.Current = 77
	b := &Batch{Super: &s}
	lay := newLayout(size)
	page := func(id pageID, every int) []byte {
		data := make([]byte, bitmap.PageBytes)
		for i := int64(0); i < lay.bits(id); i += int64(every) {
			data[i/8] |= 1 << (i % 8)
		}
		return data
	}
	for p := range min(lay.bitmap, 20) {
		b.Bitmap = append(b.Bitmap, BitmapPage{0, p, page(pageID{kindBitmap, 0, p}, 1)})
	}
	b.Activity = append(b.Activity, bitmap.ActivityPage{Data: page(pageID{kindActivity, 0, 0}, 3)})
	return b
}

// TestGrow: what was known of the old blocks stays, the new ones are clear, and the
// file is one that takes commits of every new page.
func TestGrow(t *testing.T) {
	for _, sizes := range growSizes {
		path := filepath.Join(t.TempDir(), "crm.meta")
		if err := Create(path, testSuper(sizes[0]), false); err != nil {
			t.Fatal(err)
		}
		f, _ := open(t, path)
		b := fullBatch(sizes[0])
		if err := errors.Join(f.Commit(b), f.Close()); err != nil {
			t.Fatal(err)
		}
		before := contents{pages: map[pageID]string{}}.apply(b)
		if err := Grow(path, sizes[1]); err != nil {
			t.Fatal(err)
		}
		if err := Grow(path, sizes[0]); !errors.Is(err, ErrInvalid) {
			t.Errorf("it shrinks: %v", err)
		}
		f, st := open(t, path)
		got := contentsOf(st)
		want := before.clone()
		want.super.Size = sizes[1]
		if err := got.between(want, want); err != nil {
			t.Errorf("%d to %d: %v", sizes[0], sizes[1], err)
		}
		if st.Bitmaps[0].Blocks() != bitmap.Blocks(sizes[1]) {
			t.Errorf("%d blocks", st.Bitmaps[0].Blocks())
		}
		lay := newLayout(sizes[1])
		last := make([]byte, bitmap.PageBytes)
		last[0] = 1
		more := &Batch{Bitmap: []BitmapPage{{1, lay.bitmap - 1, last}}, Activity: []bitmap.ActivityPage{{Index: lay.activity - 1, Data: last}}}
		if err := errors.Join(f.Commit(more), f.Close()); err != nil {
			t.Fatal(err)
		}
		_, st = open(t, path)
		if err := contentsOf(st).between(want.apply(more), want.apply(more)); err != nil {
			t.Error(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Size() != lay.bytes() {
			t.Errorf("%v, %v", fi.Size(), err)
		}
	}
}

// TestGrowCutAnywhere: whatever a crash leaves, it is the old volume or the new one, with
// every bit that was there.
func TestGrowCutAnywhere(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, sizes := range growSizes[:3] {
		d := &longDisk{disk: newDisk(t, testSuper(sizes[0]))}
		f, _, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		b := fullBatch(sizes[0])
		if err := errors.Join(f.Commit(b), d.Sync()); err != nil {
			t.Fatal(err)
		}
		old := contents{pages: map[pageID]string{}}.apply(b)
		grown := old.clone()
		grown.super.Size = sizes[1]
		short, images, seen := d.size, 0, map[int64]int{}
		synced := false
		d.onOp = func() {
			synced = synced || d.longer && len(d.pending) == 0
			d.crashes(rng, true, func(m image, what string) {
				lengths := []int64{d.size}
				if !synced {
					lengths = append(lengths, short)
				}
				for _, size := range lengths {
					st, err := Recover(maps.Clone(m), size)
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if st.Damaged != nil {
						t.Fatalf("%s: damaged: %v", what, st.Damaged)
					}
					got := contentsOf(st)
					want := old
					if st.Super.Size == sizes[1] {
						want = grown
					}
					if err := got.between(want, want); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					seen[st.Super.Size]++
					images++
				}
			})
		}
		if err := GrowStorage(d, sizes[1]); err != nil {
			t.Fatal(err)
		}
		if seen[sizes[0]] == 0 || seen[sizes[1]] == 0 {
			t.Errorf("%d images, sizes %v", images, seen)
		}
	}
}

// TestGrowThatFails: after a disk error at any step it is opened as the old or the new.
func TestGrowThatFails(t *testing.T) {
	for at := 1; ; at++ {
		d := &longDisk{disk: newDisk(t, testSuper(1<<20))}
		d.failAt = at
		err := GrowStorage(d, 1<<30)
		if d.ops < at {
			return
		}
		st, rerr := Recover(d.cache, d.size)
		if rerr != nil || st.Super.Size != 1<<20 && st.Super.Size != 1<<30 || err == nil {
			t.Errorf("step %d: %v, %v", at, err, rerr)
		}
		if st.Super.Size == 1<<20 && st.Super.Disk != testSuper(1<<20).Disk || st.Super.Disk == protocol.DiskUnknown {
			t.Errorf("step %d: %+v", at, st.Super)
		}
	}
}
