package meta

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/bitmap"
)

func isAll(err error, targets ...error) bool {
	return err != nil && !slices.ContainsFunc(targets, func(t error) bool { return !errors.Is(err, t) })
}

// atRest returns the image of a file after the script's commits, and its state.
func atRest(t *testing.T) (image, int64, contents) {
	t.Helper()
	d := newDisk(t, testSuper(crashSize))
	f, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	batches := script(rand.New(rand.NewPCG(1, 2)))
	for _, b := range batches[:len(batches)-1] { // the last one clears the map
		if err := f.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return d.durable, d.size, recovered(t, d.durable, d.size, "at rest")
}

func (m image) flip(slot int64, bit int) image {
	m = maps.Clone(m)
	data := new([pageSize]byte)
	if m[slot] != nil {
		*data = *m[slot]
	}
	data[bit/8] ^= 1 << (bit % 8)
	m[slot] = data
	return m
}

// Every bit of a file at rest may flip, and nothing is lost: the other copy has it.
func TestFlipAtRest(t *testing.T) {
	m, size, want := atRest(t)
	step := 61 // not a divisor of anything here
	if *full {
		step = 1
	}
	flips := 0
	for slot := range m {
		for bit := 0; bit < 8*pageSize; bit += step {
			flips++
			s, err := Recover(m.flip(slot, bit), size)
			if err != nil {
				t.Fatalf("slot %d, bit %d: %v", slot, bit, err)
			}
			if len(s.Torn) != 1 || s.Damaged != nil {
				t.Fatalf("slot %d, bit %d: torn %v, damaged %v", slot, bit, s.Torn, s.Damaged)
			}
			if err := contentsOf(s).between(want, want); err != nil {
				t.Fatalf("slot %d, bit %d: %v", slot, bit, err)
			}
		}
	}
	t.Logf("%d flips", flips)
}

// A bit flips where nothing was ever written.
func TestFlipInHole(t *testing.T) {
	m, size, want := atRest(t)
	lay := newLayout(crashSize)
	for pair := range lay.pairs {
		id, ok := lay.page(pair)
		if m[pair*2] != nil {
			continue
		}
		for slot := range int64(2) {
			s, err := Recover(m.flip(pair*2+slot, 12345), size)
			if err != nil {
				t.Fatal(err)
			}
			got, peers := contentsOf(s), len(s.Super.Peers)
			if ok && slot == 1 { // no crash does that
				if len(s.Damaged) != 1 {
					t.Errorf("%v: flip in the second slot of a hole: damaged %v", id, s.Damaged)
				}
				if id.slot < peers && got.pages[id] != string(allOf(lay.bits(id))) {
					t.Errorf("%v: not all set", id)
				}
				continue
			}
			if err := got.between(want, want); err != nil || s.Damaged != nil {
				t.Errorf("pair %d: %v, damaged %v", pair, err, s.Damaged)
			}
		}
	}
}

func allOf(bits int64) []byte {
	b := make([]byte, bitmap.PageBytes)
	for i := range bits {
		b[i/8] |= 1 << (i % 8)
	}
	return b
}

// Both copies bad: the page counts as all set, is named, and Open makes it so for
// good.
func TestBothCopiesBad(t *testing.T) {
	m, size, want := atRest(t)
	lay := newLayout(crashSize)
	for _, id := range []pageID{{kindBitmap, 0, 0}, {kindBitmap, 2, 0}, {kindActivity, 0, 0}} {
		first := lay.pair(id) * 2
		bad := m.flip(first, 8*2000).flip(first+1, 8*3000)
		expect := want.clone()
		expect.pages[id] = string(allOf(lay.bits(id)))
		s, err := Recover(bad, size)
		if err != nil || len(s.Damaged) != 1 || s.Damaged[0] != id.String() {
			t.Fatalf("%v: damaged %v, error %v", id, s.Damaged, err)
		}
		if err := contentsOf(s).between(expect, expect); err != nil {
			t.Error(err)
		}
		d := diskOf(bad, size)
		rng := rand.New(rand.NewPCG(5, 6))
		// A crash while Open mends it loses nothing either. (A torn write may undo
		// the flip.)
		d.onOp = func() {
			d.crashes(rng, false, func(m image, what string) {
				s, err := Recover(m, size)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if err := contentsOf(s).between(want, expect); err != nil {
					t.Fatalf("mending, %s: %v", what, err)
				}
			})
		}
		f, s, err := Open(d)
		if err != nil || len(s.Damaged) != 1 {
			t.Fatalf("Open: damaged %v, error %v", s.Damaged, err)
		}
		if f.seq != 7 { // after the file was made and five commits
			t.Errorf("%v was mended by commit %d", id, f.seq)
		}
		got := recovered(t, d.durable, size, "mended")
		if err := got.between(expect, expect); err != nil {
			t.Error(err)
		}
	}
}

// The newest copy was durable (a later commit started) and is bad, its mirror was
// lost in a crash: the older copy must not be believed.
func TestNewestCopyBadAndOlderThere(t *testing.T) {
	d := newDisk(t, testSuper(crashSize))
	f, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	id := pageID{kindBitmap, 0, 0}
	commit := func(b *Batch) {
		t.Helper()
		if err := f.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	commit(&Batch{Bitmap: []BitmapPage{{0, 0, pageOf(1)}}})
	commit(&Batch{Bitmap: []BitmapPage{{0, 0, pageOf(1, 2)}}})
	crash := maps.Clone(d.durable) // without the mirror of the second commit
	newest := f.offset(id, f.current(id)) / pageSize
	if got := recovered(t, crash, d.size, "crash"); got.pages[id] != string(pageOf(1, 2)) {
		t.Fatal("the second commit is not there")
	}

	// As long as no later commit is seen, this may be a torn write.
	s, err := Recover(crash.flip(newest, 8*4000), d.size)
	if err != nil || s.Damaged != nil || contentsOf(s).pages[id] != string(pageOf(1)) {
		t.Errorf("torn or damaged: damaged %v, error %v", s.Damaged, err)
	}
	commit(&Batch{Activity: []bitmap.ActivityPage{{Data: pageOf(1)}}})
	activity := f.offset(pageID{kind: kindActivity}, f.current(pageID{kind: kindActivity})) / pageSize
	crash[activity] = d.cache[activity]
	s, err = Recover(crash.flip(newest, 8*4000), d.size)
	if err != nil || len(s.Damaged) != 1 || contentsOf(s).pages[id] != string(allOf(bitmap.BlocksPerPage)) {
		t.Errorf("damaged: %v, error %v", s.Damaged, err)
	}

	// The same for the superblock is an error: nothing safe can be assumed.
	crash = maps.Clone(d.durable)
	super := testSuper(crashSize)
	super.Current = 4711
	commit(&Batch{Super: &super})
	newest = f.offset(pageID{kind: kindSuper}, f.current(pageID{kind: kindSuper})) / pageSize
	crash[newest] = d.durable[newest]
	commit(&Batch{Activity: []bitmap.ActivityPage{{Data: pageOf(2)}}})
	for slot := range int64(2) {
		at := lay0(f).pair(pageID{kind: kindActivity})*2 + slot
		crash[at] = d.durable[at]
	}
	if _, err := Recover(crash.flip(newest, 8*4000), d.size); !errors.Is(err, ErrDamaged) {
		t.Errorf("superblock: %v", err)
	}
}

func lay0(f *File) layout { return f.lay }

// TestDecide is the table of docs/ONDISK.md. The highest sequence seen is 9.
func TestDecide(t *testing.T) {
	none := copyState{}
	bad := copyState{condition: broken}
	first := func(seq uint64) copyState { return copyState{condition: intact, seq: seq} }
	mirror := func(seq uint64) copyState { return copyState{condition: intact, seq: seq, mirror: true} }
	dated := func(seq uint64) copyState { return copyState{condition: dated, seq: seq} }
	tests := []struct {
		name          string
		first, second copyState
		valid         int
		damaged       bool
		settled       bool
	}{
		{"never written", none, none, -1, false, true},
		{"first write torn", bad, none, -1, false, false},
		{"first write torn behind its header", dated(9), none, -1, false, false},
		{"first write was durable", dated(8), none, -1, true, false},
		{"second slot cannot be torn before the first is there", none, bad, -1, true, false},
		{"second slot cannot be torn before the first is there", none, dated(9), -1, true, false},
		{"both bad", bad, bad, -1, true, false},
		{"both bad", dated(9), dated(9), -1, true, false},
		{"not yet mirrored", first(5), none, 0, false, false},
		{"first copy lost", none, mirror(5), 1, false, false},
		{"at rest", first(5), mirror(5), 0, false, true},
		{"at rest", mirror(5), first(5), 1, false, true},
		{"mirror lost", first(5), mirror(3), 0, false, false},
		{"mirror lost", mirror(3), first(5), 1, false, false},
		{"torn", first(5), bad, 0, false, false},
		{"torn", bad, first(5), 1, false, false},
		{"mirror torn", first(5), dated(5), 0, false, false},
		{"torn before its header", first(5), dated(4), 0, false, false},
		{"last commit torn", first(5), dated(9), 0, false, false},
		{"was durable, now bad", first(5), dated(7), 0, true, false},
		{"was durable, now bad", dated(7), first(5), 1, true, false},
		{"was durable, now bad, older is a mirror", mirror(5), dated(7), 0, true, false},
		{"first copy bad, mirror good", bad, mirror(5), 1, false, false},
	}
	for _, test := range tests {
		v := decide([2]copyState{test.first, test.second}, 9)
		if v.valid != test.valid || v.damaged != test.damaged || v.settled != test.settled {
			t.Errorf("%s: %+v", test.name, v)
		}
		// The next commit spares what is believed, unless it is not believed any more.
		if v.valid >= 0 && (int(v.next) == v.valid) != v.damaged || v.valid < 0 && v.next != 0 {
			t.Errorf("%s: next commit writes slot %d: %+v", test.name, v.next, v)
		}
	}
}

// What is no usable metadata file: a clear error, and nothing is changed.
func TestUnusableFiles(t *testing.T) {
	path := create(t, testSuper(1<<30))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(b []byte) []byte) []byte { return change(slices.Clone(good)) }
	each := func(f func(p []byte)) []byte {
		return with(func(b []byte) []byte {
			f(b[:pageSize])
			f(b[pageSize:pairSize])
			return b
		})
	}
	tests := []struct {
		name string
		data []byte
		want error
		says string
	}{
		{"empty", nil, ErrNotMeta, "0 bytes"},
		{"short text", []byte("hello"), ErrNotMeta, "is not a qrbd metadata file"},
		{"text", []byte(strings.Repeat("hello ", 5000)), ErrNotMeta, "is not a qrbd metadata file"},
		{"zeroes", make([]byte, 1<<20), ErrNotMeta, "is not a qrbd metadata file"},
		{"cut in the superblock", good[:5000], ErrDamaged, "5000 bytes"},
		{"cut behind the superblock", good[:pairSize], ErrDamaged, "8192 bytes"},
		{"a byte short", good[:len(good)-1], ErrDamaged, "truncated"},
		{"both superblocks flipped", each(func(p []byte) { p[200] ^= 4 }), ErrDamaged, "both copies"},
		{"newer version", each(func(p []byte) { binary.LittleEndian.PutUint16(p[8:], 2); resum(p, superSeed) }), ErrVersion, "2, this program knows 1"},
		{"other block size", each(func(p []byte) { p[atBlock+1] = 2; resum(p, superSeed) }), ErrDamaged, "blocks of 512"},
		{"too many peers", each(func(p []byte) { p[atPeers] = 16; resum(p, superSeed) }), ErrDamaged, "16 peers"},
		{"too much history", each(func(p []byte) { p[atHistory] = 33; resum(p, superSeed) }), ErrDamaged, "33 generations"},
		{"size too large", each(func(p []byte) { p[atSize+7] = 0x7f; resum(p, superSeed) }), ErrDamaged, "size"},
		{"size negative", each(func(p []byte) { p[atSize+7] = 0x80; resum(p, superSeed) }), ErrDamaged, "size"},
		{"name too long", each(func(p []byte) { p[atName] = 65; resum(p, superSeed) }), ErrDamaged, "name"},
		{"peer's name too long", each(func(p []byte) { p[atPeer0] = 65; resum(p, superSeed) }), ErrDamaged, "peer 0"},
		{"disk state", each(func(p []byte) { p[atDisk] = 9; resum(p, superSeed) }), ErrDamaged, "invalid(9)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, test.data, 0o600); err != nil {
				t.Fatal(err)
			}
			st, err := OpenStorage(path)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			_, _, err = Open(st)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v; want %v saying %q and the path", err, test.want, test.says)
			}
			if now, _ := os.ReadFile(path); !slices.Equal(now, test.data) {
				t.Error("the file was changed")
			}
		})
	}
	if _, err := OpenStorage(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
	if _, err := OpenStorage(filepath.Join(t.TempDir(), "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// A page of another file, or of another place, is never believed.
func TestForeignPages(t *testing.T) {
	m, size, _ := atRest(t)
	lay := newLayout(crashSize)
	from, to := lay.pair(pageID{kindBitmap, 0, 1})*2, lay.pair(pageID{kindBitmap, 1, 1})*2
	whole := m
	m = maps.Clone(m)
	m[from], m[from+1] = m[to], m[to+1]
	neighbour := maps.Clone(whole)
	to = lay.pair(pageID{kindBitmap, 0, 0}) * 2
	neighbour[from], neighbour[from+1] = whole[to], whole[to+1]
	other := testSuper(crashSize)
	start, _, _ := Format(&other, 0xbeef) // another file's id, same everything
	moved := maps.Clone(m)
	moved.write(write{0, start[:pageSize]}, nil)
	moved.write(write{pageSize, start[pageSize:]}, nil)
	for name, test := range map[string]struct {
		m       image
		damaged int
	}{"of another peer": {m, 1}, "of another index": {neighbour, 1}, "other file": {moved, 5}} {
		s, err := Recover(test.m, size)
		if err != nil || len(s.Damaged) != test.damaged {
			t.Errorf("%s: damaged %v, error %v", name, s.Damaged, err)
		}
	}
}

// Lists of names stay short.
func TestNamesAreBounded(t *testing.T) {
	var names []string
	for n := 1; n <= 1000; n++ {
		names = appendName(names, n, pageID{kind: kindBitmap, index: int64(n)})
	}
	if len(names) != namesMax || names[namesMax-1] != "and 937 more" {
		t.Errorf("%d names, last %q", len(names), names[len(names)-1])
	}
}

// A slot that cannot be read is a bad one.
func TestUnreadableSlot(t *testing.T) {
	m, size, want := atRest(t)
	for slot := range m {
		s, err := Recover(unreadable{m, slot * pageSize}, size)
		if err != nil || len(s.Torn) != 1 || s.Damaged != nil {
			t.Fatalf("slot %d: %v", slot, err)
		}
		if err := contentsOf(s).between(want, want); err != nil {
			t.Error(err)
		}
	}
}

// unreadable is an image with one bad slot. It is not Sparse.
type unreadable struct {
	m   image
	bad int64
}

func (u unreadable) ReadAt(p []byte, off int64) (int, error) {
	if off < u.bad+pageSize && u.bad < off+int64(len(p)) {
		return 0, errDisk
	}
	return u.m.ReadAt(p, off)
}
