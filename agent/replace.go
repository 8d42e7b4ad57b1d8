package agent

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// base is the store that a volume uses now, as its archives see it. It outlives a
// disk that is replaced.
type base struct {
	store atomic.Pointer[blockdev.Device]
}

func (b *base) set(d blockdev.Device) { b.store.Store(&d) }

func (b *base) ReadAt(p []byte, off int64) error { return (*b.store.Load()).ReadAt(p, off) }

func (b *base) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	return (*b.store.Load()).Extents(off, n, limit)
}

// ReplaceDisk implements control.Node: an empty disk takes the place of the failed
// one, at the path that the configuration names. A primary goes on meanwhile.
func (a *Agent) ReplaceDisk(ctx context.Context, name string) error {
	s, vol, end, err := a.findIdle(name)
	if err != nil {
		return err
	}
	defer end()
	st := vol.Status()
	if st.Disk != protocol.Failed.String() {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf(
			"the disk of %s on %s is %s, not failed: its data would be lost. To start anew on purpose: stop the agent and run qrbd create %s --force", name, a.cfg.Node.Name, st.Disk, name)}
	}
	if st.Role == protocol.Primary.String() {
		return vol.ReplaceDisk(ctx, func() (volume.Disk, error) { return a.freshDisk(s) })
	}
	return a.reopenEmpty(ctx, s, vol)
}

// freshDisk makes backing store and metadata anew and opens them.
func (a *Agent) freshDisk(s *slot) (volume.Disk, error) {
	if err := createFiles(a.cfg, s.live(), true); err != nil {
		return volume.Disk{}, &volume.Error{Code: protocol.CodeDiskFailed, Text: err.Error()}
	}
	d, err := openDisk(a, s.live())
	if err != nil {
		return volume.Disk{}, &volume.Error{Code: protocol.CodeDiskFailed, Text: err.Error()}
	}
	s.base.set(d.Store)
	a.log.Info("disk replaced", "volume", s.cfg.Name, "backing", s.cfg.Backing)
	return d, nil
}

// reopenEmpty replaces the disk of a secondary: nobody but its peers uses it, and
// they are connected anew.
func (a *Agent) reopenEmpty(ctx context.Context, s *slot, vol running) error {
	name := s.cfg.Name
	a.put(s, nil, fmt.Errorf("its disk is being replaced"))
	if err := vol.Close(ctx); err != nil {
		a.log.Warn("closing a volume whose disk failed", "volume", name, "err", err)
	}
	if err := createFiles(a.cfg, s.live(), true); err != nil {
		err = fmt.Errorf("its disk failed, and could not be replaced: %w. Correct that, then run: qrbd create %s --force", err, name)
		a.put(s, nil, err)
		return &volume.Error{Code: protocol.CodeDiskFailed, Text: err.Error()}
	}
	a.log.Info("disk replaced", "volume", name, "backing", s.cfg.Backing)
	return a.openLinked(s)
}
