package blockdevtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
)

// MinSize is the least size, in bytes, of a device that Run can test.
const MinSize = 1 << 20

// Run tests devices made by open: fresh, reading as zeroes everywhere, of
// MinSize to a few dozen MiB. The suite closes them.
func Run(t *testing.T, open func(t *testing.T) blockdev.Device) {
	tests := []struct {
		name string
		test func(t *testing.T, dev blockdev.Device)
	}{
		{"fresh reads zero", testFresh},
		{"ranges", testRanges},
		{"zero length", testZeroLength},
		{"write and read, unaligned", testWriteRead},
		{"caller keeps its slice", testSliceOwnership},
		{"flags", testFlags},
		{"zero and trim, edges", testClearEdges},
		{"fast zero changes all or nothing", testFastZero},
		{"extents", testExtents},
		{"extents limit", testExtentsLimit},
		{"extents while others write", testExtentsConcurrent},
		{"random operations", testRandom},
		{"disjoint writers", testDisjointWriters},
		{"overlapping writers", testOverlappingWriters},
		{"closed", testClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dev := open(t)
			if dev.Size() < MinSize {
				t.Fatalf("device of %d bytes, the suite needs %d", dev.Size(), MinSize)
			}
			t.Cleanup(func() { dev.Close() })
			tt.test(t, dev)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dev blockdev.Device, off, n int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xEE}, int(n))
	must(t, dev.ReadAt(p, off))
	return p
}

// expect fails unless the device reads as want from off.
func expect(t *testing.T, dev blockdev.Device, off int64, want []byte) {
	t.Helper()
	got := read(t, dev, off, int64(len(want)))
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d (%d of the read at %d): %#x, want %#x", off+int64(i), i, off, got[i], want[i])
		}
	}
}

// pattern returns n bytes that depend on seed, none of them zero.
func pattern(seed uint64, n int64) []byte {
	r := rand.NewPCG(seed, 1)
	p := make([]byte, n+7)
	for i := int64(0); i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64()|0x0101010101010101)
	}
	return p[:n]
}

func testFresh(t *testing.T, dev blockdev.Device) {
	expect(t, dev, 0, make([]byte, dev.Size()))
}

func testRanges(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	full := pattern(1, size)
	must(t, dev.WriteAt(full, 0, 0))
	bad := []struct{ off, n int64 }{
		{-1, 1}, {-1, 0}, {size, 1}, {size - 1, 2}, {size + 1, 0}, {size + 1, 1}, {0, size + 1},
		{math.MinInt64, 1}, {math.MaxInt64, 1}, {math.MaxInt64 - 1, 4096}, {512, math.MaxInt64},
		{math.MaxInt64, math.MaxInt64}, {0, -1}, {4096, math.MinInt64},
	}
	for _, b := range bad {
		calls := map[string]func() error{
			"Zero":        func() error { return dev.Zero(b.off, b.n, 0) },
			"Zero NoHole": func() error { return dev.Zero(b.off, b.n, blockdev.NoHole|blockdev.FUA) },
			"Trim":        func() error { return dev.Trim(b.off, b.n, 0) },
			"Extents":     func() error { _, err := dev.Extents(b.off, b.n, 1); return err },
		}
		if b.n >= 0 && b.n <= size+1 {
			p := make([]byte, b.n)
			calls["ReadAt"] = func() error { return dev.ReadAt(p, b.off) }
			calls["WriteAt"] = func() error { return dev.WriteAt(p, b.off, 0) }
			calls["WriteAt FUA"] = func() error { return dev.WriteAt(p, b.off, blockdev.FUA) }
		}
		for name, call := range calls {
			if err := call(); !errors.Is(err, blockdev.ErrRange) {
				t.Errorf("%s of %d bytes at %d of %d: %v, want ErrRange", name, b.n, b.off, size, err)
			}
		}
	}
	expect(t, dev, 0, full)
}

func testZeroLength(t *testing.T, dev blockdev.Device) {
	data := pattern(2, 8192)
	must(t, dev.WriteAt(data, 0, 0))
	for _, off := range []int64{0, 1, 4096, dev.Size()} {
		must(t, dev.ReadAt(nil, off))
		must(t, dev.WriteAt(nil, off, 0))
		must(t, dev.WriteAt([]byte{}, off, blockdev.FUA))
		must(t, dev.Zero(off, 0, 0))
		must(t, dev.Zero(off, 0, blockdev.NoHole|blockdev.FastZero|blockdev.FUA))
		must(t, dev.Trim(off, 0, blockdev.FUA))
		list, err := dev.Extents(off, 0, 1)
		must(t, err)
		if len(list) != 0 {
			t.Errorf("extents of nothing at %d: %v", off, list)
		}
	}
	expect(t, dev, 0, data)
}

// edges are ranges whose ends fall on, just before and just after the
// boundaries that stores care about.
func edges(size int64) [][2]int64 {
	var list [][2]int64
	for _, off := range []int64{0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 131072 + 100} {
		for _, n := range []int64{1, 511, 512, 513, 1000, 4095, 4096, 4097, 8192, 12289, 65536, 200001} {
			list = append(list, [2]int64{off, n})
		}
	}
	return append(list, [2]int64{0, size}, [2]int64{size - 1, 1}, [2]int64{size - 5000, 5000}, [2]int64{1, size - 1})
}

func testWriteRead(t *testing.T, dev blockdev.Device) {
	model := make([]byte, dev.Size())
	for i, e := range edges(dev.Size()) {
		p := pattern(uint64(i), e[1])
		must(t, dev.WriteAt(p, e[0], 0))
		copy(model[e[0]:], p)
		lo, hi := max(e[0]-600, 0), min(e[0]+e[1]+600, dev.Size())
		expect(t, dev, lo, model[lo:hi])
	}
	expect(t, dev, 0, model)
}

func testSliceOwnership(t *testing.T, dev blockdev.Device) {
	for _, flags := range []blockdev.Flags{0, blockdev.FUA} {
		p := pattern(3, 10000)
		want := bytes.Clone(p)
		must(t, dev.WriteAt(p, 777, flags))
		if !bytes.Equal(p, want) {
			t.Fatal("WriteAt changed the caller's slice")
		}
		clear(p) // ours again: must not reach the device
		expect(t, dev, 777, want)
		must(t, dev.Flush())
		expect(t, dev, 777, want)
		q := read(t, dev, 777, 10000)
		clear(q) // nor may what was read
		expect(t, dev, 777, want)
	}
}

func testFlags(t *testing.T, dev blockdev.Device) {
	zero := make([]byte, 20000)
	for _, flags := range []blockdev.Flags{0, blockdev.FUA, blockdev.NoHole, blockdev.NoHole | blockdev.FUA} {
		data := pattern(uint64(flags), 20000)
		must(t, dev.WriteAt(data, 100, flags&blockdev.FUA))
		expect(t, dev, 100, data)
		must(t, dev.Zero(100, 20000, flags))
		expect(t, dev, 100, zero)
		must(t, dev.WriteAt(data, 100, 0))
		must(t, dev.Trim(100, 20000, flags&blockdev.FUA))
		expect(t, dev, 100, zero)
		must(t, dev.WriteAt(data, 100, blockdev.FUA))
		expect(t, dev, 100, data)
		must(t, dev.Flush())
	}
}

func testClearEdges(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	calls := []struct {
		name string
		call func(off, n int64) error
	}{
		{"zero", func(off, n int64) error { return dev.Zero(off, n, 0) }},
		{"zero no hole", func(off, n int64) error { return dev.Zero(off, n, blockdev.NoHole) }},
		{"trim", func(off, n int64) error { return dev.Trim(off, n, 0) }},
	}
	for i, c := range calls {
		model := pattern(uint64(100+i), size)
		must(t, dev.WriteAt(model, 0, 0))
		for _, e := range edges(size) {
			if e[1] > size/2 {
				continue
			}
			must(t, c.call(e[0], e[1]))
			clear(model[e[0] : e[0]+e[1]])
			lo, hi := max(e[0]-600, 0), min(e[0]+e[1]+600, size)
			expect(t, dev, lo, model[lo:hi])
			back := pattern(uint64(e[0]^e[1]), e[1])
			must(t, dev.WriteAt(back, e[0], 0))
			copy(model[e[0]:], back)
		}
		expect(t, dev, 0, model)
		must(t, c.call(0, size))
		expect(t, dev, 0, make([]byte, size))
	}
}

func testFastZero(t *testing.T, dev blockdev.Device) {
	for _, flags := range []blockdev.Flags{blockdev.FastZero, blockdev.FastZero | blockdev.NoHole} {
		data := pattern(9, 100000)
		must(t, dev.WriteAt(data, 1000, 0))
		err := dev.Zero(1000, 100000, flags)
		switch {
		case err == nil:
			clear(data)
		case !errors.Is(err, blockdev.ErrNotFast):
			t.Fatalf("flags %d: %v, want nil or ErrNotFast", flags, err)
		}
		expect(t, dev, 1000, data)
	}
}

func testClosed(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	must(t, dev.Close())
	p := make([]byte, 512)
	calls := map[string]func() error{
		"ReadAt":  func() error { return dev.ReadAt(p, 0) },
		"WriteAt": func() error { return dev.WriteAt(p, 0, 0) },
		"FUA":     func() error { return dev.WriteAt(p, 0, blockdev.FUA) },
		"Zero":    func() error { return dev.Zero(0, 512, 0) },
		"Trim":    func() error { return dev.Trim(0, 512, 0) },
		"Flush":   dev.Flush,
		"Extents": func() error { _, err := dev.Extents(0, 512, 1); return err },
		"Close":   dev.Close,
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, blockdev.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
	if dev.Size() != size {
		t.Errorf("size after Close: %d, want %d", dev.Size(), size)
	}
}

// writers is how many goroutines the concurrent tests use.
const writers = 8

func testDisjointWriters(t *testing.T, dev blockdev.Device) {
	part := dev.Size() / writers
	model := make([]byte, dev.Size())
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			base := int64(w) * part
			mine := model[base : base+part]
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for i := range 60 {
				off := r.Int64N(part)
				n := min(1+r.Int64N(20000), part-off)
				var err error
				switch r.IntN(10) {
				case 0:
					err = dev.Zero(base+off, n, blockdev.NoHole)
					clear(mine[off : off+n])
				case 1:
					err = dev.Trim(base+off, n, 0)
					clear(mine[off : off+n])
				case 2:
					err = dev.Flush()
				case 3:
					p := make([]byte, n)
					if err = dev.ReadAt(p, base+off); err == nil && !bytes.Equal(p, mine[off:off+n]) {
						t.Errorf("writer %d does not read what it wrote at %d", w, base+off)
					}
				default:
					p := pattern(uint64(w*1000+i), n)
					err = dev.WriteAt(p, base+off, blockdev.Flags(r.IntN(2)))
					copy(mine[off:], p)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if !t.Failed() {
		expect(t, dev, 0, model)
	}
}

// testOverlappingWriters: every sector holds one write's bytes, whole.
func testOverlappingWriters(t *testing.T, dev blockdev.Device) {
	const sectors = 64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(8, uint64(w)))
			for i := range 100 {
				first := r.Int64N(sectors)
				n := 1 + r.Int64N(sectors-first)
				p := bytes.Repeat([]byte{byte(1 + w*16 + i%16)}, int(n)*blockdev.SectorSize)
				off := first * blockdev.SectorSize
				var err error
				switch i % 8 {
				case 0:
					err = dev.Zero(off, int64(len(p)), 0)
				case 1:
					err = dev.WriteAt(p, off, blockdev.FUA)
				default:
					err = dev.WriteAt(p, off, 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got := read(t, dev, 0, sectors*blockdev.SectorSize)
	for s := range sectors {
		sector := got[s*blockdev.SectorSize:][:blockdev.SectorSize]
		if bytes.Count(sector, sector[:1]) != len(sector) {
			t.Fatalf("sector %d is mixed from several writes", s)
		}
	}
}
