package blockdevtest

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
)

// checkShape asks for [off, off+n) and checks the answer against the contract.
func checkShape(t *testing.T, dev blockdev.Device, off, n int64, limit int) []blockdev.Extent {
	t.Helper()
	list, err := dev.Extents(off, n, limit)
	must(t, err)
	if len(list) == 0 || len(list) > limit {
		t.Fatalf("extents of %d bytes at %d: %d of them, limit %d", n, off, len(list), limit)
	}
	pos := off
	for i, e := range list {
		if e.Off != pos || e.Len <= 0 || e.End() > off+n {
			t.Fatalf("extents of %d bytes at %d: number %d is %+v, expected to begin at %d", n, off, i, e, pos)
		}
		if i > 0 && e.Hole == list[i-1].Hole && e.Zero == list[i-1].Zero {
			t.Fatalf("extents %d and %d are of one kind: %v", i-1, i, list)
		}
		if e.Hole && !e.Zero {
			t.Fatalf("extent %+v is a hole that is not zero", e)
		}
		pos = e.End()
	}
	return list
}

// checkExtents is checkShape, and compares with what the device reads as.
func checkExtents(t *testing.T, dev blockdev.Device, off, n int64, limit int) []blockdev.Extent {
	t.Helper()
	list := checkShape(t, dev, off, n, limit)
	for _, e := range list {
		if e.Zero && !bytes.Equal(read(t, dev, e.Off, e.Len), make([]byte, e.Len)) {
			t.Fatalf("extent %+v does not read as zeroes", e)
		}
	}
	return list
}

func testExtents(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	checkExtents(t, dev, 0, size, 1000)
	for off := int64(0); off+40000 < size; off += 100000 {
		must(t, dev.WriteAt(pattern(4, 30000), off, 0))
	}
	must(t, dev.Zero(10000, 9000, blockdev.NoHole))
	must(t, dev.Trim(100000, 30000, 0))
	must(t, dev.WriteAt([]byte{1}, size-1, 0))
	full := func() {
		t.Helper()
		var pos int64
		for pos < size { // a short answer is legal, a stuck one is not
			list := checkExtents(t, dev, pos, size-pos, 1000)
			pos = list[len(list)-1].End()
		}
	}
	full()
	must(t, dev.Flush())
	full()
	for _, e := range edges(size) {
		checkExtents(t, dev, e[0], e[1], 100)
	}
	r := rand.New(rand.NewPCG(5, 5))
	for range 200 {
		off := r.Int64N(size)
		checkExtents(t, dev, off, 1+r.Int64N(size-off), 1+r.IntN(20))
	}
}

func testExtentsLimit(t *testing.T, dev blockdev.Device) {
	for off := int64(0); off+65536 < dev.Size(); off += 65536 {
		must(t, dev.WriteAt(pattern(6, 8192), off, 0))
	}
	whole := checkExtents(t, dev, 0, dev.Size(), 1<<20)
	for _, limit := range []int{1, 2, 3, 5} {
		var joined []blockdev.Extent
		for pos := int64(0); pos < dev.Size(); {
			for _, e := range checkExtents(t, dev, pos, dev.Size()-pos, limit) {
				joined = blockdev.AppendExtent(joined, e)
				pos = e.End()
			}
		}
		if len(joined) != len(whole) {
			t.Errorf("limit %d: %d extents in all, want %d", limit, len(joined), len(whole))
		}
	}
}

// testExtentsConcurrent: what changes meanwhile may be described as before or as
// after, but never in a broken answer.
func testExtentsConcurrent(t *testing.T, dev blockdev.Device) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := rand.New(rand.NewPCG(13, 0))
		p := pattern(13, 8192)
		for {
			select {
			case <-stop:
				return
			default:
			}
			off := r.Int64N(32) * 8192
			err := dev.WriteAt(p, off, 0)
			if err == nil && r.IntN(2) == 0 {
				err = dev.Trim(off, 8192, 0)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	for i := range 300 {
		checkShape(t, dev, 0, 32*8192, 1+i%40)
	}
}

// testRandom compares a seeded run of every operation with a slice of bytes.
func testRandom(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	model := make([]byte, size)
	r := rand.New(rand.NewPCG(11, 12))
	for i := range 600 {
		off := r.Int64N(size)
		n := min(1+r.Int64N(1<<(1+r.IntN(18))), size-off)
		if r.IntN(2) == 0 { // half of them aligned
			off -= off % blockdev.BlockSize
		}
		flags := blockdev.Flags(0)
		if r.IntN(8) == 0 {
			flags = blockdev.FUA
		}
		switch op := r.IntN(10); {
		case op < 5:
			p := pattern(uint64(i), n)
			must(t, dev.WriteAt(p, off, flags))
			copy(model[off:], p)
		case op == 5:
			must(t, dev.Zero(off, n, flags))
			clear(model[off : off+n])
		case op == 6:
			must(t, dev.Zero(off, n, flags|blockdev.NoHole))
			clear(model[off : off+n])
		case op == 7:
			must(t, dev.Trim(off, n, flags))
			clear(model[off : off+n])
		case op == 8:
			must(t, dev.Flush())
		default:
			expect(t, dev, off, model[off:off+n])
			expectNowait(t, dev, off, model[off:off+n])
			checkExtents(t, dev, off, n, 1+r.IntN(8))
		}
	}
	expect(t, dev, 0, model)
}

// expectNowait reads without waiting, if the device can.
func expectNowait(t *testing.T, dev blockdev.Device, off int64, want []byte) {
	t.Helper()
	fast, ok := dev.(blockdev.NowaitReader)
	if !ok {
		return
	}
	p := make([]byte, len(want))
	done, err := fast.ReadNowait(p, off)
	must(t, err)
	if done && !bytes.Equal(p, want) {
		t.Fatalf("ReadNowait of %d bytes at %d differs", len(p), off)
	}
}
