package archive

import (
	"fmt"
	"slices"
	"time"
)

// Info is what is known of an archive.
type Info struct {
	Name   string
	Header Header
	Phase  Phase
	Blocks int64 // archived
	Bytes  int64 // of the file
	Synced time.Time
	Sealed time.Time
	Why    string // it was sealed
	Err    error  // it cannot be read, or is damaged
}

// notKeptUp is why an archive that does not say that it is sealed counts as sealed.
const notKeptUp = "it was not kept up: nothing tells what was overwritten beside it"

// Exact reports whether the view is the lost side to the last block.
func (i *Info) Exact() bool { return i.Err == nil && i.Phase != Sealed }

// Info describes the archive.
func (f *File) Info() Info {
	f.mu.RLock()
	defer f.mu.RUnlock()
	i := Info{Name: f.head.Name(), Header: f.head, Phase: f.state.phase, Blocks: f.idx.count, Bytes: f.end,
		Synced: f.state.synced, Sealed: f.state.sealed, Why: f.state.why, Err: f.damage}
	if i.Err == nil {
		i.Err = f.failed
	}
	return i
}

// List describes every archive, oldest first.
func (d *Dir) List() ([]Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.opt.Shelf.Names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []Info
	for _, name := range names {
		f, err := d.look(name)
		if err != nil {
			out = append(out, Info{Name: name, Err: err})
			continue
		}
		out = append(out, f.Info())
		if err := f.Release(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// look returns the archive of that name, for reading. REQUIRES d.mu.
func (d *Dir) look(name string) (*File, error) {
	if f := d.live.Load(); f != nil && f.head.Name() == name {
		f.retain()
		return f, nil
	}
	names, err := d.opt.Shelf.Names()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, name) { // nor is a path taken for a name
		return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	st, err := d.opt.Shelf.Open(name)
	if err != nil {
		return nil, err
	}
	f, err := open(st, false)
	if err != nil {
		st.Close()
		return nil, err
	}
	if f.state.phase != Sealed { // Invariant: what is exact is live
		f.state.phase, f.state.sealed, f.state.why = Sealed, f.head.Time, notKeptUp
	}
	return f, nil
}

// Look returns an archive for reading; the caller releases it. A damaged one is
// ErrDamaged.
func (d *Dir) Look(name string) (*File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.look(name)
	if err != nil {
		return nil, err
	}
	if i := f.Info(); i.Err != nil {
		f.Release()
		return nil, i.Err
	}
	return f, nil
}

// Remove deletes an archive. One that collects is refused (ErrInUse): what it holds
// is nowhere else.
func (d *Dir) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.opt.Shelf.Names()
	if err != nil {
		return err
	}
	if !slices.Contains(names, name) {
		return fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	if f := d.live.Load(); f != nil && f.head.Name() == name {
		if f.Phase() == Collecting {
			return fmt.Errorf("%w: the sync that fills it has not ended", ErrInUse)
		}
		if err := d.drop(); err != nil {
			return err
		}
	}
	return d.opt.Shelf.Remove(name)
}
