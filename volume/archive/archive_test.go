package archive

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

var update = flag.Bool("update", false, "write the golden files")

func ext(off, n int64) blockdev.Extent { return blockdev.Extent{Off: off, Len: n} }

// mustOpen opens a shelf of whose archives the metadata vouch for the newest.
func mustOpen(t testing.TB, s Shelf, base Base) *Dir {
	t.Helper()
	o := testOptions(s)
	names, err := s.Names()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if len(names) > 0 {
		st, err := s.Open(names[len(names)-1])
		if err != nil {
			t.Fatal(err)
		}
		f, err := open(st, false)
		if err != nil {
			t.Fatal(err)
		}
		o.Vouched = f.head.File
	}
	d, err := OpenDir(o, base)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func begun(t testing.TB, s Shelf, base Base) *Dir {
	t.Helper()
	d := mustOpen(t, s, base)
	if err := d.Begin(testStart()); err != nil {
		t.Fatal(err)
	}
	return d
}

func viewOf(t testing.TB, d *Dir, base Base) *View {
	t.Helper()
	list, err := d.List()
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	f, err := d.Look(list[len(list)-1].Name)
	if err != nil {
		t.Fatal(err)
	}
	return NewView(f, base)
}

// overwrite keeps and overwrites a random range in one of the ways there are.
func overwrite(t testing.TB, d *Dir, st *store, rnd *rand.Rand) {
	t.Helper()
	off := rnd.Int64N(testSize / sectorSize)
	n := (1 + rnd.Int64N(min(64, testSize/sectorSize-off))) * sectorSize
	off *= sectorSize
	zero := rnd.IntN(3) == 0
	if err := d.Keep(blockdev.Extent{Off: off, Len: n, Zero: zero}); err != nil {
		t.Fatal(err)
	}
	if zero {
		if err := st.Trim(off, n, 0); err != nil {
			t.Fatal(err)
		}
		return
	}
	st.fill(t, rnd, off, n)
}

// Whatever is overwritten after Keep, the view stays the volume as it was.
func TestViewIsTheLostSide(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		st, sh := newStore(t), newShelf()
		for range rnd.IntN(20) {
			off := rnd.Int64N(testSize - 3*blockSize)
			st.fill(t, rnd, off, 1+rnd.Int64N(3*blockSize))
		}
		want := st.image(t)
		d := begun(t, sh, st)
		v := viewOf(t, d, st)
		for i := range 60 {
			overwrite(t, d, st, rnd)
			if i == 30 {
				if err := d.Complete(11); err != nil {
					t.Fatal(err)
				}
			}
			if i%15 == 0 && !bytes.Equal(imageOf(t, v), want) {
				t.Fatalf("seed %d: after %d writes the view is not the lost side", seed, i+1)
			}
		}
		if !bytes.Equal(imageOf(t, v), want) {
			t.Fatalf("seed %d: the view is not the lost side", seed)
		}
		checkExtents(t, v, want)
		again := mustOpen(t, sh, st)
		if !bytes.Equal(imageOf(t, viewOf(t, again, st)), want) {
			t.Fatalf("seed %d: the view is not the lost side after it was opened again", seed)
		}
	}
}

func checkExtents(t *testing.T, v *View, image []byte) {
	t.Helper()
	for off := int64(0); off < testSize; {
		exts, err := v.Extents(off, testSize-off, 3)
		if err != nil || len(exts) == 0 {
			t.Fatal(exts, err)
		}
		for _, e := range exts {
			if e.Off != off || e.Len <= 0 {
				t.Fatalf("extents %v from %d", exts, off)
			}
			if e.Zero && len(bytes.Trim(image[e.Off:e.End()], "\x00")) > 0 {
				t.Fatalf("%v is not zero", e)
			}
			off += e.Len
		}
	}
}

// At any cut of the power the archive has everything that a Keep covered, and goes on.
func TestPowerCuts(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		st, sh := newStore(t), newShelf()
		st.fill(t, rnd, 0, testSize/2)
		want := st.image(t)
		d := begun(t, sh, st)
		for range 6 {
			for range rnd.IntN(8) {
				overwrite(t, d, st, rnd)
			}
			// Kept, and neither synced nor overwritten: it may be torn.
			f := d.live.Load()
			if _, err := f.append([]blockdev.Extent{ext(rnd.Int64N(testSize/2), 40*blockSize)}, st); err != nil {
				t.Fatal(err)
			}
			for name, m := range sh.files {
				sh.files[name] = m.cut(rnd)
			}
			d = mustOpen(t, sh, st)
			if d.live.Load() == nil {
				list, _ := d.List()
				t.Fatalf("seed %d: no archive goes on: %+v", seed, list)
			}
			s := testStart()
			s.Resumed = true
			if err := d.Begin(s); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(imageOf(t, viewOf(t, d, st)), want) {
				t.Fatalf("seed %d: the view is not the lost side after a power cut", seed)
			}
		}
	}
}

// Every length that a file can be cut to while it is appended to.
func TestEveryCut(t *testing.T) {
	st, sh := newStore(t), newShelf()
	rnd := rand.New(rand.NewPCG(1, 3))
	st.fill(t, rnd, 0, 8*blockSize)
	d := begun(t, sh, st)
	for i := range int64(3) {
		if err := d.Keep(ext(2*i*blockSize, 2*blockSize)); err != nil {
			t.Fatal(err)
		}
	}
	var m *memFile
	for _, f := range sh.files {
		m = f
	}
	const seg = sectorSize + 2*blockSize
	last := int64(dataAt + 2*seg)
	for n := last; n < int64(len(m.data)); n += 64 {
		f, err := open(&memFile{data: slices.Clone(m.data[:n])}, true)
		if err != nil {
			t.Fatal(n, err)
		}
		if f.damage != nil || f.idx.count != 4 || f.end != last {
			t.Fatalf("cut to %d: %d blocks, end %d, damage %v", n, f.idx.count, f.end, f.damage)
		}
	}
	// Before that, the third segment says that the second was durable: damage, if the
	// third is there; a file that ends early cannot be told from one that was never longer.
	for _, at := range []int64{dataAt + 3, dataAt + 50, dataAt + seg + 8, dataAt + seg + 60} {
		b := slices.Clone(m.data)
		b[at] ^= 4
		f, err := open(&memFile{data: b}, true)
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(f.damage, ErrDamaged) {
			t.Errorf("byte %d changed: damage is %v, %d blocks", at, f.damage, f.idx.count)
		}
	}
	// A changed block of a durable segment is found when it is read.
	b := slices.Clone(m.data)
	b[dataAt+sectorSize+100] ^= 1
	f, err := open(&memFile{data: b}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := NewView(f, st).ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("reading a changed block: %v", err)
	}
	for _, at := range []int64{3, 70, headerBytes - 1} {
		b := slices.Clone(m.data)
		b[at] ^= 1
		if _, err := open(&memFile{data: b}, true); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotArchive) {
			t.Errorf("byte %d of the header changed: %v", at, err)
		}
	}
}

func TestNoRoom(t *testing.T) {
	st, sh := newStore(t), newShelf()
	st.fill(t, rand.New(rand.NewPCG(1, 1)), 0, 100*blockSize)
	sh.free = 1<<20 + 50*blockSize
	d := mustOpen(t, sh, st)
	var room *RoomError
	if err := d.Begin(testStart()); !errors.As(err, &room) || room.Need <= 1<<20+100*blockSize || room.Free != sh.free {
		t.Fatalf("beginning without room: %v", err)
	}
	if d.Live() || len(sh.files) != 0 {
		t.Fatal("something was begun")
	}
	// Less is overwritten, and fits.
	s := testStart()
	s.Blocks = 20
	if err := d.Begin(s); err != nil {
		t.Fatal(err)
	}
	sh.free = 1 << 20
	if err := d.Keep(ext(0, blockSize)); !errors.As(err, &room) {
		t.Fatalf("keeping without room: %v", err)
	}
	sh.free = 1 << 30
	if err := d.Keep(ext(0, blockSize)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := d.Complete(11); err != nil {
		t.Fatal(err)
	}
	sh.free = 0
	if err := d.Keep(ext(blockSize, blockSize)); err != nil {
		t.Fatalf("an archive that follows stops nobody: %v", err)
	}
	if list, err := d.List(); err != nil || len(list) != 1 || list[0].Phase != Sealed || list[0].Exact() || !strings.Contains(list[0].Why, "free") {
		t.Fatalf("it is sealed instead: %+v, %v", list, err)
	}
}

func TestLimit(t *testing.T) {
	st, sh := newStore(t), newShelf()
	st.fill(t, rand.New(rand.NewPCG(1, 1)), 0, testSize)
	d := begun(t, sh, st)
	d.live.Load().limit = 10 * blockSize
	if err := d.Complete(11); err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for ; d.Live(); n++ {
		if err := d.Keep(ext(n*blockSize, blockSize)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := d.List()
	if err != nil || n < 9 || n > 11 || list[0].Phase != Sealed || list[0].Blocks != n-1 || list[0].Why != ErrLimit.Error() {
		t.Fatalf("after %d blocks: %+v, %v", n, list, err)
	}
}

// After an error nothing is taken until the archive was opened anew, by the sync
// that goes on.
func TestFailureIsSticky(t *testing.T) {
	for name, break_ := range map[string]func(*memFile){
		"sync":  func(m *memFile) { m.failSync = errTest },
		"write": func(m *memFile) { m.failAt = int64(len(m.data)) + 700 },
	} {
		t.Run(name, func(t *testing.T) {
			st, sh := newStore(t), newShelf()
			rnd := rand.New(rand.NewPCG(1, 1))
			st.fill(t, rnd, 0, testSize)
			want := st.image(t)
			d := begun(t, sh, st)
			if err := d.Keep(ext(0, blockSize)); err != nil {
				t.Fatal(err)
			}
			var m *memFile
			for _, f := range sh.files {
				m = f
			}
			break_(m)
			for range 2 {
				if err := d.Keep(ext(blockSize, blockSize)); !errors.Is(err, ErrFailed) {
					t.Fatalf("keeping: %v", err)
				}
			}
			m.failSync, m.failAt = nil, 0
			if err := d.Keep(ext(blockSize, blockSize)); !errors.Is(err, ErrFailed) {
				t.Fatalf("keeping in a file that has failed: %v", err)
			}
			s := testStart()
			s.Resumed = true
			if err := d.Begin(s); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				overwrite(t, d, st, rnd)
			}
			if !bytes.Equal(imageOf(t, viewOf(t, d, st)), want) {
				t.Fatal("the view is not the lost side")
			}
		})
	}
}

// What is given up is overwritten to the last block, and the archive cannot say so:
// it holds nobody up from then on, does not count as exact, and is sealed as soon as
// the disk takes that.
func TestCompleteFails(t *testing.T) {
	for _, limit := range []int64{0, 1 << 20} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			st, sh := newStore(t), newShelf()
			rnd := rand.New(rand.NewPCG(1, 1))
			st.fill(t, rnd, 0, testSize)
			d := begun(t, sh, st)
			d.opt.Limit = limit
			overwrite(t, d, st, rnd)
			for _, f := range sh.files {
				f.failSync = errTest
			}
			if err := d.Complete(11); !errors.Is(err, ErrFailed) || d.Lost() != 0 {
				t.Fatalf("completing: %v, generation %v is still collected", err, d.Lost())
			}
			for range 2 { // nothing is overwritten before the metadata disown it
				var u *UnsealedError
				if err := d.Keep(ext(0, blockSize)); !errors.As(err, &u) || u.ID != d.ID() {
					t.Fatalf("neither kept nor sealed: %v", err)
				}
			}
			if list, err := d.List(); err != nil || len(list) != 1 || list[0].Exact() {
				t.Fatalf("an archive that has failed: %+v, %v", list, err)
			}
			for _, f := range sh.files {
				f.failSync = nil
			}
			if err := d.Keep(ext(0, blockSize)); err != nil || d.Live() {
				t.Fatalf("it is not sealed: %v", err)
			}
			if list, err := d.List(); err != nil || len(list) != 1 || list[0].Phase != Sealed {
				t.Fatalf("sealed: %+v, %v", list, err)
			}
		})
	}
}

// An archive that could not be sealed when something was overwritten beside it is never
// exact again: not in this process, not when the disk is well again, and not after a
// power cut that leaves "following" on it.
func TestNeverExactUnvouched(t *testing.T) {
	st, sh := newStore(t), newShelf()
	rnd := rand.New(rand.NewPCG(1, 1))
	st.fill(t, rnd, 0, testSize)
	d := begun(t, sh, st)
	overwrite(t, d, st, rnd)
	if err := d.Complete(11); err != nil {
		t.Fatal(err)
	}
	id := d.ID()
	var m *memFile
	for _, f := range sh.files {
		m = f
	}
	check := func(when string, d *Dir) {
		t.Helper()
		list, err := d.List()
		if err != nil || len(list) != 1 || list[0].Exact() || list[0].Phase != Sealed || list[0].Why == "" || d.Live() {
			t.Fatalf("%s: %+v, %v, live %v", when, list, err, d.Live())
		}
		f, err := d.Look(list[0].Name)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if i := f.Info(); i.Exact() {
			t.Fatalf("%s: %+v", when, i)
		}
		f.Release()
	}
	m.failSync = errTest
	var u *UnsealedError
	if err := d.Keep(ext(299*blockSize, blockSize)); !errors.As(err, &u) || u.ID != id {
		t.Fatalf("keeping: %v", err)
	}
	if err := d.Abandon(id + 1); err != nil || d.ID() != id {
		t.Fatalf("another was abandoned: %v, %x", err, d.ID())
	}
	if err := d.Abandon(id); err != nil {
		t.Fatal(err)
	}
	st.fill(t, rnd, 299*blockSize, blockSize)
	check("abandoned", d)
	o := testOptions(sh) // vouches for none
	reopened := func() *Dir {
		t.Helper()
		d, err := OpenDir(o, st)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	check("opened on a broken disk", reopened())
	m.data, m.pending = slices.Clone(m.durable), nil
	check("after a power cut, on a broken disk", reopened())
	m.failSync = nil
	m.data, m.pending = slices.Clone(m.durable), nil
	check("on a disk that is well again", reopened())
	o.Vouched = id
	check("sealed once, and vouched for again", reopened())
}

func TestOnlyOneIsLive(t *testing.T) {
	st, sh := newStore(t), newShelf()
	rnd := rand.New(rand.NewPCG(1, 1))
	st.fill(t, rnd, 0, testSize)
	d := begun(t, sh, st)
	overwrite(t, d, st, rnd)
	name := d.live.Load().head.Name()
	if err := d.Remove(name); !errors.Is(err, ErrInUse) {
		t.Fatalf("removing what collects: %v", err)
	}
	if err := d.Complete(99); err != nil || d.Lost() != 11 {
		t.Fatal("another's end ended it", err)
	}
	if err := d.Complete(11); err != nil || d.Lost() != 0 || !d.Live() {
		t.Fatal(err)
	}
	s := testStart()
	s.Lost = 33
	if err := d.Begin(s); err != nil {
		t.Fatal(err)
	}
	list, err := d.List()
	if err != nil || len(list) != 2 || list[0].Phase != Sealed || list[1].Phase != Collecting {
		t.Fatalf("%+v, %v", list, err)
	}
	s = testStart()
	s.Resumed = true
	if err := d.Begin(s); !errors.Is(err, ErrMissing) {
		t.Fatalf("going on with another's archive: %v", err)
	}
	for _, id := range []string{"../x", "", "nothing"} {
		if _, err := d.Look(id); !errors.Is(err, ErrUnknown) {
			t.Errorf("looking at %q: %v", id, err)
		}
	}
	if err := d.Remove(list[0].Name); err != nil || len(sh.files) != 1 {
		t.Fatal(err)
	}
}

// Keepers, writers and readers side by side; the race detector looks on.
func TestConcurrent(t *testing.T) {
	st := blockdev.NewMemory(testSize)
	defer st.Close()
	rnd := rand.New(rand.NewPCG(7, 7))
	want := make([]byte, testSize)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	if err := st.WriteAt(want, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "crm")
	o := testOptions(Directory(dir))
	d, err := OpenDir(o, st)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Begin(testStart()); err != nil {
		t.Fatal(err)
	}
	f, err := d.Look(d.live.Load().head.Name())
	if err != nil {
		t.Fatal(err)
	}
	v := NewView(f, st)
	defer v.Close()
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() { // each has blocks of its own, and sectors of shared ones
			rnd := rand.New(rand.NewPCG(uint64(w), 9))
			for range 150 {
				off := rnd.Int64N(testSize/blockSize)*blockSize + w*sectorSize
				n := int64(sectorSize)
				if off+n > testSize {
					continue
				}
				if err := d.Keep(ext(off, n)); err != nil {
					t.Error(err)
					return
				}
				if err := st.WriteAt(make([]byte, n), off, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			got := make([]byte, testSize)
			for range 40 {
				if err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("a reader beside writers does not see the lost side (%v)", err)
					return
				}
			}
		})
	}
	wg.Wait()
	for path, mode := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Join(dir, f.head.Name()+suffix): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
}

func testHeader() Header {
	return Header{File: 0x0123456789abcdef, Time: time.Date(2026, 11, 22, 16, 56, 44, 7, time.UTC), Volume: "crm", Node: "alpha", Winner: "beta", Rule: "discard",
		Size: 10<<30 + 512, Full: true, ID: protocol.VolumeID{1, 2, 3}, Lost: 0x1111, Kept: 0x2222, Parent: 0x3333,
		History: []protocol.Generation{0x4444, 0x5555}, Disk: protocol.UpToDate}
}

// The bytes of every structure. A change of these files is a change of the format
// and needs a new version.
func TestGolden(t *testing.T) {
	h := testHeader()
	st := state{seq: 3, phase: Sealed, whole: true, end: 12345, from: 8192, synced: h.Time, sealed: h.Time.Add(time.Hour), why: "restored"}
	seg := segment{seq: 9, durable: 8192, entries: []entry{{block: 7, sum: digest(h.File, 7, bytes.Repeat([]byte{1}, blockSize))}, {block: 9, count: 256}}}
	for name, b := range map[string][]byte{"header": h.encode(), "state": st.encode(h.File), "segment": seg.appendHead(nil, h.File)} {
		var dump strings.Builder
		for i := 0; i < len(b); i += 16 {
			if line := b[i : i+16]; !bytes.Equal(line, make([]byte, 16)) {
				fmt.Fprintf(&dump, "%04d  %s\n", i, hex.EncodeToString(line))
			}
		}
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, []byte(dump.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if dump.String() != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, dump.String(), want)
		}
	}
	back, err := decodeHeader(h.encode())
	if err != nil || !reflect.DeepEqual(back, h) {
		t.Errorf("%+v, %v", back, err)
	}
	if s, ok := decodeState(st.encode(h.File), h.File); !ok || s != st {
		t.Errorf("%+v", s)
	}
	if s, ok := decodeSegment(seg.appendHead(nil, h.File), h.File, 1<<20); !ok || !reflect.DeepEqual(s, seg) {
		t.Errorf("%+v", s)
	}
	if h.Name() != "20261122-165644-cdef" {
		t.Error(h.Name())
	}
}

// Any file is refused or read; nothing is allocated beyond what it holds.
func FuzzScan(f *testing.F) {
	st, sh := newStore(f), newShelf()
	rnd := rand.New(rand.NewPCG(1, 1))
	st.fill(f, rnd, 0, 20*blockSize)
	d := begun(f, sh, st)
	for range 5 {
		overwrite(f, d, st, rnd)
	}
	for _, m := range sh.files {
		f.Add(m.data)
		f.Add(m.data[:len(m.data)-100])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := open(&memFile{data: b}, true)
		if err != nil {
			return
		}
		_ = file.Info()
		blocks := int64(0)
		err = file.Each(func(block int64, data []byte) error {
			if block < 0 || block >= blocksOf(file.head.Size) {
				t.Fatalf("block %d of %d", block, file.head.Size)
			}
			blocks++
			return nil
		})
		if err == nil && blocks != file.idx.count {
			t.Fatalf("%d blocks, %d counted", blocks, file.idx.count)
		}
	})
}
