package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// zeroes is what is written where the store cannot zero by itself. Never
// modified.
var zeroes [256 << 10]byte

// Zero makes the range read as zeroes: by punching a hole, with NoHole by
// zeroing in place, and where the store can do neither by writing zeroes (not
// with FastZero).
func (f *File) Zero(off, n int64, flags Flags) error {
	return f.clear("zero", off, n, flags)
}

// Trim punches a hole, or writes zeroes where the store cannot.
func (f *File) Trim(off, n int64, flags Flags) error {
	return f.clear("trim", off, n, flags&FUA)
}

func (f *File) clear(op string, off, n int64, flags Flags) error {
	if err := CheckRange(f.size, off, n); err != nil {
		return err
	}
	if err := f.enter(); err != nil {
		return err
	}
	defer f.exit()
	if n == 0 {
		return nil
	}
	done, err := f.clearFast(op, off, n, flags)
	if err != nil {
		return err
	}
	if !done {
		if flags&FastZero != 0 {
			return fmt.Errorf("%s %d bytes at %d of %s: %w", op, n, off, f.path, ErrNotFast)
		}
		if err := f.writeZeroes(off, n); err != nil {
			return err
		}
	}
	if flags&FUA != 0 {
		return f.flush()
	}
	return nil
}

// clearFast zeroes with fallocate; false, with nothing changed, if the store
// cannot. On a block device the sectors that are covered in part are written.
func (f *File) clearFast(op string, off, n int64, flags Flags) (bool, error) {
	unit := int64(f.logical)
	first := (off + unit - 1) / unit * unit
	last := (off + n) / unit * unit
	if first >= last { // nothing but edges: as cheap as it gets
		return true, f.writeZeroes(off, n)
	}
	mode, lacks := uint32(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE), &f.noPunch
	if flags&NoHole != 0 {
		mode, lacks = unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, &f.noZeroRange
		// On a block device the kernel quietly writes zeroes if it must.
		if f.kind == kindBlock && flags&FastZero != 0 && !f.fastZero {
			return false, nil
		}
	}
	if lacks.Load() {
		return false, nil
	}
	err := unix.Errno(unix.EINTR)
	for err == unix.EINTR {
		err = fallocate(f.fd, mode, first, last-first)
	}
	switch {
	case err == 0:
	case unsupported(err):
		lacks.Store(true)
		return false, nil
	case err == unix.EINVAL: // not for this range
		return false, nil
	default:
		return false, f.writeError(op, int(last-first), first, err)
	}
	if err := f.writeZeroes(off, first-off); err != nil {
		return false, err
	}
	return true, f.writeZeroes(last, off+n-last)
}

// fallocate is fallocate(2) with its error as a number, zero for none.
func fallocate(fd int, mode uint32, off, n int64) unix.Errno {
	err := unix.Fallocate(fd, mode, off, n)
	if err == nil {
		return 0
	}
	return err.(unix.Errno) // the only type it returns
}

// writeZeroes writes n zeroes at off in bounded pieces.
func (f *File) writeZeroes(off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := f.write(zeroes[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Extents reports the file's data and holes. Space that was allocated but never
// written (NoHole) counts as a hole on file systems that say so. A block device
// is one data extent.
func (f *File) Extents(off, n int64, limit int) ([]Extent, error) {
	if err := CheckRange(f.size, off, n); err != nil {
		return nil, err
	}
	if err := f.enter(); err != nil {
		return nil, err
	}
	defer f.exit()
	if n == 0 {
		return nil, nil
	}
	if f.kind == kindBlock {
		return []Extent{{Off: off, Len: n}}, nil
	}
	limit = max(limit, 1)
	var list []Extent
	for pos, end := off, off+n; pos < end; {
		e, err := f.extentAt(pos, end)
		if err != nil {
			return nil, err
		}
		merged := AppendExtent(list, e)
		if len(merged) > limit {
			break
		}
		list, pos = merged, e.End()
	}
	return list, nil
}

// extentAt describes the store from pos up to the next change of kind, at most to
// end. It always returns a non-empty extent, also while others write.
func (f *File) extentAt(pos, end int64) (Extent, error) {
	data, err := unix.Seek(f.fd, pos, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // no data from here on
		data = end
	case err == unix.EINVAL || err != nil && unsupported(err):
		return Extent{Off: pos, Len: end - pos}, nil
	case err != nil:
		return Extent{}, fmt.Errorf("find data from %d of %s: %w", pos, f.path, err)
	}
	if data > pos {
		return Extent{Off: pos, Len: min(data, end) - pos, Hole: true, Zero: true}, nil
	}
	hole, err := unix.Seek(f.fd, pos, unix.SEEK_HOLE)
	if err != nil && err != unix.ENXIO {
		return Extent{}, fmt.Errorf("find hole from %d of %s: %w", pos, f.path, err)
	}
	if err != nil || hole <= pos { // trimmed between the two calls; data is never wrong
		hole = min(pos+BlockSize, end)
	}
	return Extent{Off: pos, Len: min(hole, end) - pos}, nil
}
