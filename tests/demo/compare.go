package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// compared is how much differ reads at a time.
const compared = 1 << 20

// differ compares two files of the same size and returns the first offset at which
// their bytes differ, or -1. What is a hole in both reads as zeroes in both, and is
// not read.
func differ(ctx context.Context, nameA, nameB string) (int64, error) {
	a, err := os.Open(nameA)
	if err != nil {
		return 0, fmt.Errorf("compare: %w", err)
	}
	defer a.Close()
	b, err := os.Open(nameB)
	if err != nil {
		return 0, fmt.Errorf("compare: %w", err)
	}
	defer b.Close()
	size, err := sameSize(a, b)
	if err != nil {
		return 0, err
	}
	x, y := make([]byte, compared), make([]byte, compared)
	for off := int64(0); ; off += compared {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		data, err := nextData(a, b, off, size)
		if err != nil || data == size {
			return -1, err
		}
		off = data / compared * compared
		n := min(compared, size-off)
		for f, p := range map[*os.File][]byte{a: x[:n], b: y[:n]} {
			if _, err := f.ReadAt(p, off); err != nil && err != io.EOF {
				return 0, fmt.Errorf("compare at %d: %w", off, err)
			}
		}
		if !bytes.Equal(x[:n], y[:n]) {
			i := int64(0)
			for x[i] == y[i] {
				i++
			}
			return off + i, nil
		}
	}
}

func sameSize(a, b *os.File) (int64, error) {
	x, err := a.Stat()
	if err != nil {
		return 0, fmt.Errorf("compare: %w", err)
	}
	y, err := b.Stat()
	if err != nil {
		return 0, fmt.Errorf("compare: %w", err)
	}
	if x.Size() != y.Size() {
		return 0, fmt.Errorf("compare: %s has %d bytes, %s has %d", a.Name(), x.Size(), b.Name(), y.Size())
	}
	return x.Size(), nil
}

// nextData returns the first offset from off on that is not in a hole of both
// files; size, if there is none.
func nextData(a, b *os.File, off, size int64) (int64, error) {
	next := size
	for _, f := range []*os.File{a, b} {
		if off >= size {
			break
		}
		at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			continue // a hole to the end
		}
		if err != nil {
			return 0, fmt.Errorf("look for data in %s from %d: %w", f.Name(), off, err)
		}
		next = min(next, at)
	}
	return next, nil
}
