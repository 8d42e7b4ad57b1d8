package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// resizePause bounds what a volume is away for while it is resized: closing it, opening
// it, and on a primary finding its peers again.
const resizePause = 60 * time.Second

// A peer that has just been resized may still be on its way back: a resize of the primary
// gives it that long to say its size.
const (
	sizeWait = 10 * time.Second
	sizeLook = 50 * time.Millisecond
)

var errResizing = errors.New("it is being resized")

// Resize implements control.Node: this node's replica gets larger. The backing store is
// made longer, and what is new zeroed, while the volume runs; then the volume is closed
// and opened with its new size, as by a restart of the agent. Replicas of two sizes do
// not connect: meanwhile the primary remembers what the others lack. A cut at any moment
// leaves the old size or the new one.
func (a *Agent) Resize(ctx context.Context, name string, r control.ResizeRequest) error {
	s, end, err := a.occupy(name)
	if err != nil {
		return err
	}
	defer end()
	g := &growth{a: a, s: s, r: r}
	if err := g.check(ctx); err != nil {
		code, text := errorText(err)
		if code == protocol.CodeInternal {
			code = protocol.CodeNotAllowed
		}
		return &volume.Error{Code: code, Text: text}
	}
	if g.from == r.Size {
		g.hold()
		return nil
	}
	if err := blockdev.Grow(s.cfg.Backing, g.from, r.Size); err != nil {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("nothing was changed: backing store of volume %s: %v", name, err)}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resizePause) // whoever asked may be gone: it is brought to an end
	defer cancel()
	return g.grow(ctx)
}

// growth is one Resize.
type growth struct {
	a       *Agent
	s       *slot
	r       control.ResizeRequest
	vol     running // nil: not open
	from    int64   // bytes
	primary bool
}

// check refuses what must not be begun, and finds out what there is.
func (g *growth) check(ctx context.Context) error {
	name, size := g.s.cfg.Name, g.r.Size
	if g.s.cfg.Witness {
		return fmt.Errorf("%s is a witness of volume %s and holds no data: write the new size into its configuration and restart the agent", g.a.cfg.Node.Name, name)
	}
	next, err := g.a.loadConfig()
	if err != nil {
		return err
	}
	switch v := next.Volume(name); {
	case v == nil || v.Size != size:
		return fmt.Errorf("write the size that you want for volume %s, %d bytes, into %s first: the agent starts with what is there", name, size, g.a.cfg.File)
	case v.Backing != g.s.cfg.Backing:
		return fmt.Errorf("the backing of volume %s is changed in %s, too: restart the agent first", name, g.a.cfg.File)
	}
	vol, closed := g.s.opened()
	if closed != nil {
		super, err := meta.Look(g.a.cfg.MetaPath(name))
		if err != nil {
			return closed
		}
		if err := meta.Check(&super, super.Size, name, g.a.cfg.Node.Name); err != nil {
			return err
		}
		g.from = super.Size
	} else {
		st := statusWithSizes(ctx, vol)
		g.vol, g.from, g.primary = vol, st.Size, st.Role == protocol.Primary.String()
		if err := g.checkRunning(st); err != nil {
			return err
		}
	}
	if size < g.from {
		return fmt.Errorf("volume %s has %d bytes and cannot be made smaller, which would cut data off: make another volume of %d bytes and copy what you need", name, g.from, size)
	}
	return nil
}

// checkRunning: a primary comes back as one only if its peers are there to agree, and
// those of another size are not.
func (g *growth) checkRunning(st volume.Status) error {
	// Blocks that an up-to-date disk cannot read do not stand in the way: they are found again,
	// and peers that have the new size, which they would be read from, only then connect.
	if st.Disk == protocol.Failed.String() || st.DiskLacks > 0 && st.Disk != protocol.UpToDate.String() {
		return fmt.Errorf("the disk of volume %s is not in order: qrbd status %s", st.Name, st.Name)
	}
	if !g.primary || g.from == g.r.Size {
		return nil
	}
	if err := peersResized(st, g.r.Size); err != nil {
		return err
	}
	// An attached device is no client that sees it: its requests wait.
	n := 0
	if d := g.a.doorOf(g.s); d != nil {
		n = d.server.Clients(st.Name)
	}
	if n > 0 && !g.r.Force {
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf(
			"volume %s is in use by %s: they are disconnected for a moment, and see the new size when they connect again. If they do that by themselves, or after unmounting, use --force", st.Name, count(n, "client"))}
	}
	return nil
}

// peersResized refuses while a peer that holds data is not known to have the size, bytes.
func peersResized(st volume.Status, size int64) error {
	for _, p := range st.Peers {
		switch {
		case p.Witness:
		case p.Size == 0:
			return fmt.Errorf("the primary is resized last, and %s has not said how large its replica is: connect it, run qrbd resize %s there, and try again", p.Name, st.Name)
		case p.Size != size:
			return fmt.Errorf("the primary is resized last: run qrbd resize %s on %s first (it has %d bytes there)", st.Name, p.Name, p.Size)
		}
	}
	return nil
}

// statusWithSizes returns the status once every peer that holds data has said the size of
// its replica, or sizeWait after.
func statusWithSizes(ctx context.Context, vol running) volume.Status {
	ctx, cancel := context.WithTimeout(ctx, sizeWait)
	defer cancel()
	look := time.NewTicker(sizeLook)
	defer look.Stop()
	for {
		st := vol.Status()
		unknown := func(p volume.PeerStatus) bool { return !p.Witness && p.Size == 0 }
		if st.Role != protocol.Primary.String() || !slices.ContainsFunc(st.Peers, unknown) {
			return st
		}
		select {
		case <-ctx.Done():
			return st
		case <-look.C:
		}
	}
}

// grow closes, grows and opens the volume. Whatever goes wrong on the way, it is opened
// again, with the size that its metadata have then.
func (g *growth) grow(ctx context.Context) error {
	a, s, name := g.a, g.s, g.s.cfg.Name
	s.closeDoor()
	defer s.openDoor()
	if g.vol != nil {
		if err := a.interruptService(s, g.vol); err != nil {
			return err
		}
		if err := a.clear(ctx, s, true); err != nil {
			a.resumeService(s, g.vol)
			return err
		}
		s.verify.halt(errResizing)
		a.put(s, nil, errResizing)
		if err := g.vol.Close(ctx); err != nil {
			a.log.Warn("closing a volume that is resized", "volume", name, "err", err)
		}
	}
	err := g.keepsArchive()
	if err == nil {
		err = archive.SealAll(archive.Directory(a.cfg.ArchivePath(name)), time.Now(), "the volume was resized")
	}
	if err == nil {
		err = meta.Grow(a.cfg.MetaPath(name), g.r.Size)
	}
	if err == nil {
		g.hold()
		a.log.Info("volume resized", "volume", name, "old", g.from, "new", g.r.Size)
	}
	a.open(s)
	vol, closed := s.opened()
	if closed != nil {
		return errors.Join(err, closed)
	}
	a.links.volumeOpened(s)
	if g.primary {
		err = errors.Join(err, g.promote(ctx, vol))
		a.resumeService(s, vol)
	}
	if err != nil {
		return &volume.Error{Code: protocol.CodeDiskFailed, Text: err.Error()}
	}
	return nil
}

// keepsArchive refuses to end the archive of a side that a sync, which is not at its end,
// overwrites: that sync would find no place for what it overwrites next. REQUIRES the volume
// closed.
func (g *growth) keepsArchive() error {
	name := g.s.cfg.Name
	super, err := meta.Look(g.a.cfg.MetaPath(name))
	if err != nil || super.Lost == 0 || super.Archive == 0 || g.r.Force {
		return err
	}
	return fmt.Errorf("nothing was changed: volume %s is being overwritten here, and what it loses is archived, which would end: wait until it is in sync (qrbd wait %s --for up-to-date) and resize it then. If its peers have another size already, or to give up what is not archived yet: archive = \"off\" in the volume's section, and qrbd resize %s %d --force",
		name, name, name, g.r.Size)
}

// promote makes a primary what it was, once its peers are there again.
func (g *growth) promote(ctx context.Context, vol running) error {
	for {
		err := vol.Promote(ctx, volume.PromoteOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-time.After(fencedRetry):
		case <-ctx.Done():
			return fmt.Errorf("volume %s is not primary here any more: %w", g.s.cfg.Name, err)
		}
	}
}

// hold makes the new size the one that is configured.
func (g *growth) hold() {
	v := *g.s.live()
	v.Size = g.r.Size
	g.s.effective.Store(&v)
	g.s.verify.size.Store(v.Size)
	g.a.reloading.Lock()
	defer g.a.reloading.Unlock()
	c := *g.a.config.Load()
	c.Volumes = slices.Clone(c.Volumes)
	if i := slices.IndexFunc(c.Volumes, func(v config.Volume) bool { return v.Name == g.s.cfg.Name }); i >= 0 {
		c.Volumes[i].Size = v.Size
	}
	g.a.config.Store(&c)
	limitMemory(&c)
}
