package replica

import (
	"slices"

	"github.com/qrbd/qrbd/protocol"
)

// A primary claims its term from every voter several times in a lease L. A voter that
// follows promises, from the moment at which it has the claim, to follow nobody else
// for L by its own clock; the primary counts that for L/2, by its own, from the moment
// before which it sent the claim. Clocks may run a fifth too fast or too slow: the
// primary's L/2 last at most L/2/0.8 = 0.63 L, the voter's L at least L/1.2 = 0.83 L. So
// a primary that was paused, or cut off, or is slow, has stopped answering before any
// voter that it counts on follows another. A voter that starts anew remembers no
// promise, and makes none to anybody but the primary of the term that it remembers
// until L after its start.

// claimsPerLease: one is lost without a pause.
const claimsPerLease = 8

// votesForThis reports whether the peer follows this primary, in its generation.
func (m *Machine) votesForThis(p *peer) bool {
	return p.votedTerm == m.vote.reign && p.votedFor == m.current && p.present() && m.now-p.votedAt < m.cfg.Lease/2
}

// claim asks every voter to follow.
func (m *Machine) claim() {
	m.vote.claimAt = m.now + m.cfg.Lease/claimsPerLease
	for _, p := range m.all {
		if p.linked && p.settled {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: m.claimNow(m.now)})
		}
	}
}

func (m *Machine) claimNow(stamp Time) *protocol.Claim {
	return &protocol.Claim{Term: m.vote.reign, Stamp: stamp, Current: m.current, Overruled: m.vote.overruled, History: append([]protocol.Generation(nil), m.history...)}
}

// beginTerm gives this node, about to be primary, a term above every one that a voter
// has followed. Its low bits are random, so that no two are the same.
func (m *Machine) beginTerm() {
	if !m.quorumOn() {
		return
	}
	m.vote.reign = protocol.NextTerm(m.lastTerm(), m.cfg.Rand())
	m.vote.own, m.vote.serving, m.vote.failing, m.vote.lostAt = 0, false, false, m.now
	m.vote.from, m.vote.until = nil, 0
	m.vote.claimAt = 0
	for _, p := range m.all { // nobody was asked before
		p.answeredAt = m.now
	}
}

// lastTerm returns the latest term that this node, or who is present, knows of.
func (m *Machine) lastTerm() uint64 {
	term := max(m.vote.term, m.vote.reign, m.vote.floor)
	for _, p := range m.all {
		if p.present() {
			term = max(term, p.ballot.Term, p.ballot.Floor)
		}
	}
	return term
}

// promised reports whether this node may follow p, and nobody else is followed.
func (m *Machine) promised(p *peer) bool { return m.now < m.vote.until && m.vote.from != p }

// promise follows nobody but p for a lease.
func (m *Machine) promise(p *peer, force bool) {
	if !m.quorumOn() {
		return
	}
	m.vote.from, m.vote.until = p, m.now+m.cfg.Lease
	if force {
		m.raiseFloor(p.asks.Overruled)
	}
	if !p.asks.Covers(m.vote.voted) { // the operator's word
		m.vote.voted = 0
		m.persist()
		for _, q := range m.all { // one that remembers nobody goes by what this node said
			if q != p && q.linked && q.settled {
				m.emit(Effect{Kind: DoSend, Peer: q.id, Msg: m.ballot()})
			}
		}
	}
	if m.vote.term == 0 { // from now on it remembers
		m.vote.term, m.vote.voted = 1, p.asks.Current
		m.persist()
	}
}

// released: p, if it is the primary that is followed, is primary no more.
func (m *Machine) released(p *peer) {
	if m.vote.from == p {
		m.vote.from, m.vote.until = nil, 0
	}
}

func (m *Machine) onClaim(p *peer, c *protocol.Claim) {
	if c.Stamp == 0 {
		p.asks = &protocol.Claim{Current: c.Current, Overruled: c.Overruled, History: append([]protocol.Generation(nil), c.History...)}
		return
	}
	a := &protocol.ClaimAnswer{Stamp: c.Stamp, Current: c.Current, No: m.judge(p, c)}
	if a.No != protocol.VoteYes {
		a.Term = m.vote.term
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: a})
		return
	}
	m.vote.from, m.vote.until = p, m.now+m.cfg.Lease
	if m.vote.term != c.Term || m.vote.voted != c.Current || m.vote.overruled < c.Overruled {
		m.vote.term, m.vote.voted, m.vote.overruled = c.Term, c.Current, max(m.vote.overruled, c.Overruled)
		m.persist()
	}
	a.Term = c.Term
	epoch := p.epoch
	// With it: what this replica is, so that one that lacks something is known to.
	m.whenDurable(func() {
		if p.epoch == epoch && p.linked {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: a})
		}
	})
}

// judge says whether a primary may be followed.
func (m *Machine) judge(p *peer, c *protocol.Claim) protocol.NoVote {
	known := m.primary()
	switch {
	case m.hasLeft() || m.metaDead || m.restoring || p.role != protocol.Primary || known != p.name:
		return protocol.NoFollow
	case !m.knows(p, c):
		return protocol.NoFollow
	case c.Term != m.vote.term && m.objects(c):
		return protocol.NoBehind
	case c.Term < m.vote.term || c.Term <= m.vote.floor:
		return protocol.NoTerm
	case c.Term != m.vote.term && m.promised(p):
		return protocol.NoPromise
	case !m.cfg.Witness && m.current != c.Current && m.disk > protocol.Outdated:
		return protocol.NoFollow // it has other data, and nobody has told it yet that they are old
	}
	return protocol.VoteYes
}

// knows reports whether this node can judge a claim of p; nil: of its own. One that remembers nobody may
// have been made anew: it goes by what all the others remember.
func (m *Machine) knows(p *peer, c *protocol.Claim) bool {
	return m.vote.term != 0 || !slices.ContainsFunc(m.all, func(q *peer) bool {
		return q != p && (!q.present() || c.Misses(q.ballot.Term, q.ballot.Voted))
	})
}

func (m *Machine) onClaimAnswer(p *peer, a *protocol.ClaimAnswer) {
	p.answeredAt = m.now
	if m.role != protocol.Primary {
		return
	}
	switch a.No {
	case protocol.VoteYes:
		if a.Stamp > p.votedAt || a.Term != p.votedTerm || a.Current != p.votedFor {
			p.votedAt, p.votedTerm, p.votedFor = min(a.Stamp, m.now), a.Term, a.Current
		}
	case protocol.NoTerm:
		m.abdicate(p.name + " has followed a later primary")
	case protocol.NoBehind:
		m.abdicate(p.name + " has followed a primary with newer data")
	case protocol.NoPromise, protocol.NoFollow:
	}
	m.serveAgain()
}

// abdicate ends the reign of a primary that others do not follow any more. Nothing is
// answered; what is under way in the store ends first, so that it does not land on
// what the successor sends.
func (m *Machine) abdicate(why string) {
	if m.role != protocol.Primary || m.vote.yielding != "" || m.rising || m.followed() {
		return
	}
	m.yield(why)
}

func (m *Machine) yield(why string) {
	v := &m.vote
	v.yielding, v.serving = why, false
	v.superseded = v.superseded || len(v.unanswered) > 0 || slices.ContainsFunc(m.spans, func(s span) bool { return s.req.Op != Flush && s.req.Op != Pull })
	m.event("", "io", "suspended", "ended", why)
	if m.minting {
		m.minting, m.unheard, v.stalled = false, false, false
		m.frozen--
		m.mintTurn++
		m.mintNext, m.mintWait = nil, 0
	}
	if d := m.drain; d != nil {
		d.next(refusal(protocol.CodeNotAllowed, "%s", why))
	}
	for _, list := range []*[]*Request{&m.held, &m.arming, &m.overlapped, &m.farWait, &m.readBack, &v.unanswered} {
		m.failAll(list, ErrNotPrimary)
	}
	m.releaseGenWait()
	for _, p := range m.all {
		if p.linked {
			m.restart(p, why)
		}
	}
	m.yielded()
}

// yielded makes a superseded primary a secondary when its store has ended.
func (m *Machine) yielded() {
	v := &m.vote
	if v.yielding == "" || m.flights > 0 || m.pulls > 0 {
		return
	}
	why := v.yielding
	v.yielding = ""
	m.crashed, m.heir, m.fenced = true, false, false
	m.leaveUnfilled()
	if m.disk == protocol.UpToDate {
		m.setDisk(protocol.Consistent, why)
	}
	m.setRole(protocol.Secondary, why)
	m.wantBitmaps = true
	m.persist()
	for _, p := range m.all {
		if p.linked { // it has said hello to a primary
			m.restart(p, why)
		}
	}
}

// comparable reports whether the handshake may go on: both sides have a quorum, or
// neither, and of two primaries one has given way.
func (m *Machine) comparable(p *peer, h *protocol.Hello) bool {
	if h.Role != protocol.Primary {
		m.released(p)
	}
	switch {
	case p.ballot == nil:
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "the quorum settings of %s differ: %s on %s; off on %s. Make them the same on every node",
			m.cfg.Name, m.rules(), m.cfg.Self, p.name))
		return false
	case m.vote.yielding != "":
		m.restart(p, m.vote.yielding)
		return false
	case h.Role == protocol.Primary && m.role != protocol.Primary && p.ballot.Term < m.vote.term && !p.ballot.Serving:
		m.restart(p, p.name+" is primary no more, and is about to hear it") // from this node's ballot
		return false
	case h.Role != protocol.Primary || m.role != protocol.Primary:
		return true
	}
	switch serving := m.followed(); {
	case serving && p.ballot.Serving: // only an operator's word makes two
		return true
	case serving || !p.ballot.Serving && m.vote.reign > p.ballot.Term:
		m.restart(p, p.name+" is primary too, and has no quorum")
	case m.rising:
		m.restart(p, p.name+" is primary too")
	default:
		m.restart(p, p.name+" is primary now")
		m.yield(p.name + " was promoted since")
	}
	return false
}
