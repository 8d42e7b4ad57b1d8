package archive

import (
	"fmt"

	"github.com/qrbd/qrbd/blockdev"
)

// View is an archive over the volume's store: read-only, the lost side as far as
// the archive is exact. The store may be overwritten meanwhile, each block after
// Keep: a block that was read from the store and is in the index afterwards may
// have been read too late, and is taken from the archive; one that is not was read
// before it changed.
type View struct {
	f    *File
	base Base
}

var _ blockdev.Device = (*View)(nil)

// NewView returns a view. base stays the caller's; Close releases f.
func NewView(f *File, base Base) *View { return &View{f, base} }

// Size implements blockdev.Device.
func (v *View) Size() int64 { return v.f.head.Size }

// ReadAt implements blockdev.Device.
func (v *View) ReadAt(p []byte, off int64) error {
	if err := blockdev.CheckRange(v.Size(), off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n, archived := v.run(off, int64(len(p)))
		var err error
		if archived {
			err = v.kept(p[:n], off)
		} else {
			err = v.through(p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// run returns the length of the range from off whose blocks are all archived, or
// all not.
func (v *View) run(off, n int64) (int64, bool) {
	v.f.mu.RLock()
	defer v.f.mu.RUnlock()
	from, to := blockRange(off, n)
	archived := v.f.idx.has(from)
	b := from + 1
	for b < to && v.f.idx.has(b) == archived {
		b++
	}
	return min(off+n, b*blockSize) - off, archived
}

// kept reads from the archive.
func (v *View) kept(p []byte, off int64) error {
	buf := make([]byte, blockSize)
	for len(p) > 0 {
		block, skip := off/blockSize, off%blockSize
		if err := v.f.readBlock(buf, block, v.f.at(block)); err != nil {
			return err
		}
		n := copy(p, buf[skip:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// through reads from the store, and again from the archive what was archived since.
func (v *View) through(p []byte, off int64) error {
	if err := v.base.ReadAt(p, off); err != nil {
		return fmt.Errorf("archive %s: reading the volume below it: %w", v.f.head.Name(), err)
	}
	for len(p) > 0 {
		block := off / blockSize
		n := min(int64(len(p)), (block+1)*blockSize-off)
		if v.f.at(block).pos != noPlace {
			if err := v.kept(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt implements blockdev.Device.
func (v *View) WriteAt([]byte, int64, blockdev.Flags) error { return blockdev.ErrReadOnly }

// Zero implements blockdev.Device.
func (v *View) Zero(int64, int64, blockdev.Flags) error { return blockdev.ErrReadOnly }

// Trim implements blockdev.Device.
func (v *View) Trim(int64, int64, blockdev.Flags) error { return blockdev.ErrReadOnly }

// Flush implements blockdev.Device.
func (v *View) Flush() error { return nil }

// Extents implements blockdev.Device. What is archived meanwhile is described as
// data: that is always true enough.
func (v *View) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	if err := blockdev.CheckRange(v.Size(), off, n); err != nil {
		return nil, err
	}
	const most = 1 << 30 // blocks are looked at one by one
	n = min(n, most)
	var out []blockdev.Extent
	for n > 0 && len(out) <= limit {
		length, archived := v.run(off, n)
		var part []blockdev.Extent
		var err error
		if archived {
			part = v.keptExtents(off, length)
		} else if part, err = v.throughExtents(off, length, limit); err != nil {
			return nil, err
		}
		for _, e := range part {
			out = blockdev.AppendExtent(out, e)
			off, n = off+e.Len, n-e.Len
		}
	}
	return out[:min(len(out), limit)], nil
}

func (v *View) keptExtents(off, n int64) []blockdev.Extent {
	var out []blockdev.Extent
	for end := off + n; off < end; {
		block := off / blockSize
		next := min(end, (block+1)*blockSize)
		zero := v.f.at(block).pos == zeroPlace
		out = blockdev.AppendExtent(out, blockdev.Extent{Off: off, Len: next - off, Zero: zero, Hole: zero})
		off = next
	}
	return out
}

func (v *View) throughExtents(off, n int64, limit int) ([]blockdev.Extent, error) {
	part, err := v.base.Extents(off, n, limit)
	if err != nil {
		return nil, fmt.Errorf("archive %s: extents of the volume below it: %w", v.f.head.Name(), err)
	}
	last := part[len(part)-1]
	if same, archived := v.run(off, last.End()-off); archived || same < last.End()-off {
		return []blockdev.Extent{{Off: off, Len: last.End() - off}}, nil // changed meanwhile
	}
	return part, nil
}

// Close implements blockdev.Device. The base stays open.
func (v *View) Close() error { return v.f.Release() }
