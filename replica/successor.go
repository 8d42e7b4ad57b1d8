package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// A secondary has one primary at a time: what it has of the first's writes, and a second
// may lack, it marks when it loses the first, or hears its farewell (onState, endReign).
//
// After a switchover the farewell of the old primary comes over one connection and the
// first word of the new one, a State, over another: either may come first. A State that
// comes too early is kept, and the stream behind it held (Held), until no other primary is
// followed; then it is taken, and the stream goes on. To everybody this is as if the network
// from that peer were slower: nothing of the State counts here before, no write, claim or
// generation behind it is looked at, and nothing is confirmed.
//
// When the primary that is followed is lost instead, every connection is made anew, this
// one too (primaryLost). And who has not stepped down farewellTime later is a primary beside
// the other: the connection to the second is ended, and the handshake refuses it
// (RuleFollowsAnother) as long as the first is there.

// farewellTime is the longest wait for the farewell, which was sent before the new primary
// had the role: longer than a message is lost and sent again, shorter than the silence
// after which a node is dead.
const farewellTime = Time(2e9)

// followsAnother reports whether this node is connected to a primary other than p.
func (m *Machine) followsAnother(p *peer) bool {
	x := m.primary()
	return x != "" && x != m.cfg.Self && x != p.name
}

// tooEarly takes p's word that it is primary while another one is followed: it is kept for
// later, or the connection is restarted. false: there is no other, take it now.
func (m *Machine) tooEarly(p *peer, s *protocol.State) bool {
	switch {
	case s.Role != protocol.Primary || p.role == protocol.Primary || m.role != protocol.Secondary || !m.followsAnother(p):
		return false
	case p.repl == protocol.Established && p.lastWhy == RuleDefer: // p compares again, as primary (becamePrimary)
		m.refuseSecond(p)
	default:
		c := *s
		p.early, p.earlyUntil = &c, m.now+farewellTime
	}
	return true
}

// refuseSecond ends the connection to a primary beside the one that is followed.
func (m *Machine) refuseSecond(p *peer) {
	m.restart(p, p.name+" is primary, and "+m.cfg.Self+" follows "+m.primary())
}

// takeEarly takes what was kept, once no other primary is followed.
func (m *Machine) takeEarly() {
	for _, p := range m.peers {
		if s := p.early; s != nil && (m.role == protocol.Primary || !m.followsAnother(p)) {
			p.early = nil
			m.emit(Effect{Kind: DoResume, Peer: p.id})
			m.onState(p, s)
		}
	}
}

// tickEarly ends the wait for a farewell.
func (m *Machine) tickEarly() {
	m.takeEarly()
	for _, p := range m.peers {
		if p.early != nil && m.now > p.earlyUntil {
			m.refuseSecond(p)
		}
	}
}
