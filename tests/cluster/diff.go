package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const block = 4096

// Diff compares two files and returns the offsets of the 4 KiB blocks that
// differ. Holes read as zeroes and are not read, so that a sparse file of 1 TiB
// costs what it holds.
func Diff(a, b string) ([]int64, error) {
	fa, err := os.Open(a)
	if err != nil {
		return nil, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return nil, err
	}
	defer fb.Close()
	ia, err := fa.Stat()
	if err != nil {
		return nil, err
	}
	ib, err := fb.Stat()
	if err != nil {
		return nil, err
	}
	if ia.Size() != ib.Size() {
		return nil, fmt.Errorf("%s has %d bytes, %s has %d", a, ia.Size(), b, ib.Size())
	}
	var diff []int64
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		da, err := nextData(fa, off, ia.Size())
		if err != nil {
			return nil, err
		}
		db, err := nextData(fb, off, ia.Size())
		if err != nil {
			return nil, err
		}
		off = min(da, db) / block * block
		if off >= ia.Size() {
			return diff, nil
		}
		n := int(min(int64(len(bufA)), ia.Size()-off))
		if _, err := io.ReadFull(io.NewSectionReader(fa, off, int64(n)), bufA[:n]); err != nil {
			return nil, fmt.Errorf("read %s: %w", a, err)
		}
		if _, err := io.ReadFull(io.NewSectionReader(fb, off, int64(n)), bufB[:n]); err != nil {
			return nil, fmt.Errorf("read %s: %w", b, err)
		}
		for i := 0; i < n; i += block {
			j := min(i+block, n)
			if !bytes.Equal(bufA[i:j], bufB[i:j]) {
				diff = append(diff, off+int64(i))
			}
		}
		off += int64(n)
	}
}

// nextData returns the first offset from off on that is not in a hole, size if
// there is none.
func nextData(f *os.File, off, size int64) (int64, error) {
	if off >= size {
		return size, nil
	}
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case err != nil:
		return 0, fmt.Errorf("seek data in %s from %d: %w", f.Name(), off, err)
	}
	return at, nil
}

// Allocated returns the bytes of storage that a file takes.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

func freeBytes(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}
