package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// DestroyOffline destroys this node's replica when no agent runs; it holds the node's
// lock meanwhile (ErrLocked). Nobody can be asked for another copy then: a replica that
// holds data is refused without r.Force.
func DestroyOffline(c *config.Config, name string, r control.DestroyRequest) error {
	v := c.Volume(name)
	if v == nil {
		return unknownVolume(c, name)
	}
	lock, err := lockState(c.Node.State)
	if err != nil {
		return err
	}
	if !r.Force {
		err = mayDestroyOffline(c, name)
	}
	if err == nil {
		err = destroyFiles(c, v, r)
	}
	return errors.Join(err, lock.release())
}

func mayDestroyOffline(c *config.Config, name string) error {
	s, err := meta.Look(c.MetaPath(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // destroyFiles says so
	case err != nil:
		return fmt.Errorf("what volume %s holds is not known (%w): --force destroys it all the same", name, err)
	case s.Current == 0:
		return nil // it never held data
	case s.Primary:
		return fmt.Errorf("volume %s was primary on %s when it stopped, and may hold the newest data: start the agent and demote it, or use --force", name, c.Node.Name)
	}
	return fmt.Errorf("the agent is not running, so that no other copy of volume %s can be looked for: start it, or use --force", name)
}

// Destroy implements control.Node.
func (a *Agent) Destroy(ctx context.Context, name string, r control.DestroyRequest) error {
	s, end, err := a.occupy(name)
	if err != nil {
		return err
	}
	defer end()
	s.closeDoor()
	defer s.openDoor()
	if err := a.clear(ctx, s, false); err != nil {
		return err
	}
	refused := func(err error) error { return &volume.Error{Code: protocol.CodeNotAllowed, Text: err.Error()} }
	if vol, closed := s.opened(); closed == nil {
		if err := mayDestroy(vol.Status(), r.Force); err != nil {
			return refused(err)
		}
		a.put(s, nil, errors.New("it is being destroyed"))
		if err := vol.Close(ctx); err != nil {
			a.log.Warn("closing a volume that is destroyed", "volume", name, "err", err)
		}
	} else if !r.Force {
		if err := mayDestroyOffline(a.cfg, name); err != nil {
			return refused(err)
		}
	}
	if err := destroyFiles(a.cfg, s.live(), r); err != nil {
		a.put(s, nil, fmt.Errorf("it was not destroyed to the end: %w. Correct that and run qrbd destroy again", err))
		return &volume.Error{Code: protocol.CodeDiskFailed, Text: err.Error()}
	}
	s.verify.forget()
	a.put(s, nil, errNotCreated)
	a.log.Info("volume destroyed", "volume", name, "backing", r.Backing, "archives", r.Archives)
	return nil
}

// mayDestroy refuses to destroy a copy that is in use, or that nobody else is known to
// have in full.
func mayDestroy(st volume.Status, force bool) error {
	if st.Role == protocol.Primary.String() {
		return fmt.Errorf("volume %s is primary here: demote it first, or hand it over with qrbd switchover", st.Name)
	}
	if force || st.Generation == protocol.Generation(0).String() {
		return nil
	}
	for _, p := range st.Peers {
		if p.Connection == protocol.Connected.String() && p.Replication == protocol.Established.String() && p.Disk == protocol.UpToDate.String() && p.OutOfSync == 0 {
			return nil
		}
	}
	return fmt.Errorf("no connected peer of volume %s is known to have all of its data: connect one and wait until it is in sync, or use --force to destroy what may be the last copy", st.Name)
}

// destroyFiles removes a replica. First it loses its identity, durably: whatever a crash
// leaves of the rest is never taken for a copy. The metadata file goes last, so that a
// destroy that was cut short is begun again. REQUIRES: the node's lock; nothing is open.
func destroyFiles(c *config.Config, v *config.Volume, r control.DestroyRequest) error {
	metaPath := c.MetaPath(v.Name)
	err := meta.Wipe(metaPath)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("volume %s is not created on this node: there is nothing to destroy", v.Name)
	}
	if err != nil {
		return err
	}
	if r.Archives {
		err = os.RemoveAll(c.ArchivePath(v.Name))
	} else {
		err = archive.SealAll(archive.Directory(c.ArchivePath(v.Name)), time.Now(), "the replica was destroyed")
	}
	if err != nil {
		return fmt.Errorf("archives of volume %s: %w", v.Name, err)
	}
	if r.Backing {
		if err := destroyBacking(v); err != nil {
			return err
		}
	}
	if err := os.Remove(c.VerifyPath(v.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("records of verifies: %w", err)
	}
	return meta.Remove(metaPath)
}

// destroyBacking removes a file; a block device is zeroed as far as create looks for data.
func destroyBacking(v *config.Volume) error {
	fail := func(err error) error { return fmt.Errorf("backing store of volume %s: %w", v.Name, err) }
	fi, err := os.Stat(v.Backing)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fail(err)
	case fi.Mode().IsRegular():
		if err := os.Remove(v.Backing); err != nil {
			return fail(err)
		}
		return blockdev.SyncDir(filepath.Dir(v.Backing))
	}
	store, err := blockdev.OpenBlock(v.Backing)
	if err != nil {
		return fail(err)
	}
	defer store.Close()
	if err := store.Zero(0, min(signatureBytes, store.Size()), blockdev.NoHole); err != nil {
		return fail(err)
	}
	if err := store.Flush(); err != nil {
		return fail(err)
	}
	return nil
}

// forget drops the records of a volume that is destroyed; its file is gone already.
func (v *verifier) forget() {
	v.mu.Lock()
	clear(v.records)
	v.mu.Unlock()
}
