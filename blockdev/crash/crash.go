package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/qrbd/qrbd/blockdev"
)

const (
	sectorSize = blockdev.SectorSize
	// hugeClear is the size, in bytes, from which Zero and Trim go straight to
	// the inner store: the cache spends an entry on each sector.
	hugeClear = 16 << 20
)

// sectorKind is what a version of a sector is.
type sectorKind uint8

const (
	sectorData sectorKind = iota
	sectorHole            // zeroed or trimmed, may be deallocated
	sectorZero            // zeroed with NoHole
)

// version is what a sector holds after one operation. data is nil unless kind is
// sectorData, and never modified.
type version struct {
	kind sectorKind
	data []byte
}

// Device is a blockdev.Device with a volatile cache over inner. It owns inner:
// Close closes it. Safe for concurrent use.
type Device struct {
	size       int64
	seed       uint64
	history    bool  // keep every version, not only the newest
	limitBytes int64 // cached bytes; 0 is no limit

	mu sync.Mutex
	// Guarded by mu, held across inner's I/O.
	inner   blockdev.Device
	cache   map[int64][]version // by sector number; never an empty list
	crashed bool
	closed  bool
	failure error
}

var _ blockdev.Device = (*Device)(nil)

// New returns a device whose Crash decides by seed.
func New(inner blockdev.Device, seed uint64) *Device {
	return &Device{size: inner.Size(), seed: seed, history: true, inner: inner, cache: make(map[int64][]version)}
}

// NewVolatile returns a device that keeps what is not flushed in memory alone, up
// to limitBytes (0: no limit), beyond which it writes everything out early,
// without flushing inner. Its Crash loses all that is cached.
func NewVolatile(inner blockdev.Device, limitBytes int64) *Device {
	return &Device{size: inner.Size(), limitBytes: limitBytes, inner: inner, cache: make(map[int64][]version)}
}

// Crash cuts the power and returns the disk as it comes back. The receiver
// answers ErrClosed from then on, also to operations that wait; the new device
// owns inner. What was cached survives by the seed and the sector alone, not by
// the order of concurrent calls; how much does (nothing, some, all) is drawn
// once per crash. Same seed and operations, same disk.
func (d *Device) Crash() (*Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil && d.failure == nil {
		return nil, err
	}
	if d.history {
		d.survive()
		if err := d.apply(d.cached(0, d.size)); err != nil {
			return nil, fmt.Errorf("crash: apply what survived: %w", err)
		}
	}
	d.crashed = true
	d.cache = nil
	return d.successor(), nil
}

// successor returns the device after d, with the next seed.
func (d *Device) successor() *Device {
	return &Device{
		size: d.size, seed: mix(d.seed, 0x9e3779b97f4a7c15), history: d.history, limitBytes: d.limitBytes,
		inner: d.inner, cache: make(map[int64][]version),
	}
}

// survive leaves in the cache the versions that outlive the cut.
func (d *Device) survive() {
	// Chances of 4 in 4 and 0 in 4 are drawn as often as the others: all and
	// nothing are the cases that find bugs.
	chance := mix(d.seed, 1) % 5
	for sector, list := range d.cache {
		r := rand.New(rand.NewPCG(d.seed, uint64(sector)))
		kept := -1
		for i := len(list) - 1; i >= 0 && kept < 0; i-- {
			if r.Uint64N(4) < chance {
				kept = i
			}
		}
		if kept < 0 {
			delete(d.cache, sector)
		} else {
			d.cache[sector] = list[kept : kept+1]
		}
	}
}

// mix hashes two words. Source: the finaliser of SplitMix64 (Steele, Lea, Flood,
// "Fast splittable pseudorandom number generators", 2014).
func mix(a, b uint64) uint64 {
	z := a + 0x9e3779b97f4a7c15*(b+1)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// usable returns why the device cannot be used, or nil. REQUIRES d.mu.
func (d *Device) usable() error {
	switch {
	case d.closed:
		return blockdev.ErrClosed
	case d.crashed:
		return fmt.Errorf("the power was cut: %w", blockdev.ErrClosed)
	}
	return d.failure
}

// Size returns the inner store's size in bytes.
func (d *Device) Size() int64 { return d.size }

// Unflushed returns the bytes, in whole sectors, that a power cut may take back.
func (d *Device) Unflushed() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.cache)) * sectorSize
}

// ReadAt fills p from the cache and, for the rest, from inner.
func (d *Device) ReadAt(p []byte, off int64) error {
	if err := blockdev.CheckRange(d.size, off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	return d.read(p, off)
}

func (d *Device) read(p []byte, off int64) error {
	if err := d.inner.ReadAt(p, off); err != nil {
		return err
	}
	eachSector(off, int64(len(p)), func(sector int64, at, k int) {
		if list := d.cache[sector]; list != nil {
			if v := list[len(list)-1]; v.kind == sectorData {
				copy(p[:k], v.data[at:])
			} else {
				clear(p[:k])
			}
		}
		p = p[k:]
	})
	return nil
}

// WriteAt puts p into the cache; with FUA also, durably, into inner.
func (d *Device) WriteAt(p []byte, off int64, flags blockdev.Flags) error {
	return d.change(off, int64(len(p)), flags, func() error { return d.put(p, off) })
}

// Zero puts zeroes into the cache. It is always fast.
func (d *Device) Zero(off, n int64, flags blockdev.Flags) error {
	kind := sectorHole
	if flags&blockdev.NoHole != 0 {
		kind = sectorZero
	}
	return d.change(off, n, flags, func() error {
		if n >= hugeClear {
			return d.clearHuge(off, n, flags&blockdev.NoHole)
		}
		return d.putClear(off, n, kind)
	})
}

// Trim puts zeroes into the cache, to become a hole.
func (d *Device) Trim(off, n int64, flags blockdev.Flags) error {
	return d.Zero(off, n, flags&blockdev.FUA)
}

// change runs do, then what the flags and the limit ask for.
func (d *Device) change(off, n int64, flags blockdev.Flags, do func() error) error {
	if err := blockdev.CheckRange(d.size, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	if flags&blockdev.FUA != 0 {
		return d.writeOut(d.cached(off, n), true)
	}
	if d.limitBytes > 0 && int64(len(d.cache))*sectorSize > d.limitBytes {
		return d.writeOut(d.cached(0, d.size), false)
	}
	return nil
}

// Flush makes every operation that completed before it durable.
func (d *Device) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	return d.writeOut(d.cached(0, d.size), true)
}

// Extents is inner's answer with the cache laid over it.
func (d *Device) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	if err := blockdev.CheckRange(d.size, off, n); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return nil, err
	}
	limit = max(limit, 1)
	below, err := d.inner.Extents(off, n, limit)
	if err != nil || len(below) == 0 {
		return nil, err
	}
	var list []blockdev.Extent
	cached := d.cached(off, below[len(below)-1].End()-off)
	for _, e := range below {
		for e.Len > 0 {
			piece := e
			for len(cached) > 0 && (cached[0]+1)*sectorSize <= e.Off {
				cached = cached[1:]
			}
			if len(cached) > 0 && cached[0]*sectorSize < e.End() {
				if start := cached[0] * sectorSize; start > e.Off {
					piece.Len = start - e.Off
				} else {
					v := d.newest(cached[0])
					piece.Len = min(start+sectorSize, e.End()) - e.Off
					piece.Hole, piece.Zero = v.kind == sectorHole, v.kind != sectorData
				}
			}
			list = blockdev.AppendExtent(list, piece)
			if len(list) > limit {
				return list[:limit], nil
			}
			e.Off, e.Len = piece.End(), e.End()-piece.End()
		}
	}
	return list, nil
}

// Close closes inner, which keeps what a SIGKILL would leave it.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.crashed {
		return blockdev.ErrClosed
	}
	d.closed = true
	d.cache = nil
	return d.inner.Close()
}
