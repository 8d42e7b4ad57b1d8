package sim

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/qrbd/qrbd/volume/meta"
)

const metaPage = 4096

// metaWrite is a page write that no sync has followed.
type metaWrite struct {
	page int64
	data [metaPage]byte
}

// metaOp is a step of a commit; a sync when write is nil.
type metaOp struct{ write *metaWrite }

// metaStore is the metadata file's storage. A page that was not synced may be
// lost or torn by a power cut; a killed process leaves it. Commits are staged: the
// steps that meta.File takes are recorded, and happen when the simulated time of
// the commit has passed, or a prefix of them when it is interrupted.
type metaStore struct {
	w        *World
	size     int64
	fixed    int64 // the size that was synced
	visible  map[int64]*[metaPage]byte
	durable  map[int64]*[metaPage]byte
	unsynced []*metaWrite
	staging  bool
	log      []metaOp
	failSync bool        // the next sync fails
	budget   int         // > 0: this many writes and syncs until errCrash
	state    *meta.State // what durable says; nil: not read since it changed
}

// errCrash stands for the end of the process in the middle of Open.
var errCrash = errors.New("the process died here")

func newMetaStore(w *World, start []byte, size int64) *metaStore {
	s := &metaStore{w: w, size: size, fixed: size, visible: map[int64]*[metaPage]byte{}, durable: map[int64]*[metaPage]byte{}}
	for i := 0; i < len(start); i += metaPage {
		p := new([metaPage]byte)
		copy(p[:], start[i:])
		s.visible[int64(i/metaPage)] = p
		s.durable[int64(i/metaPage)] = p
	}
	return s
}

var noPage [metaPage]byte

// ReadAt implements meta.Storage.
func (s *metaStore) ReadAt(p []byte, off int64) (int, error) {
	if s.staging {
		panic("sim: a commit reads")
	}
	return readPages(s.visible, s.size, p, off)
}

func readPages(pages map[int64]*[metaPage]byte, size int64, p []byte, off int64) (int, error) {
	if off%metaPage != 0 || len(p)%metaPage != 0 {
		panic(fmt.Sprintf("sim: read of %d at %d", len(p), off))
	}
	n := 0
	for n < len(p) && off+int64(n) < size {
		src := pages[(off+int64(n))/metaPage]
		if src == nil {
			src = &noPage
		}
		n += copy(p[n:n+metaPage], src[:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements meta.Storage.
func (s *metaStore) WriteAt(p []byte, off int64) (int, error) {
	if off%metaPage != 0 || len(p) != metaPage {
		panic(fmt.Sprintf("sim: write of %d at %d", len(p), off))
	}
	m := &metaWrite{page: off / metaPage}
	copy(m.data[:], p)
	if s.staging {
		s.log = append(s.log, metaOp{m})
		return len(p), nil
	}
	if s.spend() {
		return 0, errCrash
	}
	s.apply(m)
	return len(p), nil
}

func (s *metaStore) spend() bool {
	if s.budget == 0 {
		return false
	}
	s.budget--
	return s.budget == 0
}

func (s *metaStore) apply(m *metaWrite) {
	s.visible[m.page] = &m.data
	s.unsynced = append(s.unsynced, m)
}

// Sync implements meta.Storage.
func (s *metaStore) Sync() error {
	if s.failSync {
		return errIO
	}
	if s.staging {
		s.log = append(s.log, metaOp{})
		return nil
	}
	if s.spend() {
		return errCrash
	}
	s.settle()
	return nil
}

func (s *metaStore) settle() {
	for _, m := range s.unsynced {
		s.durable[m.page] = &m.data
	}
	s.unsynced, s.state, s.fixed = nil, nil, s.size
}

// Extend implements meta.Extender.
func (s *metaStore) Extend(size int64) error {
	if s.spend() {
		return errCrash
	}
	s.size = max(s.size, size)
	return nil
}

// Size implements meta.Storage.
func (s *metaStore) Size() (int64, error) { return s.size, nil }

// Close implements meta.Storage.
func (s *metaStore) Close() error { return nil }

// NextData implements meta.Sparse.
func (s *metaStore) NextData(off int64) (from, to int64, err error) {
	return nextData(s.visible, off)
}

func nextData(pages map[int64]*[metaPage]byte, off int64) (from, to int64, err error) {
	best := int64(-1)
	for p := range pages { // the order does not matter
		if p >= off/metaPage && (best < 0 || p < best) {
			best = p
		}
	}
	if best < 0 {
		return 0, 0, io.EOF
	}
	return max(off, best*metaPage), (best + 1) * metaPage, nil
}

// image is the file as a power cut at this moment would leave it at least.
type image struct {
	pages map[int64]*[metaPage]byte
	size  int64
}

// ReadAt implements io.ReaderAt.
func (m image) ReadAt(p []byte, off int64) (int, error) { return readPages(m.pages, m.size, p, off) }

// NextData implements meta.Sparse.
func (m image) NextData(off int64) (from, to int64, err error) { return nextData(m.pages, off) }

// believed returns what the node would start from after a power cut at this moment.
// It is not to be changed.
func (s *metaStore) believed() *meta.State {
	if s.state == nil {
		st, err := meta.Recover(image{s.durable, s.fixed}, s.fixed)
		if err != nil {
			s.w.fail("P7: were the power cut now, the metadata could not be read: %v", err)
		}
		s.state = st
	}
	return s.state
}

// play lets the first n staged steps happen.
func (s *metaStore) play(n int) {
	for _, op := range s.log[:n] {
		if op.write == nil {
			s.settle()
		} else {
			s.apply(op.write)
		}
	}
	s.log = nil
}

// killed: the process is gone in the middle of what is staged.
func (s *metaStore) killed() {
	if len(s.log) > 0 {
		n := s.w.n(len(s.log) + 1)
		var torn *metaWrite
		if n < len(s.log) && s.w.p(0.3) {
			torn = s.log[n].write
		}
		s.play(n)
		if torn != nil {
			s.apply(s.tear(torn, s.visible[torn.page]))
		}
	}
	s.failSync, s.budget = false, 0
}

// tear returns m with some of its sectors as they were.
func (s *metaStore) tear(m *metaWrite, old *[metaPage]byte) *metaWrite {
	if old == nil {
		old = &noPage
	}
	t := &metaWrite{page: m.page, data: *old}
	for i := 0; i < metaPage; i += sectorSize {
		if s.w.p(0.5) {
			copy(t.data[i:i+sectorSize], m.data[i:i+sectorSize])
		}
	}
	return t
}

// powerCut loses or tears what was not synced.
func (s *metaStore) powerCut() {
	s.killed()
	pages := map[int64]*[metaPage]byte{}
	for _, m := range s.unsynced {
		old := pages[m.page]
		if old == nil {
			old = s.durable[m.page]
		}
		how := s.w.n(3)
		if c := s.w.points; c != nil && c.kind.keepMeta {
			how = 1
		}
		switch how {
		case 0:
			if old == nil {
				old = &noPage
			}
			pages[m.page] = old
		case 1:
			pages[m.page] = &m.data
		default:
			pages[m.page] = &s.tear(m, old).data
		}
	}
	keys := make([]int64, 0, len(pages))
	for p := range pages {
		keys = append(keys, p)
	}
	slices.Sort(keys)
	for _, p := range keys {
		s.durable[p] = pages[p]
		s.visible[p] = pages[p]
	}
	if s.size != s.fixed && s.w.p(0.5) {
		s.size = s.fixed
	}
	s.unsynced, s.state, s.fixed = nil, nil, s.size
}
