package replica

import (
	"slices"
	"strings"

	"github.com/qrbd/qrbd/protocol"
)

// mustMint reports whether the next write begins a generation: a peer that will
// not get it may be at the current one. It is false once this primary has begun a
// generation without that peer, so that one parting mints one id, and none at all
// when nothing is written.
func (m *Machine) mustMint() bool {
	if m.bare() && !m.detached {
		return true
	}
	for _, p := range m.peers {
		if m.mayBeCurrent(p) {
			return true
		}
	}
	return false
}

// mustMintToFlush reports whether a generation begins before a flush is answered. What it
// answers for, that all that was acknowledged is on stable storage, is a promise as a write is:
// whoever may lack it must be, durably, at another generation before. A peer that has
// confirmed everything as durable in this reign lacks nothing, and none is begun for its
// sake; what an earlier primary left in a cache or on a disk, this one does not know.
func (m *Machine) mustMintToFlush() bool {
	for _, p := range m.peers {
		if m.mayBeCurrent(p) && (!p.joined || p.dirty.Count() != 0 || p.repl == protocol.Ahead) {
			return true
		}
	}
	return false
}

// mayBeCurrent reports whether the peer may have the current generation and does not get
// writes, or did not get one that is still under way. What its slot says is not enough: a
// third node may have brought it up to date since.
func (m *Machine) mayBeCurrent(p *peer) bool { return !p.apart && (!p.live || m.passedOver(p)) }

// passOver notes the requests that p is lost with.
func (p *peer) passOver() {
	r := &p.ring
	for i := r.head; i < r.tail; i++ {
		if q := r.at(i).req; q != nil {
			q.without |= 1 << p.id
			p.passed = true
		}
	}
}

// passedOver reports whether a request is under way that p was lost with, and that waits
// for a generation which p does not have. That p is back meanwhile gives it nothing.
func (m *Machine) passedOver(p *peer) bool {
	if !p.passed {
		return false
	}
	for _, s := range m.spans {
		if s.req.needGen && s.req.without&(1<<p.id) != 0 {
			return true
		}
	}
	p.passed = false
	return false
}

// parted notes that p is durably known to be at another generation than this primary.
func (m *Machine) parted(p *peer) {
	p.passed = false
	for _, s := range m.spans {
		s.req.without &^= 1 << p.id
	}
}

// mayHavePassedOn notes that p, which comes back, had the current generation while it
// was away: it may have brought others to it since.
func (m *Machine) mayHavePassedOn(p *peer) {
	for _, q := range m.peers {
		if q != p && !q.live {
			q.apart = false
		}
	}
}

// mayReachOthers notes that p, which is lost, may have gone before that was noticed, and
// brought others to its generation. What is under way they do not have: it completes in
// another one, also under A, where it would not have waited for p.
func (m *Machine) mayReachOthers(p *peer) {
	if !slices.ContainsFunc(m.peers, func(q *peer) bool { return q != p && !q.live && q.mode == protocol.ModeC }) {
		return
	}
	for _, s := range m.spans {
		s.req.needGen = s.req.needGen || !s.req.Internal()
	}
}

// mint begins a new generation. New writes wait. First every connected peer in
// sync makes the id durable, then this node, then writes go on: a peer may know a
// generation that nobody wrote in, but nobody writes in one that a peer in the ack
// set does not know.
func (m *Machine) mint() {
	if m.minting || m.vote.yielding != "" {
		return
	}
	m.minting = true
	m.frozen++
	m.mintRound()
}

// mintOffer is a generation that the peers were told of.
type mintOffer struct {
	parent, current protocol.Generation
	rotate          []*peer // that are left behind
	self            bool    // this node's disk is
	told            uint64  // a bit per peer: it was sent the id, perhaps in an earlier round, and may have it
}

func (m *Machine) mintRound() {
	m.pullAheadToMint()
	m.mintTurn++
	o := &mintOffer{parent: m.current, current: protocol.Generation(m.cfg.Rand()), self: m.bare() && !m.detached}
	if last := m.offer; m.bare() && last != nil && last.parent == m.current {
		o.current, o.told = last.current, last.told // somebody may know it already
	}
	var weak []string
	if o.self {
		weak = append(weak, m.cfg.Self)
	}
	for _, p := range m.peers {
		if m.mayBeCurrent(p) {
			o.rotate = append(o.rotate, p)
			weak = append(weak, p.name)
		}
	}
	switch {
	case m.gated() && m.beginsSync():
		m.stallMint() // who is about to be inconsistent may not be it yet
		return
	case len(weak) == 0:
		m.minted()
		return
	case m.noData():
		m.mintAborted()
		return
	case !m.followed(): // only who is followed by a quorum goes on without the others
		m.stallMint()
		return
	}
	m.mintWait, m.offer = 0, o
	m.mintDeadline = m.now + m.cfg.WriteTimeout
	for _, p := range m.peers {
		if p.confirms() && !slices.Contains(o.rotate, p) {
			m.mintWait |= 1 << p.id
			o.told |= 1 << p.id
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.NewGeneration{Parent: o.parent, Current: o.current, Weak: weak}})
		}
	}
	m.mintNext = func() {
		m.mintNext = nil
		if m.noData() {
			m.mintAborted()
			return
		}
		m.takeOffer(o)
		if m.bare() { // what matters is durable at the carriers
			m.mintRound()
			return
		}
		turn := m.mintTurn
		m.whenDurable(func() {
			if m.mintTurn == turn {
				m.mintRound() // another peer may have been lost meanwhile
			}
		})
	}
	m.mintConfirmed(nil)
}

// unsure reports whether p gets writes, and may have kept what is to be settled.
func (p *peer) unsure() bool { return p.claims && p.confirms() }

// confirms reports whether p answers a NewGeneration: not while it is overwritten.
func (p *peer) confirms() bool {
	return p.live && (p.repl == protocol.Established || p.repl == protocol.VerifySource || p.step == syncWaitAck)
}

// afterCrash are the flags of what a crash may have cost a replica, which is settled when
// it follows a primary that it equals (foundEqual).
const afterCrash = protocol.HelloCrashedPrimary | protocol.HelloShaken

// proclaim has whoever gets writes, and may have kept such a flag, settle it durably before
// a client is answered: else it could pass later for one that has what a crashed primary
// had, and overwrite what was flushed in this reign. Who is not in reach is left behind at
// the generation.
func (m *Machine) proclaim() {
	switch {
	case m.role != protocol.Primary || m.vote.yielding != "" || !slices.ContainsFunc(m.peers, (*peer).unsure):
		return
	case m.minting:
		m.unheard = true
		return
	}
	m.minting = true
	m.frozen++
	m.proclaimRound()
}

// proclaimRound sends the peers the generation that they are at, which they confirm like a
// new one, behind the word that this node is primary.
func (m *Machine) proclaimRound() {
	m.unheard = false
	m.mintTurn++
	m.mintWait, m.offer = 0, &mintOffer{parent: m.current, current: m.current}
	m.mintDeadline = m.now + m.cfg.WriteTimeout
	for _, p := range m.peers {
		if p.unsure() {
			p.claims = false
			m.mintWait |= 1 << p.id
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.NewGeneration{Parent: m.current, Current: m.current}})
		}
	}
	m.mintNext = func() {
		m.mintNext, m.offer = nil, nil
		switch {
		case m.noData():
			m.mintAborted()
		case len(m.genWait) > 0:
			m.mintRound()
		default:
			m.minted()
		}
	}
	m.mintConfirmed(nil)
}

// takeOffer makes an offered generation the current one.
func (m *Machine) takeOffer(o *mintOffer) {
	for _, p := range o.rotate {
		// Who was told of this id, and lost before it confirmed, may have it: the next
		// round begins another.
		p.left = true
		if p.apart = o.told&(1<<p.id) == 0; p.apart {
			m.parted(p)
		}
		p.wrote(m.now) // as good as: it becomes durable with the generation
		if p.slot == 0 {
			p.slot = o.parent
		}
		if p.linked && p.settled && p.repl != protocol.ReplOff && p.repl != protocol.Ahead { // came back meanwhile, and does not have the id
			m.restart(p, "a generation began without "+p.name)
		}
	}
	m.detached = m.detached || o.self
	var weak []string
	for _, p := range o.rotate {
		weak = append(weak, p.name)
	}
	if o.self {
		weak = append(weak, "the disk of "+m.cfg.Self)
	}
	m.remember(o.parent)
	m.event("", "generation", o.parent.String(), o.current.String(), "writes go on without "+strings.Join(weak, ", "))
	m.current = o.current
	for _, p := range m.peers {
		if p.live && p.heard != nil {
			p.heard.Current = o.current
		}
	}
	m.idSerial++
	m.persist()
}

// mintConfirmed notes that p has the new generation, or is lost.
func (m *Machine) mintConfirmed(p *peer) {
	if p != nil {
		m.mintWait &^= 1 << p.id
	}
	if m.mintWait == 0 && m.mintNext != nil {
		m.mintNext()
	}
}

// minted lets writes go on and answers what waited for the generation.
func (m *Machine) minted() {
	if m.unheard {
		m.proclaimRound()
		return
	}
	m.minting = false
	m.frozen--
	m.releaseGenWait()
	m.broadcastState()
	if m.quorumOn() && m.role == protocol.Primary {
		m.claim()
	}
	for _, p := range m.peers {
		if p.endPending {
			p.endPending = false
			m.endSource(p)
		}
	}
	m.pumpHeld()
}

func (m *Machine) releaseGenWait() {
	list := m.genWait
	m.genWait = nil
	for _, r := range list {
		r.needGen, r.inWait = false, false
		m.settle(r)
	}
}

// onNewGeneration is the peer's side of mint.
func (m *Machine) onNewGeneration(p *peer, g *protocol.NewGeneration) {
	switch {
	case m.role == protocol.Primary || p.role != protocol.Primary || g.Current == 0:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s, %s, minted generation %s for a %s", p.name, p.role, g.Current, m.role))
		return
	case g.Parent != m.current && g.Current != m.current:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s minted a generation after %s, but here it is %s", p.name, g.Parent, m.current))
		return
	}
	if g.Current != m.current {
		m.leaveSyncs(p) // or they end at a generation that begins without their targets
		m.remember(g.Parent)
		m.event("", "generation", m.current.String(), g.Current.String(), p.name+" goes on without "+withoutWhom(p.name, g.Weak))
		m.current = g.Current
		m.idSerial++
		for _, name := range g.Weak {
			if q := m.byName(name); q != nil && q != p {
				if q.slot == 0 {
					q.slot = g.Parent
				}
				m.weaken(q)
			}
		}
		m.persist()
	}
	for _, name := range g.Weak {
		if name == p.name {
			m.primaryBare(p, g.Parent)
		}
	}
	epoch, current := p.epoch, g.Current
	p.rxHold = true // nothing piles up behind a slow disk
	m.whenDurable(func() {
		if p.epoch == epoch && p.linked {
			m.release(p)
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.GenerationAck{Current: current}})
			m.tellState(p)
		}
	})
}

func (m *Machine) onGenerationAck(p *peer, g *protocol.GenerationAck) {
	if m.offer != nil && g.Current == m.offer.current {
		m.mintConfirmed(p)
	}
}

func (m *Machine) byName(name string) *peer {
	for _, p := range m.peers {
		if p.name == name {
			return p
		}
	}
	return nil
}

func (m *Machine) remember(g protocol.Generation) {
	if g == 0 {
		return
	}
	for _, h := range m.history {
		if h == g {
			return
		}
	}
	m.history = append([]protocol.Generation{g}, m.history...)
	// The oldest goes that no peer has stayed behind at.
	for i := len(m.history) - 1; len(m.history) > protocol.HistoryMax; i-- {
		if !slices.ContainsFunc(m.peers, func(p *peer) bool { return p.slot == m.history[i] }) {
			m.history = slices.Delete(m.history, i, i+1)
		}
	}
}

// withoutWhom lists who has no part in a primary's new generation, for people.
func withoutWhom(primary string, weak []string) string {
	list := make([]string, len(weak))
	for i, name := range weak {
		if list[i] = name; name == primary {
			list[i] = "its own disk"
		}
	}
	return strings.Join(list, ", ")
}
