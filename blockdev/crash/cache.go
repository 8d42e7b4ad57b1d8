package crash

import (
	"fmt"
	"slices"

	"github.com/qrbd/qrbd/blockdev"
)

// eachSector calls do for each sector that [off, off+n) touches, in order: its
// number, the offset inside it and the number of bytes.
func eachSector(off, n int64, do func(sector int64, at, k int)) {
	for n > 0 {
		at := off % sectorSize
		k := min(n, sectorSize-at)
		do(off/sectorSize, int(at), int(k))
		off, n = off+k, n-k
	}
}

// put adds a version of every sector that p touches; sectors that it covers in
// part are completed with what is there. REQUIRES d.mu.
func (d *Device) put(p []byte, off int64) error {
	n := int64(len(p))
	first := off / sectorSize * sectorSize
	last := min((off+n+sectorSize-1)/sectorSize*sectorSize, d.size)
	whole := make([]byte, last-first)
	if off > first {
		if err := d.read(whole[:min(sectorSize, last-first)], first); err != nil {
			return err
		}
	}
	if tail := (last - 1) / sectorSize * sectorSize; off+n < last && (tail > first || off == first) {
		if err := d.read(whole[tail-first:], tail); err != nil {
			return err
		}
	}
	copy(whole[off-first:], p)
	eachSector(first, last-first, func(sector int64, _, k int) {
		d.add(sector, version{kind: sectorData, data: whole[:k:k]})
		whole = whole[k:]
	})
	return nil
}

// putClear adds zeroes: whole sectors of the kind, edges as data. REQUIRES d.mu.
func (d *Device) putClear(off, n int64, kind sectorKind) error {
	var err error
	eachSector(off, n, func(sector int64, at, k int) {
		start := sector * sectorSize
		if at == 0 && (k == sectorSize || start+int64(k) == d.size) {
			d.add(sector, version{kind: kind})
		} else if err == nil {
			err = d.put(make([]byte, k), start+int64(at))
		}
	})
	return err
}

func (d *Device) add(sector int64, v version) {
	if d.history {
		d.cache[sector] = append(d.cache[sector], v)
		return
	}
	d.cache[sector] = []version{v}
}

// clearHuge writes the range out by clearing it below, and drops what the cache
// had there. REQUIRES d.mu.
func (d *Device) clearHuge(off, n int64, flags blockdev.Flags) error {
	first := (off + sectorSize - 1) / sectorSize * sectorSize
	last := (off + n) / sectorSize * sectorSize
	if err := d.putClear(off, first-off, sectorHole); err != nil {
		return err
	}
	if err := d.putClear(last, off+n-last, sectorHole); err != nil {
		return err
	}
	if err := d.inner.Zero(first, last-first, flags); err != nil {
		return d.fail("clear", err)
	}
	for _, sector := range d.cached(first, last-first) {
		delete(d.cache, sector)
	}
	return nil
}

// cached returns the cached sectors that touch [off, off+n), ascending.
func (d *Device) cached(off, n int64) []int64 {
	first, last := off/sectorSize, (off+n+sectorSize-1)/sectorSize
	var list []int64
	if last-first <= int64(len(d.cache)) {
		for s := first; s < last; s++ {
			if d.cache[s] != nil {
				list = append(list, s)
			}
		}
		return list
	}
	for s := range d.cache {
		if first <= s && s < last {
			list = append(list, s)
		}
	}
	slices.Sort(list)
	return list
}

// writeOut moves the newest version of the sectors from the cache to inner. An
// error makes the device failed: the disk lost what it had promised to keep.
// REQUIRES d.mu.
func (d *Device) writeOut(sectors []int64, flush bool) error {
	if err := d.apply(sectors); err != nil {
		return d.fail("write out", err)
	}
	for _, s := range sectors {
		delete(d.cache, s)
	}
	if !flush {
		return nil
	}
	if err := d.inner.Flush(); err != nil {
		return d.fail("flush", err)
	}
	return nil
}

func (d *Device) fail(op string, err error) error {
	if d.failure == nil {
		d.failure = fmt.Errorf("%s of the cache: %w: %w", op, blockdev.ErrFailed, err)
	}
	return d.failure
}

// apply writes the newest version of the sectors (ascending) to inner, runs of
// one kind at once. REQUIRES d.mu.
func (d *Device) apply(sectors []int64) error {
	for len(sectors) > 0 {
		first := sectors[0]
		kind := d.newest(first).kind
		n := 1
		for n < len(sectors) && sectors[n] == first+int64(n) && d.newest(sectors[n]).kind == kind {
			n++
		}
		if err := d.applyRun(sectors[:n], kind); err != nil {
			return err
		}
		sectors = sectors[n:]
	}
	return nil
}

func (d *Device) newest(sector int64) version {
	list := d.cache[sector]
	return list[len(list)-1]
}

func (d *Device) applyRun(sectors []int64, kind sectorKind) error {
	off := sectors[0] * sectorSize
	n := min(int64(len(sectors))*sectorSize, d.size-off)
	switch kind {
	case sectorHole:
		return d.inner.Zero(off, n, 0)
	case sectorZero:
		return d.inner.Zero(off, n, blockdev.NoHole)
	case sectorData:
	}
	p := make([]byte, 0, n)
	for _, s := range sectors {
		p = append(p, d.newest(s).data...)
	}
	return d.inner.WriteAt(p, off, 0)
}
