package meta

import (
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

var update = flag.Bool("update", false, "write the golden files")

// dump shows a page as its lines of 16 bytes that are not zero.
func dump(p []byte) string {
	var b strings.Builder
	for i := 0; i < len(p); i += 16 {
		if line := p[i : i+16]; !isZero(line) {
			fmt.Fprintf(&b, "%04d  %s\n", i, hex.EncodeToString(line))
		}
	}
	return b.String()
}

// The bytes of every page kind. A change of these files is a change of the format
// and needs a new version.
func TestGolden(t *testing.T) {
	const file = 0x0123456789abcdef
	super := testSuper(10<<30 + 512)
	page := func(id pageID, seq uint64, mirror bool, content []byte) []byte {
		p := make([]byte, pageSize)
		if content == nil {
			super.encode(p)
		} else {
			copy(p[headerBytes:], content)
		}
		seal(p, id, file, seq, mirror)
		return p
	}
	for name, p := range map[string][]byte{
		"super":        page(pageID{kind: kindSuper}, 1, false, nil),
		"super-mirror": page(pageID{kind: kindSuper}, 1, true, nil),
		"activity":     page(pageID{kind: kindActivity, index: 8}, 0x0203040506070809, false, pageOf(0, 9, 31743)),
		"bitmap":       page(pageID{kind: kindBitmap, slot: 14, index: 8456}, 3, true, pageOf(1, 31743)),
	} {
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, []byte(dump(p)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(p); got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

// The places of docs/ONDISK.md, by another formula than layout's.
func TestLayout(t *testing.T) {
	for _, size := range []int64{1, 124 << 20, 10 << 30, 124 << 30, 124<<30 + 1, 1 << 40, SizeMax} {
		lay := newLayout(size)
		seen := map[int64]pageID{0: {kind: kindSuper}}
		add := func(id pageID, want int64) {
			pair := lay.pair(id)
			if old, twice := seen[pair]; twice || pair != want || pair >= lay.pairs {
				t.Fatalf("size %d: %v is at pair %d, want %d; also %v", size, id, pair, want, old)
			}
			seen[pair] = id
			if back, ok := lay.page(pair); !ok || back != id {
				t.Fatalf("size %d: pair %d is %v, want %v", size, pair, back, id)
			}
		}
		step := max(1, lay.bitmap/1000)
		for i := range lay.activity {
			add(pageID{kindActivity, 0, i}, 8+15361*i)
		}
		for p := int64(0); p < lay.bitmap; p += step {
			for s := range peersMax {
				add(pageID{kindBitmap, s, p}, 8+15361*(p/1024)+1+(p%1024/8*15+int64(s))*8+p%8)
			}
		}
		last := lay.pair(pageID{kindBitmap, peersMax - 1, (lay.bitmap - 1) / 8 * 8})
		if lay.pairs != last+8 {
			t.Errorf("size %d: %d pairs, last run starts at %d", size, lay.pairs, last)
		}
		if step == 1 {
			for pair := range lay.pairs {
				if id, ok := lay.page(pair); ok != (seen[pair] != pageID{}) {
					t.Errorf("size %d: pair %d is %v, %v", size, pair, id, ok)
				}
			}
		}
	}
	if got := newLayout(1 << 40).bytes(); got != 8192*(8+9+15*8464) {
		t.Errorf("1 TiB: %d bytes", got)
	}
}

func TestSuperRoundTrip(t *testing.T) {
	full := testSuper(SizeMax)
	full.Node, full.Name = strings.Repeat("n", 64), strings.Repeat("v", 64)
	full.History, full.Peers, full.Lost = nil, nil, 1<<63+99
	for i := range historyMax {
		full.History = append(full.History, 1<<63+protocol.Generation(i))
	}
	for i := range peersMax {
		full.Peers = append(full.Peers, PeerSlot{strings.Repeat("p", 50+i), protocol.Generation(i), protocol.Disk(i % 7), 1 << i, int64(i) << 50, 1<<63 - 1 - int64(i)})
	}
	for _, want := range []Super{full, {Size: 1}, testSuper(4096)} {
		p := make([]byte, pageSize)
		for i := range p {
			p[i] = 0xee // encode leaves nothing of what was there
		}
		want.encode(p)
		got, err := decodeSuper(p)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}

// FuzzRecover patches slots of a good image and repairs their checksums or not.
// Recover must not panic, must not change the image, and what it says must be
// open to a commit. Input: (slot, flags, offset, offset, length, bytes...)*.
func FuzzRecover(f *testing.F) {
	f.Add([]byte{0, 1, 0, 144, 1, 7})
	f.Add([]byte{0, 2, 0, 8, 2, 2, 0})
	f.Add([]byte{16, 3, 0, 24, 1, 99, 17, 3, 0, 24, 1, 99})
	f.Add([]byte{18, 0, 1, 0, 3, 1, 2, 3, 200, 4, 0, 0, 0})
	base := newDisk(f, testSuper(crashSize))
	file, _, err := Open(base)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range script(rand.New(rand.NewPCG(1, 2))) {
		if err := file.Commit(b); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, patches []byte) {
		size := base.size
		m := image{}
		for slot, data := range base.cache {
			m[slot] = data
		}
		for len(patches) >= 5 {
			slot, flags := int64(patches[0]), patches[1]
			off := (int(patches[2])<<8 | int(patches[3])) % pageSize
			n := min(int(patches[4]), len(patches)-5, pageSize-off)
			data := patches[5 : 5+n]
			patches = patches[5+n:]
			m = m.flip(slot, 0).flip(slot, 0) // a slot of our own
			copy(m[slot][off:], data)
			if flags&1 != 0 {
				seed := uint64(0xfeedface)
				if slot < 2 {
					seed = superSeed
				}
				resum(m[slot][:], seed)
			}
			if flags&2 != 0 {
				m[slot^1] = m[slot]
			}
			if flags&4 != 0 {
				size = int64(slot) * 1000
			}
		}
		s, err := Recover(m, size)
		if err != nil {
			return
		}
		d := diskOf(m, size)
		f, again, err := Open(d)
		if err != nil {
			t.Fatalf("Recover succeeds, Open does not: %v", err)
		}
		want := contentsOf(s)
		if err := contentsOf(again).between(want, want); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(&Batch{Super: &s.Super, Activity: []bitmap.ActivityPage{{Data: pageOf(1)}}}); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		last, err := Recover(d.durable, size)
		if err != nil || last.Damaged != nil || last.Torn != nil {
			t.Fatalf("after a commit: %v, damaged %v, torn %v", err, last.Damaged, last.Torn)
		}
		if err := contentsOf(last).between(want.apply(&Batch{Activity: []bitmap.ActivityPage{{Data: pageOf(1)}}}), want.apply(&Batch{Activity: []bitmap.ActivityPage{{Data: pageOf(1)}}})); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRecoverBytes takes the input for the file as it is.
func FuzzRecoverBytes(f *testing.F) {
	super := testSuper(1 << 20)
	start, _, _ := Format(&super, 1)
	f.Add(start)
	f.Add([]byte("QRBDMETA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		Recover(strings.NewReader(string(b)), int64(len(b)))
		Recover(strings.NewReader(string(b)), newLayout(1<<20).bytes())
	})
}

func BenchmarkOpenEmpty1TiB(b *testing.B) { benchmarkOpen(b, 0) }

// One peer's bitmap with bits in every word.
func BenchmarkOpenFull1TiB(b *testing.B) { benchmarkOpen(b, newLayout(1<<40).bitmap) }

func benchmarkOpen(b *testing.B, pages int64) {
	path := filepath.Join(b.TempDir(), "meta")
	if err := Create(path, testSuper(1<<40), false); err != nil {
		b.Fatal(err)
	}
	open := func() (*File, *State) {
		st, err := OpenStorage(path)
		if err != nil {
			b.Fatal(err)
		}
		f, s, err := Open(st)
		if err != nil {
			b.Fatal(err)
		}
		return f, s
	}
	f, _ := open()
	content := pageOf()
	for i := 0; i < len(content); i += 8 {
		content[i] = 0x55
	}
	last := newLayout(1 << 40).bits(pageID{kindBitmap, 0, max(pages-1, 0)})
	batch := &Batch{}
	for p := range pages {
		if p == pages-1 {
			content = append([]byte(nil), content...)
			clear(content[last/8:])
		}
		batch.Bitmap = append(batch.Bitmap, BitmapPage{0, p, content})
	}
	if err := f.Commit(batch); err != nil {
		b.Fatal(err)
	}
	f.Close()
	b.ReportAllocs()
	for b.Loop() {
		f, s := open()
		if (s.Bitmaps[0].Count() > 0) != (pages > 0) {
			b.Fatal("wrong count")
		}
		f.Close()
	}
}

// A commit as it happens when an extent is first written, on a real file.
func BenchmarkCommitActivity(b *testing.B) {
	path := filepath.Join(b.TempDir(), "meta")
	if err := Create(path, testSuper(1<<40), false); err != nil {
		b.Fatal(err)
	}
	st, err := OpenStorage(path)
	if err != nil {
		b.Fatal(err)
	}
	f, _, err := Open(st)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	batch := &Batch{Activity: []bitmap.ActivityPage{{Index: 3, Data: pageOf(7)}}}
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Commit(batch); err != nil {
			b.Fatal(err)
		}
	}
}
