package volume

import (
	"context"
	"slices"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
)

// Tuning is the part of Options that may change while the volume runs; zero means
// what it means there.
type Tuning struct {
	MayResync     func(ctx context.Context, peer, why string) error
	AfterSB       protocol.SplitPolicy
	ArchiveMode   ArchiveMode
	WriteTimeout  time.Duration
	FlushInterval time.Duration
	FlushBytes    int64
	ActivityIdle  time.Duration
	NoData        NoData
	OnReadError   OnReadError
	DiskTimeout   time.Duration
	SyncWindow    int64
	SyncRate      int64
	SyncFloor     int64
}

// Tuning returns what of o may change later.
func (o *Options) Tuning() Tuning {
	return Tuning{MayResync: o.MayResync, AfterSB: o.AfterSB, ArchiveMode: o.ArchiveMode, WriteTimeout: o.WriteTimeout, FlushInterval: o.FlushInterval,
		FlushBytes: o.FlushBytes, ActivityIdle: o.ActivityIdle, NoData: o.NoData, OnReadError: o.OnReadError, DiskTimeout: o.DiskTimeout,
		SyncWindow: o.SyncWindow, SyncRate: o.SyncRate, SyncFloor: o.SyncFloor}
}

// withDefaults fills in what must not be zero.
func (t Tuning) withDefaults() Tuning {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&t.WriteTimeout, 10*time.Second)
	or(&t.FlushInterval, time.Second)
	or(&t.ActivityIdle, 30*time.Second)
	if t.FlushBytes == 0 {
		t.FlushBytes = 64 << 20
	}
	return t
}

// machine returns t as the machine takes it. REQUIRES withDefaults.
func (t *Tuning) machine() replica.Tuning {
	return replica.Tuning{AskTarget: t.MayResync != nil, Policy: t.AfterSB, WriteTimeout: int64(t.WriteTimeout), FlushInterval: int64(t.FlushInterval),
		FlushBytes: t.FlushBytes, ActivityIdle: int64(t.ActivityIdle), NoData: t.NoData, OnReadError: t.OnReadError, DiskTimeout: int64(t.DiskTimeout),
		Sync: resync.Options{WindowBytes: t.SyncWindow, RateBytes: t.SyncRate, FloorBytes: t.SyncFloor}}
}

// Tune implements Control.
func (v *Volume) Tune(t Tuning) {
	t = t.withDefaults()
	v.mu.Lock()
	defer v.unlockAndRun()
	if v.closed {
		return
	}
	v.tuned.Store(&t)
	v.m.Tune(v.now(), t.machine())
}

// AddPeer implements Control.
func (v *Volume) AddPeer(p PeerConfig) error {
	v.mu.Lock()
	defer v.unlockAndRun()
	if v.closed {
		return refuse(protocol.CodeShutdown, "volume %s is closed", v.opt.Name)
	}
	if v.replacing {
		return refuse(protocol.CodeBusy, "the disk of %s is being replaced: try again when it is done", v.opt.Name)
	}
	r, ok := v.regions.with(p.Name)
	if !ok {
		return refuse(protocol.CodeNotAllowed, "volume %s: no metadata slot is free for peer %s: %d peers were configured in its life", v.opt.Name, p.Name, protocol.PeersMax)
	}
	if err := v.m.AddPeer(v.now(), p.machine()); err != nil {
		return publicError(err)
	}
	v.regions = r
	v.links = append(v.links, nil)
	v.applying = append(v.applying, nil)
	list := append(slices.Clone(v.peers()), p)
	v.peerList.Store(&list)
	return nil
}

// peers returns the peers by PeerID. The list only grows.
func (v *Volume) peers() []PeerConfig { return *v.peerList.Load() }

// regions says which peer slot of the metadata is whose. Never changed once it is
// the volume's: a commit under way goes by the one that it began with.
type regions struct {
	slots  []int // by PeerID
	former []goneSlot
}

// with returns the regions with one more peer; false: there is no room.
func (r *regions) with(name string) (*regions, bool) {
	out := &regions{slots: slices.Clone(r.slots)}
	slot := len(r.slots) + len(r.former)
	for _, g := range r.former {
		if g.slot.Name == name {
			slot = g.index
			continue
		}
		out.former = append(out.former, g)
	}
	out.slots = append(out.slots, slot)
	return out, slot < protocol.PeersMax
}
