package archive

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// Options of a Dir.
type Options struct {
	Shelf  Shelf
	Volume string
	Node   string
	Size   int64 // of the volume, bytes
	// Limit is how many bytes an archive may grow after the sync that it was begun
	// for has ended. Zero: it is sealed then.
	Limit int64
	// Reserve is what stays free on the shelf, bytes. Zero: DefaultReserve.
	Reserve int64
	// Vouched is the file id of the archive that the volume's metadata call kept up;
	// zero: none. Every other is sealed, or, if the disk does not take that, counts as
	// sealed: nothing tells what was overwritten beside it.
	Vouched uint64
	Now     func() time.Time // required
	Rand    func() uint64    // required; never zero
}

// DefaultReserve stays free where archives are: the metadata, which a full file
// system would stop, is often there too.
const DefaultReserve = 64 << 20

// Dir holds the archives of one volume. Safe for concurrent use.
type Dir struct {
	opt  Options
	base Base

	live atomic.Pointer[File] // set under mu

	mu sync.Mutex // held across I/O: it serialises beginnings, ends and looks
}

// OpenDir reads the shelf. What cannot be read is listed with the reason (List) and
// keeps nothing from working. The base is the volume's store; it stays the caller's.
func OpenDir(o Options, base Base) (*Dir, error) {
	if o.Reserve == 0 {
		o.Reserve = DefaultReserve
	}
	d := &Dir{opt: o, base: base}
	names, err := o.Shelf.Names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // by time
	slices.Reverse(names)
	for _, name := range names {
		_ = d.openOne(name)
	}
	return d, nil
}

// openOne finds out whether an archive is live.
func (d *Dir) openOne(name string) error {
	f, err := d.read(name)
	if err != nil {
		return err
	}
	switch {
	case f.Phase() == Sealed:
	case f.head.File == d.opt.Vouched:
		d.adopt(f)
		return nil
	default:
		if err = f.seal(d.opt.Now(), notKeptUp); err == nil && f.Info().Blocks == 0 { // begun, and nothing was overwritten
			return errors.Join(f.Release(), d.opt.Shelf.Remove(name))
		}
	}
	return errors.Join(err, f.Release())
}

// read opens an archive for writing.
func (d *Dir) read(name string) (*File, error) {
	st, err := d.opt.Shelf.Open(name)
	if err != nil {
		return nil, err
	}
	f, err := open(st, true)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	if f.head.Size > d.opt.Size || f.head.Volume != d.opt.Volume {
		return nil, errors.Join(fmt.Errorf("%w of this volume, but of %s with %d bytes", ErrNotArchive, f.head.Volume, f.head.Size), st.Close())
	}
	if f.damage != nil {
		return nil, errors.Join(f.damage, st.Close())
	}
	return f, nil
}

// SealAll seals every archive of a shelf whose volume's store is replaced. What
// cannot be read is left as it is: without metadata that vouch for it, it counts as
// sealed.
func SealAll(s Shelf, now time.Time, why string) error {
	names, err := s.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := s.Open(name)
		if err != nil {
			return err
		}
		f, err := open(st, true)
		if err != nil {
			st.Close()
			continue
		}
		if f.Phase() != Sealed {
			err = f.seal(now, why)
		}
		if err := errors.Join(err, f.Release()); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return nil
}

func (d *Dir) adopt(f *File) {
	f.limit = d.opt.Limit
	f.room = func(more int64) error { return d.room(more + d.opt.Reserve) }
	d.live.Store(f)
}

// room reports whether need bytes are free.
func (d *Dir) room(need int64) error {
	free, err := d.opt.Shelf.Free()
	if err != nil {
		return err
	}
	if free < need {
		return &RoomError{d.opt.Shelf.Path(), need, free}
	}
	return nil
}

// Start describes what a sync is about to overwrite here.
type Start struct {
	Winner  string
	Rule    string
	ID      protocol.VolumeID
	Lost    protocol.Generation
	Kept    protocol.Generation
	Parent  protocol.Generation
	History []protocol.Generation
	Disk    protocol.Disk
	Full    bool
	Resumed bool  // the archive of Lost is there, and goes on
	Blocks  int64 // that will be overwritten at most; not looked at when Full
}

// Begin makes sure that everything can be kept, and that it will be: a live archive
// is there, durably, when it returns nil. *RoomError: it does not fit.
func (d *Dir) Begin(s Start) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Resumed {
		return d.resume(s)
	}
	need, err := d.need(s)
	if err != nil {
		return err
	}
	if err := d.room(need + d.opt.Reserve); err != nil {
		return err
	}
	if err := d.endLive("another side was given up"); err != nil {
		return err
	}
	h := Header{File: d.opt.Rand(), Time: d.opt.Now().UTC(), Volume: d.opt.Volume, Node: d.opt.Node, Winner: s.Winner, Rule: s.Rule, Size: d.opt.Size,
		Full: s.Full, ID: s.ID, Lost: s.Lost, Kept: s.Kept, Parent: s.Parent, History: s.History, Disk: s.Disk}
	st, err := d.opt.Shelf.Create(h.Name())
	if err != nil {
		return err
	}
	f, err := create(st, h)
	if err != nil {
		return errors.Join(err, st.Close(), d.opt.Shelf.Remove(h.Name()))
	}
	d.adopt(f)
	return nil
}

// need returns how many bytes an archive may take: what is to be overwritten, or
// what the volume holds, whichever is less, with the heads.
func (d *Dir) need(s Start) (int64, error) {
	held := int64(0)
	for off := int64(0); off < d.opt.Size; {
		exts, err := d.base.Extents(off, d.opt.Size-off, 1024)
		if err != nil {
			return 0, fmt.Errorf("archive: %w", err)
		}
		for _, e := range exts {
			off += e.Len
			if !e.Zero {
				from, to := blockRange(e.Off, e.Len)
				held += (to - from) * blockSize
			}
		}
		if !s.Full && held >= s.Blocks*blockSize {
			break
		}
	}
	if !s.Full {
		held = min(held, s.Blocks*blockSize)
	}
	return dataAt + held + held/64, nil // a head of 4.5 KiB for 1 MiB, rounded up generously
}

// resume goes on with the archive of an interrupted sync.
func (d *Dir) resume(s Start) error {
	f := d.live.Load()
	if f == nil { // it could not be opened; nothing was overwritten since
		if err := d.openVouched(s.Lost); err != nil {
			return err
		}
		f = d.live.Load()
	}
	if f == nil || f.head.Lost != s.Lost {
		return fmt.Errorf("%w: generation %s, in %s", ErrMissing, s.Lost, d.opt.Shelf.Path())
	}
	if f.err() != nil {
		var err error
		if f, err = d.reopen(f); err != nil {
			return err
		}
	}
	if err := d.room(d.opt.Reserve + blockSize); err != nil {
		return err
	}
	if f.Phase() == Collecting {
		return nil
	}
	return f.change(func(st *state) { st.phase, st.whole = Collecting, false })
}

// openVouched makes the archive that the metadata vouch for live, if it is that of
// lost. REQUIRES d.mu.
func (d *Dir) openVouched(lost protocol.Generation) error {
	names, err := d.opt.Shelf.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := d.look(name)
		if err != nil {
			continue // whatever it is
		}
		is := f.head.File == d.opt.Vouched && f.head.Lost == lost
		if err := f.Release(); err != nil || !is {
			continue
		}
		if f, err = d.read(name); err != nil {
			return err
		}
		if f.Phase() == Sealed {
			return f.Release()
		}
		d.adopt(f)
		return nil
	}
	return nil
}

// reopen takes a file that has failed for what is on the disk now. It stays live
// throughout: nothing is overwritten meanwhile. REQUIRES d.mu.
func (d *Dir) reopen(old *File) (*File, error) {
	old.write.Lock() // nobody is half-way through an append
	defer old.write.Unlock()
	f, err := d.read(old.head.Name())
	if err != nil {
		return nil, err
	}
	d.adopt(f)
	return f, old.Release()
}

// ID returns the file id of the live archive; zero: none.
func (d *Dir) ID() uint64 {
	if d == nil {
		return 0
	}
	if f := d.live.Load(); f != nil {
		return f.head.File
	}
	return 0
}

// Abandon gives the live archive up, if it is the one of that file id, without a word
// of that on its disk. REQUIRES that the metadata do not vouch for it any more,
// durably.
func (d *Dir) Abandon(id uint64) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if id == 0 || d.ID() != id {
		return nil
	}
	return d.drop()
}

// drop forgets the live archive without sealing it. REQUIRES d.mu.
func (d *Dir) drop() error {
	f := d.live.Load()
	d.live.Store(nil)
	return f.Release()
}

// endLive seals the live archive; one that holds nothing is removed. One that cannot
// be sealed (*UnsealedError) collects no longer, and stays live. REQUIRES d.mu.
func (d *Dir) endLive(why string) error {
	f := d.live.Load()
	if f == nil {
		return nil
	}
	if err := f.seal(d.opt.Now(), why); err != nil {
		f.follow()
		return &UnsealedError{f.head.File, f.head.Name(), err}
	}
	empty, unused := f.Info().Blocks == 0, f.inUse() == 1
	if err := d.drop(); err != nil {
		return err
	}
	if empty && unused {
		return d.opt.Shelf.Remove(f.head.Name())
	}
	return nil
}

// Live reports whether Keep has anything to do.
func (d *Dir) Live() bool { return d != nil && d.live.Load() != nil }

// Keep archives what the ranges hold, as far as a live archive lacks it; a range
// with Zero is about to be zeroed. After nil the ranges may be overwritten. An error
// says that they must not be: the archive of a sync that discards cannot take them.
// An archive that only follows is sealed instead. *UnsealedError: that cannot be made
// durable; nothing may be overwritten before the metadata disown the archive and it is
// abandoned.
func (d *Dir) Keep(list ...blockdev.Extent) error {
	if d == nil {
		return nil
	}
	for {
		f := d.live.Load()
		if f == nil {
			return nil
		}
		err := f.keep(list, d.base)
		if err == nil {
			return nil
		}
		if d.live.Load() != f {
			continue // it was sealed, or opened anew
		}
		if f.Phase() == Collecting {
			return fmt.Errorf("the archive of the side that is given up cannot take what is about to be overwritten: %w", err)
		}
		if err := d.Seal(err.Error()); err != nil && d.live.Load() == f {
			return err
		}
	}
}

// Complete says that the sync which overwrites a side has ended, or never began: from
// now on its archive follows. If that is not the live one nothing happens. An error
// says that the disk does not know; the archive has failed, and what it cannot keep
// has it sealed or disowned.
func (d *Dir) Complete(lost protocol.Generation) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.live.Load()
	switch {
	case f == nil || f.Phase() != Collecting || f.head.Lost != lost:
		return nil
	case d.opt.Limit == 0:
		return d.endLive("the sync has ended, and archive_limit is zero")
	}
	err := f.complete(d.opt.Now())
	if err != nil {
		f.follow()
	}
	return err
}

// Seal ends the live archive, durably, or it is an *UnsealedError.
func (d *Dir) Seal(why string) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLive(why)
}

// SealOne is Seal of the archive of that file id, if it is live.
func (d *Dir) SealOne(id uint64, why string) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ID() != id {
		return nil
	}
	return d.endLive(why)
}

// Lost returns the generation that the live archive collects; zero: none.
func (d *Dir) Lost() protocol.Generation {
	if d == nil {
		return 0
	}
	if f := d.live.Load(); f != nil && f.Phase() == Collecting {
		return f.head.Lost
	}
	return 0
}

// Close gives the live archive up; it goes on at the next OpenDir.
func (d *Dir) Close() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live.Load() == nil {
		return nil
	}
	return d.drop()
}
