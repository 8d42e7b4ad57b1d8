package meta

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// contents is a State in a form that can be compared page by page.
type contents struct {
	super Super
	pages map[pageID]string // pages that are not all clear
}

func contentsOf(s *State) contents {
	c := contents{super: s.Super, pages: map[pageID]string{}}
	buf := make([]byte, 0, bitmap.PageBytes)
	for slot, set := range s.Bitmaps {
		for p := range set.Pages() {
			if page := set.AppendPage(buf, p); !isZero(page) {
				c.pages[pageID{kindBitmap, slot, p}] = string(page)
			}
		}
	}
	activity := map[int64][]byte{}
	s.Activity.Active(func(e int64) {
		p := e / bitmap.ExtentsPerActivityPage
		if activity[p] == nil {
			activity[p] = make([]byte, bitmap.PageBytes)
		}
		e %= bitmap.ExtentsPerActivityPage
		activity[p][e/8] |= 1 << (e % 8)
	})
	for p, page := range activity {
		c.pages[pageID{kindActivity, 0, p}] = string(page)
	}
	return c
}

func (c contents) clone() contents {
	return contents{super: c.super, pages: maps.Clone(c.pages)}
}

// apply returns the contents after a batch.
func (c contents) apply(b *Batch) contents {
	c = c.clone()
	put := func(id pageID, data []byte) {
		delete(c.pages, id)
		if !isZero(data) {
			c.pages[id] = string(data)
		}
	}
	if b.Super != nil {
		c.super = *b.Super
	}
	for _, p := range b.Activity {
		put(pageID{kindActivity, 0, p.Index}, p.Data)
	}
	for _, p := range b.Bitmap {
		put(pageID{kindBitmap, p.Slot, p.Page}, p.Data)
	}
	return c
}

// between says how got is not a page-by-page choice between two contents.
func (got contents) between(before, after contents) error {
	if !reflect.DeepEqual(got.super, before.super) && !reflect.DeepEqual(got.super, after.super) {
		return fmt.Errorf("superblock %+v", got.super)
	}
	ids := map[pageID]bool{}
	for _, c := range []contents{got, before, after} {
		for id := range c.pages {
			ids[id] = true
		}
	}
	for id := range ids {
		if id.kind == kindBitmap && id.slot >= len(got.super.Peers) {
			continue // its peer is not there yet
		}
		if g := got.pages[id]; g != before.pages[id] && g != after.pages[id] {
			return fmt.Errorf("%v is neither as before nor as after", id)
		}
	}
	return nil
}

// A volume of two bitmap pages.
const crashSize = 2 * bitmap.BlocksPerPage * bitmap.BlockSize

// script returns the commits of the enumeration.
func script(rng *rand.Rand) []*Batch {
	noise := func() []byte { // content that differs in every byte
		b := make([]byte, bitmap.PageBytes)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	extents := func() []byte { return pageOf(rng.IntN(20), 20+rng.IntN(20)) }
	s1 := testSuper(crashSize)
	s1.Current, s1.History = 77, append([]protocol.Generation{s1.Current}, s1.History...)
	s2 := s1
	s2.Peers = append(append([]PeerSlot(nil), s1.Peers...), PeerSlot{Name: "delta", Bitmap: 5})
	s3 := s2
	s3.Primary, s3.Clean = false, true
	return []*Batch{
		{Activity: []bitmap.ActivityPage{{Data: extents()}}},
		{Activity: []bitmap.ActivityPage{{Data: extents()}}, Bitmap: []BitmapPage{{0, 0, noise()}, {1, 1, noise()}}},
		{Super: &s1, Bitmap: []BitmapPage{{0, 0, noise()}}},
		{Super: &s2, Bitmap: []BitmapPage{{2, 0, noise()}}},
		{Activity: []bitmap.ActivityPage{{Data: extents()}}, Bitmap: []BitmapPage{{0, 0, pageOf()}, {2, 0, noise()}}},
		{Super: &s3, Activity: []bitmap.ActivityPage{{Data: pageOf()}}},
	}
}

// TestCrashAnywhere cuts the power after every write and sync of a series of
// commits, and in every image that this may leave demands each page as it was
// before or after the commit under way.
func TestCrashAnywhere(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	d := newDisk(t, testSuper(crashSize))
	f, s, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	before := contentsOf(s)
	images, nested := 0, 0
	for i, b := range script(rng) {
		after := before.apply(b)
		synced := false
		d.onOp = func() {
			low := before
			synced = synced || len(d.pending) == 0
			if synced {
				low = after
			}
			d.crashes(rng, true, func(m image, what string) {
				images++
				got := recovered(t, m, d.size, fmt.Sprintf("commit %d, %s", i, what))
				if err := got.between(low, after); err != nil {
					t.Fatalf("commit %d, %d writes pending, %s: %v", i, len(d.pending), what, err)
				}
				if images%307 == 0 {
					nested += crashWhileOpening(t, rng, m, d.size, got)
				}
			})
		}
		if err := f.Commit(b); err != nil {
			t.Fatal(err)
		}
		if !synced {
			t.Fatalf("commit %d did not sync", i)
		}
		before = after
	}
	t.Logf("%d images, %d more of crashes while opening some of them", images, nested)
}

// recovered returns what Recover makes of an image; nothing in it may count as
// damaged.
func recovered(t *testing.T, m image, size int64, what string) contents {
	t.Helper()
	s, err := Recover(m, size)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if s.Damaged != nil {
		t.Fatalf("%s: damaged: %v", what, s.Damaged)
	}
	return contentsOf(s)
}

// crashWhileOpening opens the image, and demands that this changes nothing of what
// it means, wherever it is cut; then that the file takes commits.
func crashWhileOpening(t *testing.T, rng *rand.Rand, m image, size int64, want contents) (images int) {
	t.Helper()
	d := diskOf(m, size)
	d.onOp = func() {
		d.crashes(rng, false, func(m image, what string) {
			images++
			got := recovered(t, m, size, "opening, "+what)
			if err := got.between(want, want); err != nil {
				t.Fatalf("opening, %s: %v", what, err)
			}
		})
	}
	f, s, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := contentsOf(s).between(want, want); err != nil {
		t.Fatalf("Open is not Recover: %v", err)
	}
	if len(d.pending) != 0 {
		t.Fatalf("%d writes not synced when Open returns", len(d.pending))
	}
	if again, err := Recover(d.durable, size); err != nil || again.Torn != nil || again.Damaged != nil {
		t.Fatalf("after Open: torn %v, damaged %v, error %v", again.Torn, again.Damaged, err)
	}
	b := &Batch{Bitmap: []BitmapPage{{0, 0, pageOf(1, 2)}, {0, 1, pageOf(3)}}, Activity: []bitmap.ActivityPage{{Data: pageOf(9)}}}
	after := want.apply(b)
	d.onOp = func() {
		d.crashes(rng, false, func(m image, what string) {
			images++
			got := recovered(t, m, size, "commit after a crash, "+what)
			if err := got.between(want, after); err != nil {
				t.Fatalf("commit after a crash, %s: %v", what, err)
			}
		})
	}
	if err := f.Commit(b); err != nil {
		t.Fatal(err)
	}
	return images
}

// TestKilledProcess: the system lives on, so all writes so far are there, but not
// durable. The next process must not overwrite the durable copy.
func TestKilledProcess(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for stop := 1; stop < 40; stop++ {
		d := newDisk(t, testSuper(crashSize))
		f, s, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		before, after := contentsOf(s), contentsOf(s)
		d.failAt = d.ops + stop
		for _, b := range script(rng) {
			before, after = after, after.apply(b)
			if f.Commit(b) != nil {
				break
			}
			before = after
		}
		d.failAt = 0
		d.onOp = func() { // the power fails while the next process opens the file
			d.crashes(rng, false, func(m image, what string) {
				if err := recovered(t, m, d.size, what).between(before, after); err != nil {
					t.Fatalf("stopped at operation %d, opening, %s: %v", stop, what, err)
				}
			})
		}
		f, s, err = Open(d) // same disk, cache and all
		if err != nil {
			t.Fatal(err)
		}
		got := contentsOf(s)
		if err := got.between(before, after); err != nil {
			t.Fatalf("stopped at operation %d: %v", stop, err)
		}
		b := &Batch{Bitmap: []BitmapPage{{0, 0, pageOf(1)}}, Activity: []bitmap.ActivityPage{{Data: pageOf(3)}}}
		d.onOp = func() {
			d.crashes(rng, false, func(m image, what string) {
				if err := recovered(t, m, d.size, what).between(got, got.apply(b)); err != nil {
					t.Fatalf("stopped at operation %d, %s: %v", stop, what, err)
				}
			})
		}
		if err := f.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailureIsSticky: after an error nothing is written or synced any more.
func TestFailureIsSticky(t *testing.T) {
	super := testSuper(crashSize)
	b := &Batch{Super: &super, Bitmap: []BitmapPage{{0, 0, pageOf(1)}}}
	for fail := 1; fail <= 5; fail++ { // two writes, sync, two mirrors
		d := newDisk(t, super)
		f, _, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		d.failAt = d.ops + fail
		for range 2 {
			if err := f.Commit(b); !isAll(err, ErrFailed, errDisk) {
				t.Fatalf("operation %d: %v", fail, err)
			}
		}
		if err := f.Close(); err != nil || d.ops != d.failAt || !d.closed {
			t.Errorf("operation %d failed: Close says %v, %d more operations, closed %v", fail, err, d.ops-d.failAt, d.closed)
		}
	}
	d := newDisk(t, super)
	f, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	d.failAt = d.ops + 1
	if err := f.Close(); !isAll(err, ErrFailed, errDisk) {
		t.Errorf("Close whose sync fails: %v", err)
	}
	if err := f.Commit(b); !isAll(err, ErrFailed) {
		t.Errorf("Commit after Close: %v", err)
	}
	for fail := 1; fail <= 3; fail++ { // Open of a file that needs settling
		d := newDisk(t, super)
		delete(d.cache, 1)
		d.failAt = fail
		if _, _, err := Open(d); !isAll(err, errDisk) {
			t.Errorf("Open with operation %d failing: %v", fail, err)
		}
	}
}

// A one-sync commit writes each page and its mirror once.
func TestCommitCost(t *testing.T) {
	d := newDisk(t, testSuper(crashSize))
	f, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	d.ops = 0
	if err := f.Commit(&Batch{Activity: []bitmap.ActivityPage{{Data: pageOf(1)}}}); err != nil || d.ops != 3 {
		t.Errorf("%d operations, error %v", d.ops, err)
	}
	if len(d.pending) != 1 || !bytes.Equal(d.pending[0].data[headerBytes:], pageOf(1)) {
		t.Errorf("pending: %d", len(d.pending))
	}
}
