package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// A witness is a node without a replica: it votes. Between it and the others there is
// a link that carries no data: Ballot and Hello both ways, then claims, leave and roles.
// Its machine has no data peers, and a disk that is diskless for good; everybody else
// has it among all, and not among peers.

const witnessWhy = "a witness holds no data"

// linkWitness begins a link that carries no data.
func (m *Machine) linkWitness(p *peer) {
	h := &protocol.Hello{Volume: m.volume, Size: m.cfg.Size, Block: 1, Attempt: m.cfg.Rand(), Instance: m.instance,
		Role: m.role, Disk: m.disk, Mode: protocol.ModeC, Current: m.current, Primary: m.primary()}
	p.sent = h
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: m.ballot()})
	p.saidLeft = m.hasLeft()
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: h})
}

// onWitnessHello ends the handshake of such a link.
func (m *Machine) onWitnessHello(p *peer, h *protocol.Hello) {
	switch {
	case p.ballot == nil:
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "%s is a witness of %s on %s, and there is no quorum on %s: make the configurations agree",
			m.witnessOf(p), m.cfg.Name, m.cfg.Self, p.name))
		return
	case p.settled:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s said hello twice", p.name))
		return
	case m.vote.yielding != "":
		m.restart(p, m.vote.yielding)
		return
	}
	m.setPeerDisk(p, h.Disk)
	m.setPeerRole(p, h.Role)
	if h.Role != protocol.Primary {
		m.released(p)
	}
	p.settled, p.reconnect, p.retryWait, p.deadline = true, true, 0, never
	p.answeredAt = m.now
	m.setConn(p, protocol.Connected, "")
	if h.Role != p.sent.Role || m.role != p.sent.Role { // it may have changed since
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.State{Role: m.role, Disk: m.disk, Current: m.current, Primary: m.primary()}})
	}
	m.vote.claimAt = 0
	m.welcome(p)
	m.votersChanged()
}

func (m *Machine) witnessOf(p *peer) string {
	if p.witness {
		return p.name
	}
	return m.cfg.Self
}

// onWitnessState takes a change of role over such a link.
func (m *Machine) onWitnessState(p *peer, s *protocol.State) {
	m.setPeerRole(p, s.Role)
	m.setPeerDisk(p, s.Disk)
	if s.Role != protocol.Primary {
		m.released(p)
	}
}

// emptyBits stands in for the dirty bitmap toward a node that holds no data.
func emptyBits() *bitmap.Set { return bitmap.NewSet(1) }
