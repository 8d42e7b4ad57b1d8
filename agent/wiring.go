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
	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/tcpnet"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

// openVolume opens metadata and backing store and starts the volume on them.
// errNotCreated: there is no metadata.
func openVolume(a *Agent, s *slot) (running, error) {
	v := s.live()
	d, err := openDisk(a, v)
	if err != nil {
		return nil, err
	}
	s.base.set(d.Store)
	archives, err := a.openArchives(v, d.State.Super.Archive, &s.base)
	if err != nil {
		return nil, errors.Join(err, d.Store.Close(), d.Meta.Close())
	}
	o := a.volumeOptions(s, d.Store, d.Meta, d.State)
	o.Archives, o.ArchiveMode = archives, archiveMode(v.Archive)
	// The volume owns store, file and archives from here on, whether it opens or not.
	vol, err := volume.Open(o)
	if err != nil {
		return nil, err
	}
	return vol, nil
}

// openDisk opens a volume's metadata and backing store. errNotCreated: there is no
// metadata.
func openDisk(a *Agent, v *config.Volume) (volume.Disk, error) {
	metaPath := a.cfg.MetaPath(v.Name)
	if _, err := os.Stat(metaPath); errors.Is(err, fs.ErrNotExist) {
		return volume.Disk{}, errNotCreated
	}
	storage, err := a.opt.OpenMeta(metaPath)
	if err != nil {
		return volume.Disk{}, fmt.Errorf("metadata %s: %w", metaPath, err)
	}
	file, state, err := meta.Open(storage)
	if err != nil {
		return volume.Disk{}, errors.Join(fmt.Errorf("metadata %s: %w", metaPath, err), storage.Close())
	}
	for _, d := range state.Damaged {
		a.log.Warn("metadata page lost: its blocks count as out of sync", "volume", v.Name, "page", d)
	}
	if err := checkMeta(&state.Super, v, a.cfg.Node.Name); err != nil {
		return volume.Disk{}, errors.Join(fmt.Errorf("metadata %s: %w", metaPath, err), file.Close())
	}
	store, err := a.openStore(v)
	if err != nil {
		return volume.Disk{}, errors.Join(err, file.Close())
	}
	return volume.Disk{Store: store, Meta: file, State: state}, nil
}

// checkMeta compares metadata with the configuration. A witness tracks no blocks.
func checkMeta(s *meta.Super, v *config.Volume, node string) error {
	size := v.Size
	switch was := s.Disk == protocol.Diskless; {
	case was && !v.Witness:
		return fmt.Errorf("%w: volume %q was created on this node as a witness, and the configuration names a backing store: to hold data here run qrbd create %s --force", meta.ErrMismatch, v.Name, v.Name)
	case !was && v.Witness:
		return fmt.Errorf("%w: volume %q was created on this node with data, and the configuration makes it a witness (backing = %q): to give the data here up run qrbd create %s --force", meta.ErrMismatch, v.Name, config.NoBacking, v.Name)
	case v.Witness:
		size = volume.WitnessSize
	}
	return meta.Check(s, size, v.Name, node)
}

// openStore opens the backing store. A device that is larger than the volume is
// used in part; a smaller one has lost data.
func (a *Agent) openStore(v *config.Volume) (blockdev.Device, error) {
	if v.Witness {
		return blockdev.NewMemory(volume.WitnessSize), nil
	}
	store, err := a.opt.OpenStore(v.Backing)
	if err != nil {
		return nil, fmt.Errorf("backing store: %w", err)
	}
	if store.Size() < v.Size {
		return nil, errors.Join(fmt.Errorf("backing store %s has %d bytes, the volume %d", v.Backing, store.Size(), v.Size), store.Close())
	}
	return store, nil
}

// volumePeer translates a peer of a volume.
func volumePeer(p config.VolumePeer) volume.PeerConfig {
	c := volume.PeerConfig{Name: p.Name, Mode: p.Mode, Witness: p.Witness, SendBuffer: p.SendBuffer, CongestionFill: p.CongestionFill}
	if p.OnCongestion == config.CongestionPullAhead {
		c.OnCongestion = volume.CongestionPullAhead
	}
	return c
}

func (a *Agent) volumeOptions(s *slot, store blockdev.Device, file *meta.File, state *meta.State) volume.Options {
	v := s.live()
	o := volume.Options{
		Name:          v.Name,
		Self:          a.cfg.Node.Name,
		Size:          v.Size,
		Store:         store,
		Meta:          file,
		State:         state,
		Pool:          a.peerPool,
		Zstd:          a.zstd,
		Log:           a.log.With("volume", v.Name),
		Meter:         s.meter,
		AskConnect:    func(peer string) { a.links.ask(s, peer) },
		OnEvent:       func(e volume.Event) { a.event(s, e) },
		WriteTimeout:  v.WriteTimeout,
		FlushInterval: v.FlushInterval,
		FlushBytes:    v.FlushBytes,
		ActivityIdle:  v.ActivityIdle,
		AfterSB:       v.AfterSB,
		DiskTimeout:   v.DiskTimeout,
		SyncWindow:    v.ResyncWindow,
		SyncRate:      v.ResyncRateMax,
		SyncFloor:     v.ResyncRateMin,
	}
	if v.Hooks.Has(hook.BeforeResyncTarget) {
		o.MayResync = func(ctx context.Context, peer, why string) error { return a.mayResync(ctx, s, peer, why) }
	}
	if v.OnNoData == config.SuspendIO {
		o.NoData = volume.NoDataSuspend
	}
	if v.OnReadError == config.Detach {
		o.OnReadError = volume.ReadDetach
	}
	if o.Witness = v.Witness; v.Witness {
		o.Size = volume.WitnessSize
	}
	if o.Fencing = fencing(v.Fencing); o.Fencing != volume.FencingOff {
		o.FencePeer = func(ctx context.Context, peer string) (volume.FenceAnswer, string) { return a.fencePeer(ctx, s, peer) }
	}
	o.Quorum, o.MinRedundancy, o.Lease = quorum(v.Quorum), quorum(v.MinRedundancy), a.cfg.Node.PeerTimeout
	if v.OnNoQuorum == config.NoQuorumError {
		o.OnNoQuorum = volume.NoQuorumError
	}
	for _, last := range []bool{false, true} {
		for _, p := range v.Peers {
			if p.Witness == last {
				o.Peers = append(o.Peers, volumePeer(p))
			}
		}
	}
	return o
}

func quorum(q config.Quorum) volume.Quorum {
	switch {
	case q.Off():
		return volume.Quorum{}
	case q.Word == "majority":
		return volume.Quorum{Kind: volume.QuorumMajority}
	case q.Word == "all":
		return volume.Quorum{Kind: volume.QuorumAll}
	}
	return volume.Quorum{Kind: volume.QuorumCount, Count: q.Count}
}

// startNetwork reads the identity and opens the replication port.
func startNetwork(a *Agent) (network, error) {
	id, err := session.LoadOrCreateIdentity(a.cfg.Node.State)
	if err != nil {
		return nil, err
	}
	a.log.Info("identity", "node", a.cfg.Node.Name, "key", id.PublicKey())
	if err := a.cfg.CheckIdentity(id.PublicKey()); err != nil {
		return nil, err
	}
	o := session.Options{
		Identity:    id,
		Name:        a.cfg.Node.Name,
		Listen:      a.cfg.Node.Listen,
		Handler:     handler{a.links},
		Log:         a.log,
		Instance:    random(),
		Heartbeat:   a.cfg.Node.Heartbeat,
		PeerTimeout: a.cfg.Node.PeerTimeout,
		Calm:        func() bool { return nbd.Connections() == 0 },
		Transports:  map[session.Transport]session.Opener{session.QUIC: quicnet.Open, session.TCP: tcpnet.Open},
	}
	for _, p := range a.cfg.Peers {
		peer, err := sessionPeer(p)
		if err != nil {
			return nil, err
		}
		o.Peers = append(o.Peers, peer)
	}
	node, err := session.Start(o)
	if err != nil {
		return nil, err
	}
	a.certificateEnds = node.CertificateEnds()
	if info, err := os.Stat(filepath.Join(a.cfg.Node.State, session.KeyFile)); err == nil {
		a.identitySince = info.ModTime()
	}
	return sessionNetwork{node}, nil
}

func sessionPeer(p config.Peer) (session.Peer, error) {
	peer := session.Peer{Name: p.Name, Address: p.Address, Transport: p.Transport, Congestion: p.Congestion, Compression: p.Compression}
	for _, text := range p.Keys {
		key, err := session.ParseKey(text)
		if err != nil {
			return peer, fmt.Errorf("peer %s: %w", p.Name, err)
		}
		peer.Keys = append(peer.Keys, key)
	}
	return peer, nil
}

// sessionNetwork is a session.Node as the agent sees it.
type sessionNetwork struct{ node *session.Node }

func (n sessionNetwork) Close(ctx context.Context) error { return n.node.Close(ctx) }

func (n sessionNetwork) AddPeer(p config.Peer) error {
	peer, err := sessionPeer(p)
	if err != nil {
		return err
	}
	return n.node.AddPeer(peer)
}

func (n sessionNetwork) UpdatePeer(p config.Peer) error {
	peer, err := sessionPeer(p)
	if err != nil {
		return err
	}
	return n.node.UpdatePeer(peer)
}

// handler is links as the session layer's Handler. Sessions and their ends are
// logged there.
type handler struct{ l *links }

func (h handler) SessionUp(s *session.Session) { h.l.sessionUp(netSession{s}) }

func (h handler) SessionDown(s *session.Session, _ error) { h.l.sessionDown(netSession{s}) }

func (h handler) StreamOpened(s *session.Session, open protocol.StreamOpen, st *session.Stream) {
	h.l.streamOpened(netSession{s}, open, st)
}

func (h handler) ConnectFailed(peer string, err error) { h.l.unreachable(peer, err) }

func (h handler) Message(s *session.Session, m protocol.Message) { h.l.message(netSession{s}, m) }

// netSession is a session.Session as links sees it. It is comparable: two of
// the same session are equal.
type netSession struct{ s *session.Session }

func (n netSession) Peer() string                  { return n.s.Peer() }
func (n netSession) Dialer() bool                  { return n.s.Dialer() }
func (n netSession) Send(m protocol.Message) error { return n.s.Send(m) }
func (n netSession) RTT() time.Duration            { return n.s.RTT() }

func (n netSession) Compresses() bool { return n.s.Compression() != session.NoCompression }

func (n netSession) Features() uint64 { return n.s.Features() }

func (n netSession) Figures() control.LinkStatus {
	st := n.s.Stats()
	major, minor := n.s.PeerVersion()
	return control.LinkStatus{Transport: n.s.Transport().String(), Compression: n.s.Compression().String(), Protocol: fmt.Sprintf("%d.%d", major, minor), RTTMicros: st.RTT.Microseconds(),
		BytesSent: st.BytesSent, BytesReceived: st.BytesReceived, PacketsSent: st.PacketsSent, PacketsLost: st.PacketsLost, CongestionWindow: st.CongestionWindow}
}

func (n netSession) Open(ctx context.Context, o protocol.StreamOpen) (volume.Stream, error) {
	st, err := n.s.Open(ctx, o)
	if err != nil {
		return nil, err // not a nil *Stream in an interface
	}
	return st, nil
}
