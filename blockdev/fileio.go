package blockdev

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// NowaitReader is what a store may offer for the hot path.
type NowaitReader interface {
	// ReadNowait fills p from off if that takes no I/O. It returns true when p
	// is filled or err is final, false (and nil) when the caller must use
	// ReadAt; p is then undefined. It never blocks on the disk.
	ReadNowait(p []byte, off int64) (bool, error)
}

var _ NowaitReader = (*File)(nil)

// ReadAt fills p from off. A read error does not make the device failed.
func (f *File) ReadAt(p []byte, off int64) error {
	if err := CheckRange(f.size, off, int64(len(p))); err != nil {
		return err
	}
	if err := f.enter(); err != nil {
		return err
	}
	defer f.exit()
	return f.read(p, off)
}

func (f *File) read(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(f.fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, f.path, err)
		case n == 0:
			return fmt.Errorf("read %d bytes at %d of %s: the store has shrunk: %w",
				len(p), off, f.path, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadNowait is NowaitReader's: it serves what the page cache holds.
func (f *File) ReadNowait(p []byte, off int64) (bool, error) {
	if err := CheckRange(f.size, off, int64(len(p))); err != nil {
		return true, err
	}
	if err := f.enter(); err != nil {
		return true, err
	}
	defer f.exit()
	if f.tmpfs {
		return true, f.read(p, off)
	}
	if f.noNowait.Load() {
		return false, nil
	}
	n, err := unix.Preadv2(f.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
	switch {
	case err == nil:
		return n == len(p), nil
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case unsupported(err) || err == unix.EINVAL:
		f.noNowait.Store(true)
		return false, nil
	}
	return true, fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, f.path, err)
}

// WriteAt writes p at off; with FUA durably. Any error but ErrRange and
// ErrNoSpace makes the device failed.
func (f *File) WriteAt(p []byte, off int64, flags Flags) error {
	if err := CheckRange(f.size, off, int64(len(p))); err != nil {
		return err
	}
	if err := f.enter(); err != nil {
		return err
	}
	defer f.exit()
	if len(p) == 0 {
		return nil
	}
	if flags&FUA == 0 {
		return f.write(p, off)
	}
	if f.noDsync.Load() {
		if err := f.write(p, off); err != nil {
			return err
		}
		return f.flush()
	}
	return f.writeDurable(p, off)
}

// write puts all of p into the page cache.
func (f *File) write(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(f.fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return f.writeError("write", len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// writeDurable writes p and waits for stable storage, on a description that no
// one else uses meanwhile.
func (f *File) writeDurable(p []byte, off int64) error {
	fd := <-f.lanes
	defer func() { f.lanes <- fd }()
	for len(p) > 0 {
		n, err := f.writeStable(fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && (unsupported(err) || err == unix.EINVAL):
			f.noDsync.Store(true)
			if err := f.write(p, off); err != nil {
				return err
			}
			return f.flush()
		case noSpace(err):
			// From the write, which is harmless, or from the sync, which has lost
			// data? Only a write that is refused again was refused before.
			if err := f.write(p, off); err != nil {
				return err
			}
			return f.fail("durable write", err)
		case err == nil && n == 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return f.fail("durable write", fmt.Errorf("%d bytes at %d: %w", len(p), off, err))
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pwriteDsync is pwrite(2) followed by the sync of what was written.
func pwriteDsync(fd int, p []byte, off int64) (int, error) {
	return unix.Pwritev2(fd, [][]byte{p}, off, unix.RWF_DSYNC)
}

// writeError classifies an error of an operation that changes the store.
func (f *File) writeError(op string, n int, off int64, err error) error {
	if noSpace(err) {
		return fmt.Errorf("%s %d bytes at %d of %s: %w: %w", op, n, off, f.path, ErrNoSpace, err)
	}
	return f.fail(op, fmt.Errorf("%d bytes at %d: %w", n, off, err))
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// unsupported: the kernel or the file system does not know the operation.
func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS
}
