package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// A node that leaves in order does not count against the others. It notes, durably,
// whom it tells, and has no vote, nor is it promoted, before each of those has
// confirmed, durably, that it counts again.
//
// Invariant: while a node counts another as left, that one votes for nobody. Two
// quorums, of which one does not miss the other's nodes, are therefore never disjoint.

// Leave prepares for Stop: done is called when the others know. REQUIRES: not primary,
// or the quorum is off.
func (m *Machine) Leave(now Time, done func(error)) {
	m.now = now
	if !m.quorumOn() || m.role == protocol.Primary || m.metaDead {
		m.reply(done, nil)
		return
	}
	for _, p := range m.all {
		p.owes = p.owes || p.linked && p.settled
	}
	m.vote.from, m.vote.until = nil, m.now+m.cfg.Lease // no vote is given any more
	m.persist()
	m.whenSettled(func() {
		for _, p := range m.all {
			m.sayLeave(p)
		}
		m.votersChanged()
		m.reply(done, nil)
	})
}

func (m *Machine) sayLeave(p *peer) {
	if p.owes && p.linked && p.settled && !m.metaDead {
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Leave{}})
	}
}

// leaveOne is Leave toward a peer that this secondary's operator disconnects; then
// says goodbye.
func (m *Machine) leaveOne(p *peer, then func()) {
	if !m.quorumOn() || m.role == protocol.Primary || !p.settled || m.metaDead {
		then()
		return
	}
	p.owes = true
	m.persist()
	epoch := p.epoch
	m.whenSettled(func() {
		if p.epoch == epoch && p.linked {
			m.sayLeave(p)
			then()
		}
		m.votersChanged()
	})
}

func (m *Machine) onLeave(p *peer) {
	if p.ballot != nil {
		p.ballot.Left = true
	}
	p.departed = true
	p.waits = nil
	m.persist()
	m.votersChanged()
}

// ballot says what this node has voted for.
func (m *Machine) ballot() *protocol.Ballot {
	term := m.vote.term
	if m.role == protocol.Primary {
		term = m.vote.reign
	}
	return &protocol.Ballot{Rules: m.rules(), Term: term, Voted: m.vote.voted, Floor: m.vote.floor, Overruled: m.vote.overruled, Witness: m.cfg.Witness, Left: m.hasLeft(), Serving: m.role == protocol.Primary && m.followed()}
}

func (m *Machine) onBallot(p *peer, b *protocol.Ballot) {
	c := *b
	p.ballot = &c
	switch {
	case !m.quorumOn():
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "the quorum settings of %s differ: off on %s; %s on %s. Make them the same on every node",
			m.cfg.Name, m.cfg.Self, b.Rules, p.name))
		return
	case b.Rules != m.rules():
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "the quorum settings of %s differ: %s on %s; %s on %s. Make them the same on every node",
			m.cfg.Name, m.rules(), m.cfg.Self, b.Rules, p.name))
		return
	case b.Witness != p.witness:
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "%s is a witness of %s by one node's configuration, and not by the other's", p.name, m.cfg.Name))
		return
	}
	m.hearForce(b)
	if p.settled || !b.Left {
		m.welcome(p) // else when the handshake has ended: who cannot join is still not missed
	}
	if m.role == protocol.Primary && (b.Term > m.vote.reign || b.Floor >= m.vote.reign || m.claimNow(1).Misses(b.Term, b.Voted)) {
		m.abdicate(p.name + " has followed a later primary")
	}
	m.votersChanged()
}

// welcome counts a node again that is back, if it had left.
func (m *Machine) welcome(p *peer) {
	if p.ballot != nil && (p.departed || p.ballot.Left) {
		m.countAgain(p, p.ballot.Left)
	}
}

// countAgain counts a node again that is back.
func (m *Machine) countAgain(p *peer, tell bool) {
	if p.departed {
		p.departed = false
		m.persist()
	}
	if !tell {
		return
	}
	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch == epoch && p.linked {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Readmit{}})
		}
	})
}

func (m *Machine) onReadmit(p *peer) {
	if !p.owes || m.stopping {
		return
	}
	p.owes = false
	m.persist()
	m.sayBallot()
	m.votersChanged()
}

// sayBallot tells whoever has heard otherwise that this node votes again.
func (m *Machine) sayBallot() {
	for _, q := range m.all {
		if q.linked && q.settled && q.saidLeft && !m.hasLeft() {
			q.saidLeft = false
			m.emit(Effect{Kind: DoSend, Peer: q.id, Msg: m.ballot()})
		}
	}
}

// vouch takes the operator's word that whoever is not there is dead: it counts as left
// until it is back.
func (m *Machine) vouch() {
	for _, p := range m.all {
		if !p.present() {
			p.departed, p.owes = true, false
		}
	}
	if m.vote.from == nil || !m.vote.from.present() {
		m.vote.from, m.vote.until = nil, 0
	}
	m.persist()
	m.votersChanged()
}
