package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/qrbd/qrbd/volume/meta"
)

const sectorSize = 512

// volatileMeta is metadata storage whose writes reach the inner storage on Sync
// and not before. Used by one goroutine at a time, as meta.Storage says.
type volatileMeta struct {
	path    string
	inner   meta.Storage
	delay   time.Duration    // before a Sync does anything
	sectors map[int64][]byte // written since the last Sync, by number
}

var (
	_ meta.Storage = (*volatileMeta)(nil)
	_ meta.Sparse  = (*volatileMeta)(nil)
)

func newVolatileMeta(path string, inner meta.Storage, delay time.Duration) *volatileMeta {
	return &volatileMeta{path: path, inner: inner, delay: delay, sectors: map[int64][]byte{}}
}

// Name is the file's, for errors.
func (v *volatileMeta) Name() string { return v.path }

func (v *volatileMeta) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.inner.ReadAt(p, off)
	for s := off / sectorSize; s*sectorSize < off+int64(n); s++ {
		data, ok := v.sectors[s]
		if !ok {
			continue
		}
		if at := s*sectorSize - off; at >= 0 {
			copy(p[at:n], data)
		} else {
			copy(p[:n], data[-at:])
		}
	}
	return n, err
}

func (v *volatileMeta) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		s, from := (off+int64(n))/sectorSize, int((off+int64(n))%sectorSize)
		if v.sectors[s] == nil {
			old := make([]byte, sectorSize)
			if _, err := v.inner.ReadAt(old, s*sectorSize); err != nil && err != io.EOF {
				return n, fmt.Errorf("read the rest of sector %d: %w", s, err)
			}
			v.sectors[s] = old
		}
		n += copy(v.sectors[s][from:], p[n:])
	}
	return len(p), nil
}

func (v *volatileMeta) Sync() error {
	time.Sleep(v.delay)
	for _, s := range slices.Sorted(maps.Keys(v.sectors)) {
		if _, err := v.inner.WriteAt(v.sectors[s], s*sectorSize); err != nil {
			return err
		}
	}
	clear(v.sectors)
	return v.inner.Sync()
}

func (v *volatileMeta) Size() (int64, error) { return v.inner.Size() }

// NextData finds data of the inner storage; with anything in the cache all is
// data.
func (v *volatileMeta) NextData(off int64) (from, to int64, err error) {
	if s, ok := v.inner.(meta.Sparse); ok && len(v.sectors) == 0 {
		return s.NextData(off)
	}
	size, err := v.inner.Size()
	if err != nil {
		return 0, 0, err
	}
	if off >= size {
		return 0, 0, io.EOF
	}
	return off, size, nil
}

func (v *volatileMeta) Close() error { return v.inner.Close() }
