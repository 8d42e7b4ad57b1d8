package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// changes returns what was written here and p may lack: when, and coarsely where.
// The times are made durable with whatever else is; a crash may lose the last few
// seconds of Last.
func (m *Machine) changes(p *peer) protocol.Changes {
	c := protocol.Changes{First: max(p.wroteFirst, 0), Last: max(p.wroteLast, 0)}
	if p.dirty.Count() == 0 {
		return c
	}
	for _, r := range p.dirty.Coarse(protocol.ChangesMax) {
		off := r[0] * bitmap.BlockSize
		c.Ranges = append(c.Ranges, protocol.Range{Off: off, Len: min(r[1]*bitmap.BlockSize, m.cfg.Size) - off})
	}
	return c
}

// wrote notes a write that p does not get, or may not have got.
func (p *peer) wrote(at Time) {
	if p.wroteFirst == 0 || at < p.wroteFirst {
		p.wroteFirst = at
	}
	p.wroteLast = max(p.wroteLast, at)
}

// level notes that p lacks nothing that was written here.
func (p *peer) level() { p.slot, p.wroteFirst, p.wroteLast = 0, 0, 0 }

// wasPrimary reports whether this node was primary when it was last connected to p.
func (m *Machine) wasPrimary(p *peer) bool {
	if p.settled {
		return m.role == protocol.Primary
	}
	return p.older
}

// keepTimes adds times that are newer than on disk to the next commit.
func (m *Machine) keepTimes() {
	for _, p := range m.peers {
		if p.wroteLast != p.wroteKept {
			m.persist()
			return
		}
	}
}

// Explained is what a connection to a peer would come to now.
type Explained struct {
	Decision Decision        // by what the peer said last
	Me       *protocol.Hello // as it would be said
	Peer     *protocol.Hello // nil: it has not been heard since this node started
	HeardAt  Time
}

// Explain compares with what the peer said last.
func (m *Machine) Explain(id PeerID) Explained {
	p := m.all[id]
	x := Explained{Me: m.hello(p), HeardAt: p.heardAt}
	if p.heard != nil {
		h := *p.heard
		x.Peer = &h
		x.Decision = Compare(m.side(x.Me), p.side())
	}
	return x
}
