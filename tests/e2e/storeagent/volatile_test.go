package main

import (
	"bytes"
	"testing"
)

// bytesStorage is a meta.Storage in memory that counts what is synced.
type bytesStorage struct {
	data  []byte
	syncs int
}

func (b *bytesStorage) ReadAt(p []byte, off int64) (int, error)  { return copy(p, b.data[off:]), nil }
func (b *bytesStorage) WriteAt(p []byte, off int64) (int, error) { return copy(b.data[off:], p), nil }
func (b *bytesStorage) Sync() error                              { b.syncs++; return nil }
func (b *bytesStorage) Size() (int64, error)                     { return int64(len(b.data)), nil }
func (b *bytesStorage) Close() error                             { return nil }

func TestNothingArrivesBeforeSync(t *testing.T) {
	inner := &bytesStorage{data: bytes.Repeat([]byte{1}, 8192)}
	before := bytes.Clone(inner.data)
	v := newVolatileMeta("m", inner, 0)
	if n, err := v.WriteAt(bytes.Repeat([]byte{2}, 1000), 300); n != 1000 || err != nil {
		t.Fatal(n, err)
	}
	want := bytes.Clone(before)
	copy(want[300:], bytes.Repeat([]byte{2}, 1000))
	for _, r := range [][2]int{{0, 8192}, {300, 1000}, {301, 17}, {511, 2}, {1299, 3}, {4096, 512}} {
		got := make([]byte, r[1])
		if _, err := v.ReadAt(got, int64(r[0])); err != nil || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("read %d at %d is not what was written (%v)", r[1], r[0], err)
		}
	}
	if !bytes.Equal(inner.data, before) {
		t.Error("a write reached the storage before Sync")
	}
	if err := v.Sync(); err != nil || inner.syncs != 1 || !bytes.Equal(inner.data, want) {
		t.Errorf("after Sync: %v, %d syncs, equal %v", err, inner.syncs, bytes.Equal(inner.data, want))
	}
}
