package replica

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/qrbd/qrbd/protocol"
)

// A volume with a quorum has one primary that answers requests, whatever the
// network and the nodes do. The words used below:
//
//	voter     every node of the volume, witnesses included
//	present   a voter with which a handshake has ended, and that has not left
//	quorate   enough voters are present (votersChanged)
//	term      of a promotion: later ones have higher numbers, no two the same
//	vote      a voter's word, durable there, that it follows a primary's
//	          generation, and nobody else for the length of a lease (lease.go)
//	serving   quorate, and enough votes are younger than half a lease
//
// Invariant: a request is answered without an error only while serving. Whoever is
// promoted needs the leave of enough voters, which none of them gives before the lease
// of the primary that it followed is over, and only to a replica that descends from
// the generation followed last: so it holds what was answered, and who answered it
// answers no more.
//
// An operator's word on data (force.go) takes the place of what voters have followed
// before it, and of nothing that they follow after it.
//
// With the quorum off nothing of this exists.

// QuorumKind says how many voters are enough.
type QuorumKind uint8

// The kinds.
const (
	QuorumOff      QuorumKind = iota
	QuorumMajority            // more than half
	QuorumAll                 // every one that has not left
	QuorumCount               // Quorum.Count
)

// Quorum is a number of nodes.
type Quorum struct {
	Kind  QuorumKind
	Count int
}

// String returns the word or number that a configuration has.
func (q Quorum) String() string {
	switch q.Kind {
	case QuorumOff:
		return "off"
	case QuorumMajority:
		return "majority"
	case QuorumAll:
		return "all"
	case QuorumCount:
	}
	return fmt.Sprint(q.Count)
}

// Need returns how many of so many nodes are enough.
func (q Quorum) Need(nodes int) int {
	switch q.Kind {
	case QuorumOff:
		return 0
	case QuorumMajority:
		return nodes/2 + 1
	case QuorumAll:
		return nodes
	case QuorumCount:
	}
	return q.Count
}

// OnNoQuorum says what becomes of requests without a quorum.
type OnNoQuorum uint8

// The policies.
const (
	NoQuorumSuspend OnNoQuorum = iota // they wait
	NoQuorumError                     // they fail
)

// voting is what a node of a volume with a quorum knows of votes.
type voting struct {
	term  uint64              // of the primary that a quorum, or this node, has followed last
	reign uint64              // a primary's own term; its term too once a quorum has followed it
	voted protocol.Generation // its generation; an own one: a quorum has followed it
	own   protocol.Generation // voted, if that is durable
	// overruled: what was followed in terms up to here does not count against the data that
	// this node has, or has followed; 0: no operator has said so.
	overruled uint64
	floor     uint64 // no primary is followed any more in a term up to here (force.go)
	from      *peer  // the primary that is followed, or that has this node's leave; nil: not known
	until     Time   // nobody else before

	quorate    bool
	lostAt     Time       // since when this primary does not serve
	failing    bool       // requests fail: a new handshake with somebody takes less than a lease
	serving    bool       // when it was last looked at
	unanswered []*Request // done, and may not be answered
	stalled    bool       // a new generation waits for votes
	yielding   string     // this primary was superseded, and waits for its store: why; "": not
	superseded bool       // it had writes under way then
	claimAt    Time       // of the next claim
}

func (m *Machine) quorumOn() bool { return m.cfg.Quorum.Kind != QuorumOff }

// rules are the settings that must be the same on every node.
func (m *Machine) rules() string {
	names := []string{nodeWord(m.cfg.Self, m.cfg.Witness)}
	for _, p := range m.all {
		names = append(names, nodeWord(p.name, p.witness))
	}
	slices.Sort(names)
	return fmt.Sprintf("quorum %s, minimum redundancy %s, peer timeout %s, nodes %s", m.cfg.Quorum, m.cfg.MinRedundancy, seconds(m.cfg.Lease), strings.Join(names, " "))
}

func nodeWord(name string, witness bool) string {
	if witness {
		return name + " (witness)"
	}
	return name
}

// present reports whether the peer can vote, as far as is known.
func (p *peer) present() bool { return p.linked && p.settled && p.ballot != nil && !p.ballot.Left }

// hasLeft reports whether this node left in order, and not everybody who knew has
// confirmed its return.
func (m *Machine) hasLeft() bool {
	return slices.ContainsFunc(m.all, func(p *peer) bool { return p.owes })
}

// enough reports whether this node and those peers are a quorum. Those that have left
// are not missed when all others are there: they have no vote before whoever knows
// that they left has heard that they are back (leave.go). giving: a witness gives no
// quorum to whoever has none.
func (m *Machine) enough(votes func(*peer) bool, giving bool) bool {
	if m.hasLeft() {
		return false
	}
	n, missing := 1, false
	for _, p := range m.all {
		switch {
		case votes(p):
			if !giving || !p.witness {
				n++
			}
		case !p.departed:
			missing = true
		}
	}
	return !missing || n >= m.cfg.Quorum.Need(1+len(m.all))
}

// redundant reports whether so many nodes hold all of the data as are to.
func (m *Machine) redundant(votes func(*peer) bool) bool {
	if m.cfg.MinRedundancy.Kind == QuorumOff {
		return true
	}
	n, missing := 0, false
	if m.disk >= protocol.Consistent && !m.filling {
		n++
	}
	for _, p := range m.peers {
		copied := p.disk >= protocol.Consistent && (m.role != protocol.Primary || p.live && p.repl != protocol.SyncSource)
		switch {
		case votes(p) && copied:
			n++
		case !p.departed:
			missing = true
		}
	}
	return n > 0 && !missing || n >= m.cfg.MinRedundancy.Need(1+len(m.peers))
}

// votersChanged looks again whether this node is quorate.
func (m *Machine) votersChanged() {
	if !m.quorumOn() {
		return
	}
	was := m.vote.quorate
	m.vote.quorate = m.enough((*peer).present, !was)
	if was != m.vote.quorate {
		m.event("", "quorum", quorumWord(was), quorumWord(!was), m.missing())
	}
	m.serveAgain()
}

func quorumWord(on bool) string {
	if on {
		return "yes"
	}
	return "no"
}

// missing lists who is not there, for people.
func (m *Machine) missing() string {
	var list []string
	for _, p := range m.all {
		switch {
		case p.present():
		case p.departed:
			list = append(list, p.name+" (left in order)")
		case p.linked && p.settled:
			list = append(list, p.name+" (left in order, and has not heard from all that it is back)")
		default:
			list = append(list, p.name+" ("+orElse(p.reason, p.conn.String())+")")
		}
	}
	if len(list) == 0 {
		return "all nodes are there"
	}
	return "missing: " + strings.Join(list, ", ")
}

// followed reports whether a quorum follows this primary now.
func (m *Machine) followed() bool {
	v := &m.vote
	if !m.quorumOn() {
		return m.allCovered()
	}
	return m.role == protocol.Primary && v.yielding == "" && v.quorate && v.own == m.current && m.enough(m.votesForThis, false)
}

// mayServe reports whether requests may be answered now.
func (m *Machine) mayServe() bool {
	return m.followed() && (!m.quorumOn() || m.redundant(m.votesForThis))
}

// withhold ends or parks a request that must not begin now, and reports whether it
// did.
func (m *Machine) withhold(r *Request) bool {
	switch {
	case m.mayServe():
		m.answerAll()
		return false
	case m.vote.yielding != "":
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	case m.vote.failing:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNoQuorum})
	default:
		m.held = append(m.held, r)
	}
	return true
}

// answer ends a request, or keeps the answer back until it may be given.
func (m *Machine) answer(r *Request, err error) {
	if err == nil && m.gated() && !r.Internal() {
		switch {
		case m.mayServe():
			m.answerAll()
		case m.role != protocol.Primary || m.vote.yielding != "":
			err = ErrNotPrimary
		case m.stopping:
			err = ErrStopping
		case m.vote.failing:
			err = ErrNoQuorum
		default:
			m.vote.unanswered = append(m.vote.unanswered, r)
			return
		}
	}
	m.emit(Effect{Kind: DoComplete, Req: r, Err: err})
}

// serveAgain goes on with what has waited for votes.
func (m *Machine) serveAgain() {
	v := &m.vote
	if !m.gated() || m.role != protocol.Primary || m.rising || v.yielding != "" {
		return
	}
	if m.quorumOn() && v.own != m.current && v.quorate && m.enough(m.votesForThis, false) {
		m.keepOwnVote()
	}
	if v.stalled && (m.followed() || m.noData()) {
		v.stalled = false
		m.mintRound()
	}
	serving := m.mayServe()
	was := v.serving
	v.serving = serving
	switch {
	case !serving && was:
		v.lostAt = m.now
		m.event("", "io", "served", "suspended", m.suspendedWhy())
	case serving && !was:
		m.event("", "io", "suspended", "served", m.servedWhy())
	}
	if serving {
		v.failing = false
		m.answerAll()
		m.pumpHeld()
	}
}

func (m *Machine) suspendedWhy() string {
	if m.quorumOn() {
		return "too few nodes have confirmed lately that they follow this primary: " + m.missing()
	}
	return m.frozenWhy()
}

func (m *Machine) servedWhy() string {
	if m.quorumOn() {
		return "a quorum follows this primary"
	}
	return "no peer can take over"
}

// answerAll gives the answers that were kept back, before any other. REQUIRES mayServe.
func (m *Machine) answerAll() {
	list := m.vote.unanswered
	m.vote.unanswered = nil
	for _, r := range list {
		if m.bare() {
			// Who holds the data now need not be who did when it was done. Nothing that
			// overlaps it was issued since, so that doing it again does no harm.
			again := Request{Op: r.Op, FUA: r.FUA, NoHole: r.NoHole, Off: r.Off, Len: r.Len, Tag: r.Tag, span: -1, late: r.late, seq: r.seq}
			*r = again
			m.admit(r)
			continue
		}
		m.emit(Effect{Kind: DoComplete, Req: r})
	}
}

// keepOwnVote notes, durably, that a quorum has followed this primary's generation:
// from then on requests may be answered in it.
func (m *Machine) keepOwnVote() {
	current := m.current
	if m.vote.voted != current || m.vote.term != m.vote.reign {
		m.vote.voted, m.vote.term = current, m.vote.reign
		m.persist()
		m.whenSettled(func() { m.ownVoteKept(current) })
		return
	}
	if m.metaDead || m.metaDone == m.metaWant {
		m.vote.own = current
	}
}

func (m *Machine) ownVoteKept(current protocol.Generation) {
	if m.role == protocol.Primary && m.current == current {
		m.vote.own = current
		m.serveAgain()
	}
}

// failWithout fails what waits, when requests are to fail without a quorum.
func (m *Machine) failWithout() {
	m.failAll(&m.vote.unanswered, ErrNoQuorum)
	m.failAll(&m.held, ErrNoQuorum)
	for _, r := range m.genWait {
		r.err = cmp.Or(r.err, ErrNoQuorum)
	}
	m.releaseGenWait()
}

// failAll ends the clients' requests of a list.
func (m *Machine) failAll(list *[]*Request, err error) {
	parked := *list
	*list = nil
	for _, r := range parked {
		switch {
		case r.Op == Pull:
			m.pullEnded(r)
		default:
			m.emit(Effect{Kind: DoComplete, Req: r, Err: err})
		}
	}
}

// tickQuorum is what time does to votes.
func (m *Machine) tickQuorum() {
	if !m.quorumOn() {
		return
	}
	m.yielded()
	if m.role == protocol.Primary && !m.rising && m.vote.yielding == "" && m.now >= m.vote.claimAt {
		m.claim()
	}
	for _, p := range m.all {
		if m.role == protocol.Primary && p.linked && p.settled && m.now-p.answeredAt > m.cfg.WriteTimeout {
			m.dropPeer(p, refusal(protocol.CodeTimeout, "%s has not said for %s whom it follows", p.name, seconds(m.cfg.WriteTimeout)))
		}
		if a := p.waits; a != nil && (m.vote.from == p || m.now >= m.vote.until) {
			p.waits = nil
			m.onPromoteAsk(p, a)
		}
	}
	if v := &m.vote; m.cfg.OnNoQuorum == NoQuorumError && m.role == protocol.Primary && !m.rising && !v.serving && !v.failing && m.now-v.lostAt > m.cfg.Lease {
		v.failing = true
		m.event("", "io", "suspended", "failing", m.missing())
		m.failWithout()
	}
	m.sayBallot()
	m.promoteAnswered()
	m.serveAgain()
}

// stallMint has a new generation wait; serveAgain looks at it again.
func (m *Machine) stallMint() {
	m.vote.stalled = true
	m.mintWait, m.mintNext = 0, nil
}

// beginsSync reports whether a peer gets writes already, and has not confirmed yet that
// it is durably inconsistent: a request must not be answered without it before that.
func (m *Machine) beginsSync() bool {
	return slices.ContainsFunc(m.peers, func(p *peer) bool { return p.live && p.step == syncWaitReady })
}

// redoWaiting issues again, when a carrier returns to a primary without a disk, what
// waits for a generation that it would not have: now it is to have the requests.
func (m *Machine) redoWaiting() {
	if !m.vote.stalled {
		return
	}
	list := m.genWait
	m.genWait = nil
	for _, r := range list {
		if r.Internal() {
			m.genWait = append(m.genWait, r)
			continue
		}
		m.land(r)
		*r = Request{Op: r.Op, FUA: r.FUA, NoHole: r.NoHole, Off: r.Off, Len: r.Len, Tag: r.Tag, span: -1, late: r.late, seq: r.seq}
		m.held = append(m.held, r)
	}
}
