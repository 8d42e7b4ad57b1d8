package archive

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
)

// memShelf keeps archives in memory, and what was synced apart.
type memShelf struct {
	files map[string]*memFile
	free  int64
}

type memFile struct {
	shelf    *memShelf
	data     []byte
	durable  []byte
	pending  []memWrite
	syncs    int
	failSync error
	failAt   int64 // > 0: writes beyond it find no space
}

type memWrite struct {
	off  int64 // -1: a truncation to len
	data []byte
	size int64
}

func newShelf() *memShelf { return &memShelf{files: map[string]*memFile{}, free: 1 << 40} }

func (s *memShelf) Path() string         { return "/shelf" }
func (s *memShelf) Free() (int64, error) { return s.free, nil }
func (s *memShelf) Names() ([]string, error) {
	var out []string
	for n := range s.files {
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

func (s *memShelf) Create(name string) (Storage, error) {
	f := &memFile{shelf: s}
	s.files[name] = f
	return f, nil
}

func (s *memShelf) Open(name string) (Storage, error) {
	f := s.files[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func (s *memShelf) Remove(name string) error {
	delete(s.files, name)
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.failAt > 0 && off+int64(len(p)) > f.failAt {
		n := max(0, f.failAt-off)
		f.put(p[:n], off)
		return int(n), blockdev.ErrNoSpace
	}
	f.put(p, off)
	return len(p), nil
}

func (f *memFile) put(p []byte, off int64) {
	f.pending = append(f.pending, memWrite{off: off, data: slices.Clone(p)})
	f.data = applyWrite(f.data, f.pending[len(f.pending)-1])
}

func applyWrite(b []byte, w memWrite) []byte {
	if w.off < 0 {
		if w.size < int64(len(b)) {
			return b[:w.size]
		}
		return append(b, make([]byte, w.size-int64(len(b)))...)
	}
	if end := w.off + int64(len(w.data)); end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[w.off:], w.data)
	return b
}

func (f *memFile) Truncate(size int64) error {
	f.pending = append(f.pending, memWrite{off: -1, size: size})
	f.data = applyWrite(f.data, f.pending[len(f.pending)-1])
	return nil
}

func (f *memFile) Sync() error {
	f.syncs++
	if f.failSync != nil {
		return f.failSync
	}
	f.durable, f.pending = slices.Clone(f.data), nil
	return nil
}

func (f *memFile) Size() (int64, error) { return int64(len(f.data)), nil }
func (f *memFile) Close() error         { return nil }

// cut returns the file after a power cut: of what was not synced, each sector may be
// there or not.
func (f *memFile) cut(rnd *rand.Rand) *memFile {
	b := slices.Clone(f.durable)
	for _, w := range f.pending {
		if rnd.IntN(3) == 0 {
			continue
		}
		if w.off < 0 {
			b = applyWrite(b, w)
			continue
		}
		for i := 0; i < len(w.data); i += sectorSize {
			if rnd.IntN(4) > 0 {
				b = applyWrite(b, memWrite{off: w.off + int64(i), data: w.data[i:min(i+sectorSize, len(w.data))]})
			}
		}
	}
	return &memFile{shelf: f.shelf, data: b, durable: slices.Clone(b)}
}

// store is a volume's store in memory.
type store struct {
	*blockdev.Memory
	reads int
}

func (s *store) ReadAt(p []byte, off int64) error { s.reads++; return s.Memory.ReadAt(p, off) }

const testSize = 300*blockSize + 1536

func newStore(t testing.TB) *store {
	t.Helper()
	m := blockdev.NewMemory(testSize)
	t.Cleanup(func() { m.Close() })
	return &store{Memory: m}
}

func (s *store) fill(t testing.TB, rnd *rand.Rand, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	if err := s.WriteAt(b, off, 0); err != nil {
		t.Fatal(err)
	}
}

func (s *store) image(t testing.TB) []byte { return imageOf(t, s) }

func imageOf(t testing.TB, d interface {
	ReadAt(p []byte, off int64) error
}) []byte {
	t.Helper()
	b := make([]byte, testSize)
	if err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

var errTest = errors.New("test")

func testOptions(s Shelf) Options {
	id := uint64(0x0123456789abcdef)
	now := time.Date(2026, 11, 22, 16, 56, 44, 0, time.UTC)
	return Options{Shelf: s, Volume: "crm", Node: "alpha", Size: testSize, Limit: 1 << 20, Reserve: 1 << 20,
		Now:  func() time.Time { now = now.Add(time.Second); return now },
		Rand: func() uint64 { id++; return id }}
}

func testStart() Start {
	return Start{Winner: "beta", Rule: "discard", Lost: 11, Kept: 22, Parent: 5, History: nil, Blocks: 300}
}
