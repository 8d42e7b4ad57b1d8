package replica

import (
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// Tuning is the part of Config that may change while the machine runs.
type Tuning struct {
	AskTarget     bool
	Policy        protocol.SplitPolicy // said in the next hello: a connection that is settled stays so
	WriteTimeout  Time
	FlushInterval Time
	FlushBytes    int64
	ActivityIdle  Time
	NoData        NoData
	OnReadError   OnReadError
	DiskTimeout   Time
	Sync          resync.Options // also of the syncs and verifies that run
}

// Tune makes t hold from now on. Requests under way are not touched, except that
// those which wait for a copy of the data end when they are to fail instead.
func (m *Machine) Tune(now Time, t Tuning) {
	m.now = now
	waited := m.cfg.NoData
	c := &m.cfg
	c.AskTarget, c.Policy, c.WriteTimeout, c.FlushInterval, c.FlushBytes = t.AskTarget, t.Policy, t.WriteTimeout, t.FlushInterval, t.FlushBytes
	c.ActivityIdle, c.NoData, c.OnReadError, c.DiskTimeout, c.Sync = t.ActivityIdle, t.NoData, t.OnReadError, t.DiskTimeout, t.Sync
	for _, p := range m.peers {
		if p.plan != nil {
			p.plan.Tune(t.Sync)
		}
	}
	if waited != t.NoData && m.noData() {
		m.readmitWaiting()
	}
}

// AddPeer makes the machine know one more replica, of which nothing is known: every
// block counts as out of sync toward it until a sync has confirmed it or, on a
// secondary, the primary says that it has all. Its id is the next one. The owner has
// made room for it in the metadata before.
func (m *Machine) AddPeer(now Time, c PeerConfig) error {
	m.now = now
	switch {
	case len(m.peers) == protocol.PeersMax:
		return refusal(protocol.CodeNotAllowed, "%s has %d peers already", m.cfg.Name, len(m.peers))
	case m.quorumOn() || c.Witness:
		return refusal(protocol.CodeNotAllowed, "%s has a quorum, for which all nodes must know each other: restart the agent on each", m.cfg.Name)
	case m.byName(c.Name) != nil:
		return refusal(protocol.CodeNotAllowed, "%s has a peer %s already", m.cfg.Name, c.Name)
	case m.stopping:
		return refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case !m.usable() || m.filling:
		return refusal(protocol.CodeBusy, "the disk of %s on %s is not in order: replace it first", m.cfg.Name, m.cfg.Self)
	}
	p := &peer{id: PeerID(len(m.peers)), name: c.Name, mode: c.Mode, congestion: m.congestionOf(c), dirty: bitmap.NewSet(bitmap.Blocks(m.cfg.Size)),
		conn: protocol.Connecting, role: protocol.RoleUnknown, disk: protocol.DiskUnknown, retryAt: now,
		// What came before the peer was known is not in the recent ring.
		marked: m.seq}
	p.dirty.SetAll()
	p.fence.kept = m.fencingOn() // it has never been in sync with this node
	if m.restoring {
		p.alone, p.conn, p.reason = aloneHere, protocol.Standalone, m.unfinished().Text
	}
	m.cfg.Peers = append(slices.Clone(m.cfg.Peers), c)
	m.peers, m.all = append(m.peers, p), append(m.all, p)
	m.event(p.name, "connection", "", p.conn.String(), "added to the configuration")
	m.idSerial++ // what is said of the others in a hello has changed
	m.wantBitmaps = true
	m.persist()
	m.whenSettled(func() {
		p.fence.sure = p.fence.kept
		m.serveAgain()
	})
	return nil
}
