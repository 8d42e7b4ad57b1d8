package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

// openVolume opens metadata and backing store and starts the volume on them.
// errNotCreated: there is no metadata.
func openVolume(a *Agent, s *slot) (running, error) {
	v := &s.cfg
	metaPath := a.cfg.MetaPath(v.Name)
	if _, err := os.Stat(metaPath); errors.Is(err, fs.ErrNotExist) {
		return nil, errNotCreated
	}
	storage, err := a.opt.OpenMeta(metaPath)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", metaPath, err)
	}
	file, state, err := meta.Open(storage)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metadata %s: %w", metaPath, err), storage.Close())
	}
	for _, d := range state.Damaged {
		a.log.Warn("metadata page lost: its blocks count as out of sync", "volume", v.Name, "page", d)
	}
	if err := meta.Check(&state.Super, v.Size, v.Name, a.cfg.Node.Name); err != nil {
		return nil, errors.Join(fmt.Errorf("metadata %s: %w", metaPath, err), file.Close())
	}
	store, err := a.openStore(v)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	// The volume owns store and file from here on, whether it opens or not.
	vol, err := volume.Open(a.volumeOptions(s, store, file))
	if err != nil {
		return nil, err
	}
	return vol, nil
}

// openStore opens the backing store. A device that is larger than the volume is
// used in part; a smaller one has lost data.
func (a *Agent) openStore(v *config.Volume) (blockdev.Device, error) {
	store, err := a.opt.OpenStore(v.Backing)
	if err != nil {
		return nil, fmt.Errorf("backing store: %w", err)
	}
	if store.Size() < v.Size {
		return nil, errors.Join(fmt.Errorf("backing store %s has %d bytes, the volume %d", v.Backing, store.Size(), v.Size), store.Close())
	}
	return store, nil
}

func (a *Agent) volumeOptions(s *slot, store blockdev.Device, file *meta.File) volume.Options {
	v := &s.cfg
	o := volume.Options{
		Name:          v.Name,
		Self:          a.cfg.Node.Name,
		Store:         store,
		Meta:          file,
		Pool:          a.peerPool,
		Log:           a.log.With("volume", v.Name),
		AskConnect:    func(peer string) { a.links.ask(s, peer) },
		OnEvent:       func(e volume.Event) { a.event(s, e) },
		WriteTimeout:  v.WriteTimeout,
		FlushInterval: v.FlushInterval,
		FlushBytes:    v.FlushBytes,
		ActivityIdle:  v.ActivityIdle,
		SyncWindow:    v.SyncWindow,
		SyncRate:      v.SyncRate,
	}
	for _, p := range v.Peers {
		o.Peers = append(o.Peers, volume.PeerConfig{Name: p.Name, Mode: p.Mode})
	}
	return o
}

// noNetwork is a node without peers.
type noNetwork struct{}

func (noNetwork) Close() error { return nil }

func startNetwork(a *Agent) (network, error) { return noNetwork{}, nil }
