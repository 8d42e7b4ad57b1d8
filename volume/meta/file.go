package meta

import (
	"errors"
	"fmt"
	"math"

	"github.com/qrbd/qrbd/bitmap"
)

// Batch is what one Commit writes: each page at most once.
type Batch struct {
	Super    *Super // nil: unchanged
	Activity []bitmap.ActivityPage
	Bitmap   []BitmapPage
}

// BitmapPage is one page of a peer's bitmap.
type BitmapPage struct {
	Slot int    // index in Super.Peers
	Page int64  // as bitmap.Set numbers them
	Data []byte // bitmap.PageBytes, from Set.AppendPage
}

// File is an open metadata file. It is not safe for concurrent use.
type File struct {
	st     Storage
	name   string // for errors
	lay    layout
	id     uint64
	seq    uint64   // of the last commit
	peers  []string // names, by slot
	next   []uint64 // a bit per pair: the slot that the next commit writes
	busy   []uint64 // a bit per pair: is in the batch being checked
	buf    [pageSize]byte
	failed error
}

// Open recovers the state and returns the file ready for Commit. Every pair whose
// slots differ is made whole first, and everything is synced. It owns st when it
// succeeds; after an error st is the caller's.
func Open(st Storage) (*File, *State, error) {
	f := &File{st: st, name: "metadata file"}
	if n, ok := st.(interface{ Name() string }); ok {
		f.name = n.Name()
	}
	size, err := st.Size()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: size: %w", f.name, err)
	}
	r, err := recoverImage(st, size)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.name, err)
	}
	f.lay, f.id, f.seq, f.next = r.lay, r.file, r.top, r.next
	f.busy = make([]uint64, len(f.next))
	for _, p := range r.state.Super.Peers {
		f.peers = append(f.peers, p.Name)
	}
	if err := f.settle(r); err != nil {
		return nil, nil, fmt.Errorf("%s: making the pages whole: %w", f.name, err)
	}
	return f, r.state, nil
}

// settle brings the pairs that a crash left unequal back to rest, then replaces
// the damaged ones by a commit. The first sync matters even if nothing differs:
// after the death of a process, what was read may be in the page cache only.
func (f *File) settle(r *recovery) error {
	// The newest slot is rewritten as it is: if an earlier sync failed, the page
	// cache may hold it clean though the disk does not have it. A torn write of
	// equal bytes changes nothing.
	for _, id := range r.unsettled {
		slot := f.current(id)
		if err := f.read(id, slot); err != nil {
			return err
		}
		if err := f.write(id, slot); err != nil {
			return err
		}
	}
	if err := f.st.Sync(); err != nil {
		return err
	}
	for _, id := range r.unsettled {
		if err := f.settlePair(id); err != nil {
			return err
		}
	}
	for _, id := range r.unborn {
		clear(f.buf[:])
		for slot := range 2 {
			if err := f.write(id, slot); err != nil {
				return err
			}
		}
	}
	if len(r.unsettled)+len(r.unborn) > 0 {
		if err := f.st.Sync(); err != nil {
			return err
		}
	}
	if len(r.damaged) == 0 {
		return nil
	}
	return f.replaceDamaged(r)
}

// settlePair writes the newest slot's content over the other one.
func (f *File) settlePair(id pageID) error {
	slot := f.current(id)
	if err := f.read(id, slot); err != nil {
		return err
	}
	c := judge(f.buf[:], id, f.id)
	if c.condition != intact {
		return fmt.Errorf("%v: it reads differently the second time: %w", id, ErrDamaged)
	}
	seal(f.buf[:], id, f.id, c.seq, !c.mirror)
	return f.write(id, 1-slot)
}

// replaceDamaged commits all-set content for the damaged pages.
func (f *File) replaceDamaged(r *recovery) error {
	f.seq++
	fill := func(id pageID) {
		content := f.buf[headerBytes:]
		clear(content)
		for i := range f.lay.bits(id) {
			content[i/8] |= 1 << (i % 8)
		}
	}
	for _, mirror := range []bool{false, true} {
		for _, id := range r.damaged {
			fill(id)
			if err := f.put(id, mirror); err != nil {
				return err
			}
		}
		if err := f.st.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// Commit writes everything in b, then syncs once. Durable on return. It is not
// atomic: after a crash inside Commit any subset of its pages is there, each
// whole; what must not be there without something else goes into a later Commit.
// After an error the file has failed: this and every later Commit returns
// ErrFailed (ErrInvalid excepted: nothing was written then). The caller
// serialises Commits; b is the caller's again on return.
func (f *File) Commit(b *Batch) error {
	if f.failed != nil {
		return f.failed
	}
	if err := f.check(b); err != nil {
		return err
	}
	f.seq++
	if err := f.writeAll(b, false); err != nil {
		return f.fail(err)
	}
	if err := f.st.Sync(); err != nil {
		return f.fail(fmt.Errorf("sync: %w", err))
	}
	if b.Super != nil {
		f.peers = f.peers[:0]
		for _, p := range b.Super.Peers {
			f.peers = append(f.peers, p.Name)
		}
	}
	// Durable with the next sync or when the system writes back.
	if err := f.writeAll(b, true); err != nil {
		return f.fail(err)
	}
	return nil
}

func (f *File) fail(err error) error {
	f.failed = fmt.Errorf("%s: %w: %w", f.name, ErrFailed, err)
	return f.failed
}

// writeAll writes the pages of a batch, or their mirrors.
func (f *File) writeAll(b *Batch, mirror bool) error {
	for _, p := range b.Bitmap {
		copy(f.buf[headerBytes:], p.Data)
		if err := f.put(pageID{kind: kindBitmap, slot: p.Slot, index: p.Page}, mirror); err != nil {
			return err
		}
	}
	for _, p := range b.Activity {
		copy(f.buf[headerBytes:], p.Data)
		if err := f.put(pageID{kind: kindActivity, index: p.Index}, mirror); err != nil {
			return err
		}
	}
	if b.Super == nil {
		return nil
	}
	b.Super.encode(f.buf[:])
	return f.put(pageID{kind: kindSuper}, mirror)
}

// put writes the page whose content is in buf into the slot that the commit
// uses, or its mirror into the other, which the next commit will use.
func (f *File) put(id pageID, mirror bool) error {
	slot := 1 - f.current(id)
	if mirror {
		slot = 1 - slot
	}
	seal(f.buf[:], id, f.id, f.seq, mirror)
	if err := f.write(id, slot); err != nil {
		return err
	}
	if mirror {
		f.toggle(id)
	}
	return nil
}

// check says why a batch cannot be written.
func (f *File) check(b *Batch) (err error) {
	peers := len(f.peers)
	if s := b.Super; s != nil {
		if err := f.checkSuper(s); err != nil {
			return err
		}
		peers = len(s.Peers)
	}
	if f.seq == math.MaxUint64 {
		return fmt.Errorf("%w: no commit sequence left", ErrInvalid)
	}
	taken := 0 // pages whose busy bit is set
	take := func(id pageID, data []byte) error {
		pair := f.lay.pair(id)
		bit := uint64(1) << (uint(pair) % 64)
		switch {
		case len(data) != bitmap.PageBytes || !clearFrom(data, f.lay.bits(id)):
			return fmt.Errorf("%w: %v: %d bytes, or bits beyond the end", ErrInvalid, id, len(data))
		case f.busy[pair/64]&bit != 0:
			return fmt.Errorf("%w: %v is twice in the batch", ErrInvalid, id)
		}
		f.busy[pair/64] |= bit
		taken++
		return nil
	}
	defer func() {
		for i := range taken {
			pair := f.lay.pair(b.page(i))
			f.busy[pair/64] &^= 1 << (uint(pair) % 64)
		}
	}()
	for _, p := range b.Bitmap {
		if p.Slot < 0 || p.Slot >= peers || p.Page < 0 || p.Page >= f.lay.bitmap {
			return fmt.Errorf("%w: bitmap page %d of slot %d; there are %d pages and %d peers", ErrInvalid, p.Page, p.Slot, f.lay.bitmap, peers)
		}
		if err := take(pageID{kind: kindBitmap, slot: p.Slot, index: p.Page}, p.Data); err != nil {
			return err
		}
	}
	for _, p := range b.Activity {
		if p.Index < 0 || p.Index >= f.lay.activity {
			return fmt.Errorf("%w: activity page %d of %d", ErrInvalid, p.Index, f.lay.activity)
		}
		if err := take(pageID{kind: kindActivity, index: p.Index}, p.Data); err != nil {
			return err
		}
	}
	return nil
}

// page returns the i-th page of the batch, in the order of check.
func (b *Batch) page(i int) pageID {
	if i < len(b.Bitmap) {
		return pageID{kind: kindBitmap, slot: b.Bitmap[i].Slot, index: b.Bitmap[i].Page}
	}
	return pageID{kind: kindActivity, index: b.Activity[i-len(b.Bitmap)].Index}
}

func (f *File) checkSuper(s *Super) error {
	if err := s.validate(); err != nil {
		return err
	}
	if s.Size != f.lay.size {
		return fmt.Errorf("%w: size %d of a volume of %d bytes", ErrInvalid, s.Size, f.lay.size)
	}
	if len(s.Peers) < len(f.peers) {
		return fmt.Errorf("%w: %d peers, there were %d", ErrInvalid, len(s.Peers), len(f.peers))
	}
	for i, name := range f.peers {
		if s.Peers[i].Name != name {
			return fmt.Errorf("%w: peer slot %d changes from %q to %q", ErrInvalid, i, name, s.Peers[i].Name)
		}
	}
	return nil
}

// current returns the slot of the newest committed version; 1 if there is none.
func (f *File) current(id pageID) int {
	pair := f.lay.pair(id)
	return 1 - int(f.next[pair/64]>>(uint(pair)%64)&1)
}

func (f *File) toggle(id pageID) {
	pair := f.lay.pair(id)
	f.next[pair/64] ^= 1 << (uint(pair) % 64)
}

func (f *File) offset(id pageID, slot int) int64 {
	return f.lay.pair(id)*pairSize + int64(slot)*pageSize
}

func (f *File) write(id pageID, slot int) error {
	off := f.offset(id, slot)
	if _, err := f.st.WriteAt(f.buf[:], off); err != nil {
		return fmt.Errorf("writing %v at byte %d: %w", id, off, err)
	}
	return nil
}

func (f *File) read(id pageID, slot int) error {
	off := f.offset(id, slot)
	if n, err := f.st.ReadAt(f.buf[:], off); n < pageSize {
		return fmt.Errorf("reading %v at byte %d: %w", id, off, err)
	}
	return nil
}

// Close syncs and closes the file. A file that has failed is only closed.
func (f *File) Close() error {
	var err error
	if f.failed == nil {
		if err = f.st.Sync(); err != nil {
			err = f.fail(fmt.Errorf("sync: %w", err))
		}
		f.failed = fmt.Errorf("%s: %w: it was closed", f.name, ErrFailed)
	}
	return errors.Join(err, f.st.Close())
}
