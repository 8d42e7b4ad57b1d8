package meta

import (
	"errors"
	"flag"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// full makes the enumerations try every byte and every bit: minutes, not seconds.
var full = flag.Bool("full", false, "try every byte and bit in the crash and damage tests")

// image is a sparse file in memory, by slot. It is Sparse.
type image map[int64]*[pageSize]byte

func (m image) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		slot, at := (off+int64(n))/pageSize, (off+int64(n))%pageSize
		part := p[n:min(len(p), n+int(pageSize-at))]
		if data := m[slot]; data != nil {
			copy(part, data[at:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return len(p), nil
}

func (m image) NextData(off int64) (from, to int64, err error) {
	first := int64(-1)
	for slot := range m {
		if (slot+1)*pageSize > off && (first < 0 || slot < first) {
			first = slot
		}
	}
	if first < 0 {
		return 0, 0, io.EOF
	}
	return max(off, first*pageSize), (first + 1) * pageSize, nil
}

// write applies those bytes of a write for which keep is true.
func (m image) write(w write, keep func(i int) bool) {
	data := new([pageSize]byte)
	if old := m[w.off/pageSize]; old != nil {
		*data = *old
	}
	for i, b := range w.data {
		if keep == nil || keep(i) {
			data[i] = b
		}
	}
	m[w.off/pageSize] = data
}

// write is one write to a whole slot.
type write struct {
	off  int64
	data []byte
}

// disk is a Storage in memory with a volatile cache. It records everything, and
// fails at the operation numbered failAt.
type disk struct {
	size    int64
	cache   image // what a reader sees
	durable image
	pending []write // since the last Sync

	ops    int
	failAt int // 0: never
	closed bool
	// onOp is called after every write and Sync.
	onOp func()
}

var errDisk = errors.New("disk error")

func newDisk(tb testing.TB, s Super) *disk {
	tb.Helper()
	start, size, err := Format(&s, 0xfeedface)
	if err != nil {
		tb.Fatal(err)
	}
	m := image{}
	m.write(write{0, start[:pageSize]}, nil)
	m.write(write{pageSize, start[pageSize:]}, nil)
	return diskOf(m, size)
}

// diskOf returns a disk that holds m, which is shared: slots are never changed in
// place.
func diskOf(m image, size int64) *disk {
	return &disk{size: size, cache: maps.Clone(m), durable: maps.Clone(m)}
}

func (d *disk) ReadAt(p []byte, off int64) (int, error)        { return d.cache.ReadAt(p, off) }
func (d *disk) NextData(off int64) (from, to int64, err error) { return d.cache.NextData(off) }
func (d *disk) Size() (int64, error)                           { return d.size, nil }
func (d *disk) Close() error                                   { d.closed = true; return nil }

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off%pageSize != 0 || len(p) != pageSize || off+pageSize > d.size {
		panic("a write that is no slot")
	}
	if err := d.step(); err != nil {
		return 0, err
	}
	w := write{off, slices.Clone(p)}
	d.pending = append(d.pending, w)
	d.cache.write(w, nil)
	d.done()
	return len(p), nil
}

func (d *disk) Sync() error {
	if err := d.step(); err != nil {
		return err
	}
	for _, w := range d.pending {
		d.durable.write(w, nil)
	}
	d.pending = nil
	d.done()
	return nil
}

func (d *disk) step() error {
	d.ops++
	if d.ops == d.failAt {
		return errDisk
	}
	return nil
}

func (d *disk) done() {
	if d.onOp != nil {
		d.onOp()
	}
}

// crashes calls try with images that a crash now may leave: every subset of the
// pending writes, or some when there are many, and each pending write torn at bytes
// and by sectors, in and out of order.
func (d *disk) crashes(rng *rand.Rand, bytes bool, try func(m image, what string)) {
	n := len(d.pending)
	subset := func(mask uint64) image {
		m := maps.Clone(d.durable)
		for i, w := range d.pending {
			if mask>>i&1 != 0 {
				m.write(w, nil)
			}
		}
		return m
	}
	if n <= 6 {
		for mask := range uint64(1) << n {
			try(subset(mask), "subset")
		}
	} else {
		for range 64 {
			try(subset(rng.Uint64()), "random subset")
		}
	}
	for i := range n {
		others := rng.Uint64()
		if i == n-1 {
			others = 0 // earlier ones not there; they are where i is not last
		}
		torn := func(what string, keep func(int) bool) {
			m := maps.Clone(d.durable)
			for k, w := range d.pending {
				switch {
				case k == i:
					m.write(w, keep)
				case others>>k&1 != 0:
					m.write(w, nil)
				}
			}
			try(m, what)
		}
		for _, cut := range cuts(bytes && i == n-1) {
			torn("torn before a byte", func(b int) bool { return b < cut })
			torn("torn behind a byte", func(b int) bool { return b >= cut })
		}
		step := 37
		if bytes && *full {
			step = 1
		}
		for sectors := 1; sectors < 255; sectors += step {
			torn("torn sectors", func(b int) bool { return sectors>>(b/512)&1 != 0 })
		}
	}
}

// cuts returns the bytes at which a write of a slot is torn: with the flag all,
// else those in and near the header, the sectors' borders, and some.
func cuts(fine bool) (at []int) {
	for cut := 1; cut < pageSize; cut++ {
		border := (cut+1)%512 <= 2
		switch {
		case fine && *full, fine && (cut < 140 || border), cut%977 == 1, cut == 512, cut == headerBytes:
			at = append(at, cut)
		}
	}
	return at
}
