package blockdev

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooSmall: a block device has less room than is asked for.
var ErrTooSmall = fmt.Errorf("the device is too small")

// Grow makes a store of at least to bytes of the one at path, of which the first from
// are in use: what lies between reads as zeroes then, durably. A file becomes longer, a block
// device must have the room already (ErrTooSmall). The store may be open elsewhere,
// as long as nobody touches what is behind from. On a device that cannot zero by
// itself this takes as long as writing that much.
func Grow(path string, from, to int64) error {
	f, err := openBeside(path)
	if err != nil {
		return err
	}
	defer f.Close()
	switch {
	case f.size < to && f.kind == kindBlock:
		return fmt.Errorf("%s has %d bytes, %d are needed: enlarge it first: %w", path, f.size, to, ErrTooSmall)
	case f.size < to:
		if err := unix.Ftruncate(f.fd, to); err != nil {
			return fmt.Errorf("enlarge backing file %s to %d bytes: %w", path, to, err)
		}
	}
	old := min(f.size, to)
	f.size = max(f.size, to)
	if from < old {
		if err := f.Zero(from, old-from, 0); err != nil {
			return err
		}
	}
	if err := f.Flush(); err != nil {
		return err
	}
	if f.kind == kindRegular { // the length, too
		if err := unix.Fsync(f.fd); err != nil {
			return fmt.Errorf("sync backing file %s: %w", path, err)
		}
	}
	return nil
}

// openBeside opens a store that may be in use, without claiming it.
func openBeside(path string) (*File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open backing store: %w", err)
	}
	if !isBlock(st) && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open backing store %s: neither a file nor a block device", path)
	}
	fd, err := openRetry(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open backing store", Path: path, Err: err}
	}
	if !isBlock(st) {
		return newRegular(fd, path)
	}
	f := &File{path: path, kind: kindBlock, fd: fd}
	if err := f.readGeometry(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return f.start()
}
