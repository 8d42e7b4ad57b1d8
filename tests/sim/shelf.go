package sim

import (
	"errors"
	"io"
	"io/fs"
	"slices"

	"github.com/qrbd/qrbd/volume/archive"
)

// shelf is where a node's archives are. What was not synced may be lost or torn by a
// power cut, sector by sector; a killed process leaves it.
type shelf struct {
	w     *World
	files map[string]*shelfFile
	// Of the operation under way.
	budget  int   // > 0: this many writes and syncs until the process dies
	crashed bool  // it has
	fails   bool  // the next write or sync finds an error
	bad     int64 // until then every one does
}

type shelfFile struct {
	s       *shelf
	visible []byte
	durable []byte
	pending []shelfWrite
}

type shelfWrite struct {
	off  int64 // -1: a truncation to size
	data []byte
	size int64
}

func newShelf(w *World) *shelf { return &shelf{w: w, files: map[string]*shelfFile{}} }

// copied returns what a process finds that is started now. Nothing befalls it.
func (s *shelf) copied() *shelf {
	out := newShelf(s.w)
	for name, f := range s.files {
		out.files[name] = &shelfFile{s: out, visible: slices.Clone(f.visible)}
	}
	return out
}

// trouble chooses what befalls the shelf in the next operation.
func (s *shelf) trouble(chance float64) {
	s.budget, s.crashed, s.fails = 0, false, false
	crash := 0.6
	if s.w.sc.theme == shelves {
		chance, crash = 10*chance, 0.1
	}
	switch {
	case s.w.calm || !s.w.p(chance):
	case s.w.p(crash):
		s.budget = 1 + s.w.n(6)
	default:
		s.fails = true
	}
}

// endTrouble ends it; true: the process died of it.
func (s *shelf) endTrouble(p *process) bool {
	died := s.crashed
	s.budget, s.crashed, s.fails = 0, false, false
	if died {
		s.w.count("crash in archive")
		n := p.n
		n.kill(s.w.p(0.6))
		s.w.at(100*milli, n.start)
	}
	return died
}

// step is before every write and sync.
func (s *shelf) step() error {
	if s.crashed {
		return errCrash
	}
	if s.w.now < s.bad && !s.w.calm {
		return errSpace
	}
	if s.fails && s.w.p(0.5) {
		s.fails = false
		if s.w.aside2.Float64() < 0.5 {
			s.bad = s.w.now + s.w.aside2.Int64N(20*second)
			s.w.count("archives not writable for long")
		}
		s.w.count("archive error")
		return errSpace
	}
	if s.budget > 0 {
		if s.budget--; s.budget == 0 {
			s.crashed = true
			return errCrash
		}
	}
	return nil
}

func (s *shelf) powerCut() {
	for _, name := range s.names() {
		f := s.files[name]
		for _, w := range f.pending {
			switch {
			case s.w.p(0.3):
			case w.off < 0:
				f.durable = w.apply(f.durable)
			default:
				for i := 0; i < len(w.data); i += sectorSize {
					if s.w.p(0.7) {
						f.durable = shelfWrite{off: w.off + int64(i), data: w.data[i:min(i+sectorSize, len(w.data))]}.apply(f.durable)
					}
				}
			}
		}
		f.pending = nil
		f.visible = slices.Clone(f.durable)
	}
}

func (s *shelf) names() []string {
	var out []string
	for n := range s.files {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (s *shelf) Names() ([]string, error) { return s.names(), nil }
func (s *shelf) Path() string             { return "shelf" }

func (s *shelf) Free() (int64, error) {
	if s.fails && s.w.p(0.3) {
		return 0, nil
	}
	return 1 << 40, nil
}

func (s *shelf) Create(name string) (archive.Storage, error) {
	if s.files[name] != nil {
		return nil, fs.ErrExist
	}
	if err := s.step(); err != nil {
		return nil, err
	}
	f := &shelfFile{s: s}
	s.files[name] = f
	return f, nil
}

func (s *shelf) Open(name string) (archive.Storage, error) {
	if f := s.files[name]; f != nil {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (s *shelf) Remove(name string) error {
	if err := s.step(); err != nil {
		return err
	}
	delete(s.files, name)
	return nil
}

func (f *shelfFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.visible)) {
		return 0, io.EOF
	}
	n := copy(p, f.visible[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *shelfFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.s.step(); err != nil {
		n := 0
		if len(p) > 0 {
			n = f.s.w.n(len(p)/sectorSize+1) * sectorSize
		}
		f.do(shelfWrite{off: off, data: slices.Clone(p[:min(n, len(p))])})
		return n, err
	}
	f.do(shelfWrite{off: off, data: slices.Clone(p)})
	return len(p), nil
}

func (f *shelfFile) Truncate(size int64) error {
	if err := f.s.step(); err != nil {
		return err
	}
	f.do(shelfWrite{off: -1, size: size})
	return nil
}

func (f *shelfFile) do(w shelfWrite) {
	f.pending = append(f.pending, w)
	f.visible = w.apply(f.visible)
}

func (w shelfWrite) apply(b []byte) []byte {
	if w.off < 0 {
		if w.size <= int64(len(b)) {
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

func (f *shelfFile) Sync() error {
	if err := f.s.step(); err != nil {
		if !errors.Is(err, errCrash) {
			f.pending = nil // as a kernel does: clean, and not on the disk
		}
		return err
	}
	for _, w := range f.pending {
		f.durable = w.apply(f.durable)
	}
	f.pending = nil
	return nil
}

func (f *shelfFile) Size() (int64, error) { return int64(len(f.visible)), nil }
func (f *shelfFile) Close() error         { return nil }
