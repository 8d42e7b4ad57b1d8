package meta

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Extender is a Storage that can become longer.
type Extender interface {
	// Extend makes the file size bytes long; what is new reads as zeroes. It does
	// nothing to one that is longer. Durable after the next Sync.
	Extend(size int64) error
}

// Grow makes the metadata those of a larger volume, durably. What is known of the old
// blocks stays; the new ones count as in sync, so that they must read as zeroes on every
// replica before. A cut at any moment leaves the old size or the new. An agent that has
// the file open is ErrBusy.
func Grow(path string, size int64) error {
	st, err := OpenStorage(path)
	if err != nil {
		return err
	}
	return GrowStorage(st, size)
}

// GrowStorage is Grow for any storage, which it closes.
func GrowStorage(st Storage, size int64) error {
	f, state, err := Open(st)
	if err != nil {
		return errors.Join(err, st.Close())
	}
	return errors.Join(f.grow(state.Super, size), f.Close())
}

// grow makes room first: a file that is longer than its volume needs is whole.
func (f *File) grow(s Super, size int64) error {
	if size < s.Size {
		return fmt.Errorf("%w: %s: a volume of %d bytes does not shrink to %d", ErrInvalid, f.name, s.Size, size)
	}
	s.Size = size
	if err := s.validate(); err != nil {
		return err
	}
	long, ok := f.st.(Extender)
	if !ok {
		return fmt.Errorf("%s cannot become longer: %w", f.name, errors.ErrUnsupported)
	}
	lay := newLayout(size)
	if err := long.Extend(lay.bytes()); err != nil {
		return f.fail(fmt.Errorf("making room: %w", err))
	}
	if err := f.st.Sync(); err != nil {
		return f.fail(fmt.Errorf("sync: %w", err))
	}
	words := int((lay.pairs + 63) / 64)
	f.next = append(f.next, make([]uint64, words-len(f.next))...)
	f.busy = make([]uint64, words)
	f.lay = lay
	return f.Commit(&Batch{Super: &s})
}

// Extend implements Extender. The space of activity pages is taken as when a file is
// made.
func (s *fileStorage) Extend(size int64) error {
	old, err := s.Size()
	if err != nil || old >= size {
		return err
	}
	if err := s.f.Truncate(size); err != nil {
		return err
	}
	for at := int64(fixedPairs) * pairSize; at < size; at += segmentPairs * pairSize {
		err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, pairSize)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "taking space", Path: s.f.Name(), Err: err}
		}
	}
	return s.f.Sync() // the length is not data
}
