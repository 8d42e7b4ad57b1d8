package replica

import (
	"fmt"
	"slices"

	"github.com/qrbd/qrbd/protocol"
)

// PromoteOptions are the operator's words on a promotion.
type PromoteOptions struct {
	Force      bool // accept inconsistent or outdated data; start a brand-new volume
	PeerFenced bool // unreachable peers are dead: the operator vouches
}

// promoteStep is how far a promotion has come.
type promoteStep uint8

const (
	stepAsk    promoteStep = iota // connected peers are asked
	stepFence                     // peers that are out of reach are fenced
	stepSettle                    // the store finishes what lost connections left in it
	stepTake                      // the role is being made durable
)

// promotion is one in progress.
type promotion struct {
	step     promoteStep
	id       uint64
	opt      PromoteOptions
	asked    uint16 // connected peers
	waiting  uint16 // those of them that have not answered
	votes    uint16 // those that have agreed, and have a vote
	over     uint64 // what the operator's word overrules (force.go); 0: nothing
	deadline Time
	done     func(error)
}

// grant is this node's leave to a peer to become primary; while it holds, nobody
// else gets it.
type grant struct {
	to    PeerID
	until Time
}

// Promote makes this node the primary; done is called once, with nil or a
// *Refusal.
func (m *Machine) Promote(now Time, opt PromoteOptions, done func(error)) {
	m.now = now
	if m.role == protocol.Primary && m.drain == nil {
		if opt.PeerFenced && m.fencingOn() {
			m.vouchAsPrimary(done)
			return
		}
		m.reply(done, nil)
		return
	}
	if err := m.mayPromote(opt); err != nil {
		m.reply(done, err)
		return
	}
	m.promote = &promotion{id: m.cfg.Rand(), opt: opt, deadline: now + m.cfg.AskTime, done: done}
	if m.quorumOn() {
		m.promote.deadline += m.cfg.Lease // voters wait for the end of one
		if opt.Force {
			m.promote.over = protocol.ForcedOver(m.lastTerm())
		}
		if opt.PeerFenced {
			m.vouch()
		}
	}
	m.askAll()
	m.promoteAnswered()
}

// askAll asks the connected peers that have not been asked; it reports whether there
// were any. One that connects while others are asked may have another primary, or have
// given its leave to somebody else.
func (m *Machine) askAll() (any bool) {
	pr := m.promote
	for _, p := range m.all {
		if p.linked && p.settled && pr.asked&(1<<p.id) == 0 {
			any = true
			pr.asked |= 1 << p.id
			pr.waiting |= 1 << p.id
			if m.quorumOn() {
				m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: m.candidacy(pr)})
			}
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.PromoteAsk{ID: pr.id, Force: pr.opt.Force}})
		}
	}
	return any
}

// mayPromote says why not, in the words of who could change it.
func (m *Machine) mayPromote(opt PromoteOptions) error {
	name := m.cfg.Name
	switch {
	case m.cfg.Witness:
		return refusal(protocol.CodeNotAllowed, "%s is a witness of %s and holds no data: promote one of the other nodes", m.cfg.Self, name)
	case m.stopping:
		return refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case m.promote != nil || m.drain != nil || m.handover != nil || m.falling || m.grantHeld():
		return refusal(protocol.CodeBusy, "another change of the role of %s is under way: try again in a moment", name)
	case !m.usable():
		return refusal(protocol.CodeDiskFailed, "the disk of %s on %s is %s (%s)", name, m.cfg.Self, m.disk, m.diskWhy)
	}
	for _, p := range m.peers {
		if p.linked && p.settled && p.role == protocol.Primary {
			return refusal(protocol.CodeTwoPrimaries, "%s is primary on %s: hand over with qrbd switchover %s --to %s there, or demote it first",
				name, p.name, name, m.cfg.Self)
		}
	}
	if m.restoring {
		return m.unfinished()
	}
	if err := m.mayLead(opt); err != nil {
		return err
	}
	if opt.Force {
		return nil
	}
	switch {
	case m.current == 0:
		return refusal(protocol.CodeNotAllowed, "%s is brand new: no replica has data yet. If this is the first start of the volume, run: qrbd promote %s --force", name, name)
	case m.disk <= protocol.Outdated:
		return refusal(protocol.CodeNotAllowed, "%s on %s is %s (%s): promote the node that has the newest data. Only if there is none left: qrbd promote %s --force",
			name, m.cfg.Self, m.disk, m.why(), name)
	case m.quorumOn() && !m.claimNow(0).Covers(m.vote.voted): // its own vote is one like the others'
		return refusal(protocol.CodeNotAllowed, "%s has followed a primary of %s with newer data, generation %s, and does not have them: promote a node that has. Only if there is none left: qrbd promote %s --force",
			m.cfg.Self, name, m.vote.voted, name)
	case m.quorumOn() && !opt.PeerFenced && !m.knows(nil, m.claimNow(0)): // it may have followed somebody before
		return refusal(protocol.CodeNotAllowed, "%s is new to %s and has followed nobody: it may be promoted when it is connected to all the others, and has what they have followed (%s). Or promote another node",
			m.cfg.Self, name, m.missing())
	}
	if opt.PeerFenced || m.quorumOn() {
		return nil
	}
	for _, p := range m.peers {
		if m.fencingOn() {
			if err := m.mayFence(p); err != nil {
				return err
			}
			continue
		}
		if !p.linked || !p.settled {
			return refusal(protocol.CodeNotAllowed, "%s is not connected (%s) and may be primary. If you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced",
				p.name, orElse(p.reason, p.conn.String()), name)
		}
	}
	return nil
}

// mayLead says why a volume with a quorum has no primary here.
func (m *Machine) mayLead(opt PromoteOptions) error {
	name := m.cfg.Name
	switch {
	case !m.quorumOn() || opt.PeerFenced:
		return nil
	case m.hasLeft():
		return refusal(protocol.CodeNotAllowed, "%s left the other nodes of %s in order, and may only be promoted when they have heard that it is back; %s. If you are certain that they are dead or cut off from their clients, run: qrbd promote %s --peer-fenced",
			m.cfg.Self, name, m.missing(), name)
	case !m.vote.quorate:
		return refusal(protocol.CodeNotAllowed, "%s has no quorum (%s of %d nodes) on %s; %s. If you are certain that they are dead or cut off from their clients, run: qrbd promote %s --peer-fenced",
			name, m.cfg.Quorum, 1+len(m.all), m.cfg.Self, m.missing(), name)
	}
	return nil
}

func (m *Machine) why() string { return orElse(m.diskWhy, "as it was when the agent started") }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// promoteAnswered goes on when every connected peer has agreed: what connections
// left in the store must not land on what is written as primary.
func (m *Machine) promoteAnswered() {
	pr := m.promote
	if pr == nil || pr.waiting != 0 || pr.step != stepAsk {
		return
	}
	if m.quorumOn() && m.now < m.vote.until { // this node has a vote like the others
		if m.now > pr.deadline {
			m.endPromote(refusal(protocol.CodeBusy, "%s follows a primary of %s, or did until a moment ago: look at qrbd status %s and try again", m.cfg.Self, m.cfg.Name, m.cfg.Name))
		}
		return
	}
	if err := m.mayStillPromote(pr.opt); err != nil {
		m.endPromote(err)
		return
	}
	if m.askAll() || m.fenceFirst(pr) {
		return
	}
	pr.step = stepSettle
	m.endTarget()
	m.emit(Effect{Kind: DoSettle})
}

// StoreSettled reports that nothing which came over a connection that is lost by now
// is in the store, nor will be.
func (m *Machine) StoreSettled(now Time) {
	m.now = now
	pr := m.promote
	if pr == nil || pr.step != stepSettle {
		return // of a promotion that was given up
	}
	if err := m.mayStillPromote(pr.opt); err != nil {
		m.endPromote(err)
		return
	}
	if m.endTarget() { // again: it was connected anew meanwhile
		m.emit(Effect{Kind: DoSettle})
		return
	}
	if m.askAll() {
		pr.step = stepAsk
		return
	}
	if m.fenceFirst(pr) { // one was lost meanwhile
		return
	}
	if err := m.elected(pr); err != nil {
		m.endPromote(err)
		return
	}
	pr.step = stepTake
	m.takeRole(pr.opt)
}

// elected says why the answers are too few.
func (m *Machine) elected(pr *promotion) error {
	if !m.quorumOn() {
		return nil
	}
	votes := func(p *peer) bool { return p.present() && pr.votes&(1<<p.id) != 0 }
	switch {
	case !m.enough(votes, false):
		return refusal(protocol.CodeNotAllowed, "too few nodes of %s have agreed that %s is primary; %s. Try again", m.cfg.Name, m.cfg.Self, m.missing())
	case !m.redundant(votes) && !pr.opt.Force && m.current != 0:
		return refusal(protocol.CodeNotAllowed, "fewer nodes hold all data of %s than quorum_minimum_redundancy demands (%s); %s", m.cfg.Name, m.cfg.MinRedundancy, m.missing())
	}
	return nil
}

// takeRole makes this node the primary; nothing stands in the way any more.
func (m *Machine) takeRole(opt PromoteOptions) {
	first := m.current == 0
	if first {
		m.current = protocol.Generation(m.cfg.Rand())
		m.event("", "generation", protocol.Generation(0).String(), m.current.String(), "first generation of the volume")
		if m.volume == (protocol.VolumeID{}) {
			m.volume = m.cfg.VolumeID()
		}
	}
	m.crashed, m.shaken, m.lacking = false, false, false
	m.fenced = m.fenced || opt.PeerFenced || opt.Force
	why := "promoted by the operator"
	if opt.Force {
		why += ", by force"
	}
	if opt.PeerFenced || opt.Force {
		m.vouchFenced()
	}
	m.discarded(nil, why)
	m.setDisk(protocol.UpToDate, why)
	m.leaveDiffering()
	m.frozen++ // no write before the role is durable
	m.rising = true
	m.overrule()
	m.beginTerm()
	m.setRole(protocol.Primary, why)
	m.forgetJoined()
	m.forgetWords()
	m.whenDurable(func() {
		if !m.rising {
			return // its disk failed meanwhile
		}
		m.frozen--
		m.rising = false
		m.endPromote(nil)
		m.becamePrimary()
	})
}

// leaveDiffering ends the connections with who knows of blocks that differ: what it has there
// is not to pass for what this primary has.
func (m *Machine) leaveDiffering() {
	for _, p := range m.peers {
		if p.differs && p.linked {
			m.restart(p, p.name+" knows of blocks that are out of sync with "+m.cfg.Self)
		}
		p.differs = false
	}
}

// mayStillPromote checks again what may have changed while peers were asked.
func (m *Machine) mayStillPromote(opt PromoteOptions) error {
	pr := m.promote
	m.promote = nil
	err := m.mayPromote(opt)
	m.promote = pr
	if err != nil {
		return err
	}
	for _, p := range m.peers { // one that has agreed may have followed a primary since
		if h := p.heard; p.linked && p.settled && h != nil && h.Primary != "" && h.Primary != m.cfg.Self &&
			h.Current != m.current && !slices.Contains(m.history, h.Current) {
			return refusal(protocol.CodeTwoPrimaries, "%s is primary on %s, which %s is connected to", m.cfg.Name, h.Primary, p.name)
		}
	}
	return nil
}

// forgetJoined begins a reign: who is in sync in it is not known yet.
func (m *Machine) forgetJoined() {
	for _, p := range m.peers {
		p.joined = false
	}
}

// forgetWords drops what operators said of the data that was here: it is not the
// same any more.
func (m *Machine) forgetWords() {
	for _, p := range m.peers {
		p.discard, p.overwrite = false, false
	}
}

// endTarget ends the sync that would go on overwriting what this node, primary by
// force, writes; it reports whether there was one.
func (m *Machine) endTarget() (was bool) {
	for _, p := range m.peers {
		if p.repl == protocol.SyncTarget {
			m.restart(p, m.cfg.Self+" is promoted by force while it is overwritten")
			was = true
		}
	}
	return was
}

// becamePrimary tells the peers, and settles with those that cannot simply be
// written to.
func (m *Machine) becamePrimary() {
	for _, p := range m.peers {
		p.apart = false
	}
	m.broadcastState()
	if m.quorumOn() {
		m.claim()
		m.votersChanged()
	} else {
		m.vote.serving, m.vote.failing = true, false
	}
	for _, p := range m.peers {
		if !p.linked || !p.settled || p.repl != protocol.Established {
			continue
		}
		p.live = p.disk > protocol.Inconsistent && p.slot == 0 && p.dirty.Count() == 0 && !m.knownNew(p) && p.lastWhy != RuleDefer
		if !p.live {
			m.restart(p, "compare again, as primary")
			continue
		}
		m.inSync(p)
	}
	m.proclaim()
	m.serveAgain()
	m.pumpHeld()
}

// knownNew reports whether the peer holds no data yet.
func (m *Machine) knownNew(p *peer) bool {
	return p.heard != nil && p.heard.Current == 0 && p.decision.Rule == RuleBothNew
}

func (m *Machine) endPromote(err error) {
	pr := m.promote
	m.promote = nil
	if pr != nil {
		m.reply(pr.done, err)
	}
}

// differing reports whether p, which this node was compared with, passes for equal, and
// blocks are marked toward it that it is to get.
func (p *peer) differing() bool {
	return p.repl == protocol.Established && p.lastWhy != RuleDefer && p.unsettled()
}

func (m *Machine) onPromoteAsk(p *peer, a *protocol.PromoteAsk) {
	ans := &protocol.PromoteAnswer{ID: a.ID}
	switch {
	case m.quorumOn() && a.Force && m.metaDead: // that must be kept
		ans.Code, ans.Text = protocol.CodeDiskFailed, fmt.Sprintf("the metadata of %s on %s cannot be written", m.cfg.Name, m.cfg.Self)
	case m.quorumOn() && (p.asks == nil || m.objects(p.asks) && !a.Force):
		ans.Code, ans.Text = protocol.CodeNotAllowed, fmt.Sprintf("%s has followed a primary of %s with newer data, generation %s: promote a node that has it", m.cfg.Self, m.cfg.Name, m.vote.voted)
	case m.quorumOn() && !a.Force && !m.knows(p, p.asks):
		ans.Code, ans.Text = protocol.CodeNotAllowed, fmt.Sprintf("%s is new to %s and has followed nobody: it agrees when it is connected to all the others (%s)", m.cfg.Self, m.cfg.Name, m.missing())
	case m.role == protocol.Primary:
		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+" is primary on "+m.cfg.Self
	case m.handover != nil || m.drain != nil || m.grantHeld() && m.granted.to != p.id:
		ans.Code, ans.Text = protocol.CodeBusy, m.cfg.Self+" takes part in another change of the role of "+m.cfg.Name
	case m.promote != nil && m.cfg.Self < p.name:
		ans.Code, ans.Text = protocol.CodeBusy, m.cfg.Self+" is being promoted itself"
	case m.primary() != "" && m.primary() != p.name:
		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+" is primary on "+m.primary()+", which "+m.cfg.Self+" is connected to"
	case m.meetsPrimary(p) != "":
		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+" is primary on "+m.meetsPrimary(p)+", which "+m.cfg.Self+" has just connected to"
	case m.newer(p) && !a.Force && m.disk == protocol.Failed:
		ans.Code, ans.Text = protocol.CodeNotAllowed, fmt.Sprintf("%s had newer data than %s, on a disk that has failed. If nobody else has them and they are lost for good, go on from %s without them: qrbd promote %s --force", m.cfg.Self, p.name, p.name, m.cfg.Name)
	case m.newer(p) && !a.Force:
		ans.Code, ans.Text = protocol.CodeNotAllowed, fmt.Sprintf("%s has newer data than %s. Promote %s, or wait until %s is in sync", m.cfg.Self, p.name, m.cfg.Self, p.name)
	case p.differing() && !a.Force:
		ans.Code, ans.Text = protocol.CodeBusy, fmt.Sprintf("%d blocks of %s are out of sync with %s: they are compared now, try again in a moment", p.dirty.Count(), m.cfg.Self, p.name)
	case m.quorumOn() && m.promised(p):
		c := *a
		p.waits = &c // until the primary that was followed answers no more
		return
	default:
		ans.Yes = true
		if p.differing() { // by force
			ans.Code = protocol.CodeBusy
		}
		m.promise(p, a.Force)
		m.unfence(p, "it is promoted")
		m.granted = grant{p.id, m.now + m.cfg.AskTime}
		if m.promote != nil {
			m.endPromote(refusal(protocol.CodeBusy, "%s is being promoted at the same time and goes first", p.name))
		}
	}
	if m.quorumOn() {
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: m.ballot()})
	}
	epoch := p.epoch
	send := func() {
		if p.epoch == epoch && p.linked {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: ans})
		}
	}
	if ans.Yes && (m.fencingOn() || a.Force && m.quorumOn()) { // not fenced any more, or overruled, durably
		m.whenDurable(send)
		return
	}
	send()
}

// meetsPrimary returns the name of a primary other than p that has said hello, and counts on
// this node as soon as the handshake is done. Empty: there is none.
func (m *Machine) meetsPrimary(p *peer) string {
	for _, q := range m.all {
		if q != p && q.linked && !q.settled && q.role == protocol.Primary {
			return q.name
		}
	}
	return ""
}

// newer reports whether this replica, which is a good one, or was until its disk failed, has
// gone on from the generation that p is at: they follow one primary, or did until a moment ago.
func (m *Machine) newer(p *peer) bool {
	if p.heard == nil { // a witness has none
		return false
	}
	g := p.heard.Current
	return (m.disk > protocol.Outdated || m.disk == protocol.Failed) && g != 0 && g != m.current && (p.slot == g || slices.Contains(m.history, g))
}

func (m *Machine) onPromoteAnswer(p *peer, a *protocol.PromoteAnswer) {
	if m.promote == nil || a.ID != m.promote.id || m.promote.waiting&(1<<p.id) == 0 {
		return
	}
	if !a.Yes {
		m.endPromote(refusal(a.Code, "%s refuses: %s", p.name, a.Text))
		return
	}
	m.promote.waiting &^= 1 << p.id
	m.promote.votes |= 1 << p.id
	p.differs = a.Code == protocol.CodeBusy
	m.promoteAnswered()
}

func (m *Machine) promoteLost(p *peer) {
	if m.promote == nil {
		return
	}
	m.promote.asked &^= 1 << p.id
	if m.promote.waiting&(1<<p.id) != 0 {
		m.promote.waiting &^= 1 << p.id
		m.promoteAnswered()
	}
}

func (m *Machine) grantHeld() bool { return m.granted.until > m.now }

func (m *Machine) grantUsed(p *peer) {
	if m.granted.to == p.id {
		m.granted = grant{}
	}
}
