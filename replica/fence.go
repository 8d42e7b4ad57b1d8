package replica

import (
	"fmt"
	"slices"
	"strings"

	"github.com/qrbd/qrbd/protocol"
)

// Of a volume with fencing, whoever goes on without a peer first has its owner see to
// it that the peer cannot take over (DoFence). The words used below:
//
//	fenced   a peer is out of reach or behind, and cannot take over before it has been
//	         in sync with this node again: durable here (fenceState.kept)
//	bonded   to a peer: it has no durable note that this node is fenced, and this
//	         replica had, when the two were last connected, all that the peer had
//	         acknowledged (fenceState.shares). A start of the node ends it, and so does
//	         data that is outdated or worse
//	covered  of a primary's peer: it is fenced, or gets every write and confirms it
//
// A promotion needs, for every peer that is out of reach, that it is fenced, or that
// this node is bonded to it and the hook says that it has been fenced now. A primary
// under FencingStonith answers only while every peer is covered.
//
// Invariant: if this node is bonded to a peer, that one has no note that this node is
// fenced (Bond is sent when it is durably gone; what makes such a note later is the word
// of this node that it stops or that its data are old, or an answer of the hook, which
// is true only if this node was stopped or its data are old by then: all of which end the
// bond). So of two nodes only one can have the other fenced.
//
// Invariant: who is bonded to a primary has all that it acknowledged: the primary went
// on without it only after it was fenced, which ends the bond.
//
// Who has been started since is neither, and waits for the peer or for the operator's
// word: the peer may have gone on.

// Fencing says what must be certain of a peer that is out of reach.
type Fencing uint8

// The policies.
const (
	FencingOff      Fencing = iota // the operator vouches for its death
	FencingResource                // before a promotion, that it is fenced
	FencingStonith                 // also before a primary answers without it
)

// String returns the word of a configuration.
func (f Fencing) String() string {
	switch f {
	case FencingResource:
		return "resource-only"
	case FencingStonith:
		return "resource-and-stonith"
	case FencingOff:
	}
	return "dont-care"
}

// FenceAnswer is what the owner has found out about a peer that is to be fenced.
type FenceAnswer uint8

// The answers.
const (
	FenceFailed       FenceAnswer = iota // nothing is known
	FenceInconsistent                    // its data are inconsistent
	FenceOutdated                        // it knows durably that its data are outdated
	FenceUnreachable                     // it cannot be reached, and may be alive
	FencePrimary                         // it is primary
	FenceStonithed                       // it was stopped since the question was asked
)

const (
	fenceRetryMin = Time(2e9)
	fenceRetryMax = Time(30e9) // while clients wait
	fenceRestMax  = Time(300e9)
	// fenceGrace is the wait for a peer whose connection was ended to have it anew.
	fenceGrace = Time(3e9)
	// strayTime is the wait for a connected peer to get writes, or to begin to be overwritten.
	strayTime = Time(5e9)
)

// fenceState is what a node with fencing knows of a peer.
type fenceState struct {
	kept   bool   // it is fenced
	sure   bool   // and that is durable
	turn   uint64 // counts changes of kept
	noted  bool   // the metadata may say that it is fenced, also if it is not any more
	shares bool   // this node is bonded to it
	said   bool   // Bond was sent on this connection
	asking bool   // the owner is
	asked  bool   // the owner was, since the peer was last in sync
	at     Time   // of the next question
	wait   Time   // what was last waited
	stray  Time   // when a connected peer that gets no writes is told that its data are old; 0: it is none
	why    string // the last question had no answer that helps
}

func (m *Machine) fencingOn() bool { return m.cfg.Fencing != FencingOff && !m.quorumOn() }

// gated reports whether answers depend on others.
func (m *Machine) gated() bool {
	return m.quorumOn() || m.fencingOn() && m.cfg.Fencing == FencingStonith
}

// covered reports whether the peer cannot take over without what this primary answers,
// nor this node, started anew, without what the peer alone has by then.
func (m *Machine) covered(p *peer) bool {
	return !m.staleNote(p) && (p.fence.kept && p.fence.sure || p.linked && p.settled && p.live && p.step != syncWaitReady)
}

// staleNote reports whether this node, started anew, would take a peer for fenced that
// holds the data in its place: its disk has failed, and its metadata with it.
func (m *Machine) staleNote(p *peer) bool {
	return m.bare() && p.fence.noted && (!p.fence.kept || p.live)
}

// allCovered reports whether a primary with FencingStonith may answer.
func (m *Machine) allCovered() bool {
	return !m.gated() || !slices.ContainsFunc(m.peers, func(p *peer) bool { return !m.covered(p) })
}

// keepOff notes that a peer is fenced.
func (m *Machine) keepOff(p *peer, why string) {
	f := &p.fence
	if f.kept {
		return
	}
	f.kept, f.sure, f.noted, f.wait, f.why = true, false, true, 0, ""
	f.turn++
	turn := f.turn
	m.event(p.name, "fencing", "", "fenced", why)
	m.persist()
	m.whenSettled(func() {
		if f.turn == turn {
			f.sure = true
			m.serveAgain()
		}
	})
}

// unfence drops the note that a peer is fenced. What must not happen before that is
// durable is the caller's.
func (m *Machine) unfence(p *peer, why string) {
	f := &p.fence
	if !f.kept && !f.asked {
		return
	}
	m.event(p.name, "fencing", "fenced", "unfenced", why)
	f.asked, f.why = false, ""
	if f.kept {
		f.kept, f.sure = false, false
		f.turn++
		m.persist()
		turn := f.turn
		m.whenDurable(func() {
			if f.turn == turn {
				f.noted = false
				m.serveAgain()
			}
		})
	}
}

// notesKept: the metadata are new, and say what is so.
func (m *Machine) notesKept() {
	for _, p := range m.peers {
		p.fence.noted = p.fence.kept
	}
	m.serveAgain()
}

// unbind ends the bonds of a replica whose data are not good any more.
func (m *Machine) unbind() {
	for _, p := range m.all {
		p.fence.shares = false
	}
}

// fencingLost: the connection to the peer has ended.
func (m *Machine) fencingLost(p *peer, cause error) {
	if !m.fencingOn() {
		return
	}
	f := &p.fence
	f.said, f.wait, f.at, f.why = false, 0, m.now, ""
	if r, ok := cause.(*Refusal); ok && r.Code == protocol.CodeRestart {
		f.at += fenceGrace
	}
	m.serveAgain()
}

// tickFencing is what time does to it.
func (m *Machine) tickFencing() {
	if !m.fencingOn() {
		return
	}
	m.yielded()
	for _, p := range m.peers {
		m.bind(p)
		primary := m.role == protocol.Primary && !m.rising
		switch f := &p.fence; {
		case f.kept || !primary:
		case p.linked && p.settled && p.role != protocol.Primary && p.disk != protocol.DiskUnknown && p.disk <= protocol.Outdated:
			m.keepOff(p, "its disk is "+p.disk.String())
		case !p.linked && !f.asking && !m.stopping && m.now >= f.at:
			m.askFence(p)
		}
		m.tickStray(p, primary)
	}
	m.serveAgain()
}

// tickStray tells a connected peer that gets no writes, and that nothing brings up to
// date now, that its data are old: it cannot take over then. Else a primary waits for it
// which cannot bring it up to date before its own disk is filled.
func (m *Machine) tickStray(p *peer, primary bool) {
	f := &p.fence
	switch {
	case !primary || f.kept || !p.linked || !p.settled || p.live || p.step != syncNone || p.disk <= protocol.Outdated || m.noData():
		f.stray = 0
	case f.stray == 0:
		f.stray = m.now + strayTime
	case m.now >= f.stray:
		f.stray = 0
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Bye{Code: protocol.CodeRestart, Outdate: true, Text: m.cfg.Self + " goes on without this replica"}})
		m.drop(p, refusal(protocol.CodeRestart, "%s is told that its data are old", p.name))
	}
}

// bind tells a peer that is in sync, when it is durable that it is not fenced.
func (m *Machine) bind(p *peer) {
	f := &p.fence
	in := p.linked && p.settled && !m.stopping && p.lastWhy != RuleDefer && p.slot == 0 && p.dirty.Count() == 0 &&
		(p.repl == protocol.Established || p.repl == protocol.VerifySource || p.repl == protocol.VerifyTarget) &&
		m.disk == protocol.UpToDate && p.disk == protocol.UpToDate && (m.role != protocol.Primary || p.live)
	if !in || f.said {
		f.said = f.said && in
		return
	}
	f.said = true
	m.unfence(p, "in sync again")
	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch == epoch && p.linked && f.said && !f.kept {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Bond{}})
		}
	})
}

func (m *Machine) onBond(p *peer) {
	if m.fencingOn() && m.disk >= protocol.Consistent {
		p.fence.shares = true
	}
}

// saidBye: a bonded peer that stops in order comes back as one that has been started.
func (m *Machine) saidBye(p *peer, b *protocol.Bye) {
	if m.fencingOn() && b.Code == protocol.CodeShutdown && p.settled && p.fence.shares && p.role == protocol.Secondary && !m.stopping {
		m.keepOff(p, "it has stopped in order")
	}
}

func (m *Machine) askFence(p *peer) {
	p.fence.asking, p.fence.asked = true, true
	m.event(p.name, "fencing", "", "asked", orElse(p.reason, p.conn.String()))
	m.emit(Effect{Kind: DoFence, Peer: p.id, Token: p.epoch})
}

// FenceAnswered answers DoFence. why is the answer in words. It does not count if the
// peer has been connected since.
func (m *Machine) FenceAnswered(now Time, id PeerID, token uint64, a FenceAnswer, why string) {
	m.now = now
	p := m.all[id]
	f := &p.fence
	f.asking = false
	if token != p.epoch {
		f.at = max(f.at, m.now)
		m.promoteFenced(p)
		return
	}
	switch a {
	case FenceInconsistent:
		m.setPeerDisk(p, protocol.Inconsistent)
		m.keepOff(p, "fence-peer: "+why)
	case FenceOutdated, FenceStonithed:
		m.setPeerDisk(p, protocol.Outdated)
		m.keepOff(p, "fence-peer: "+why)
	case FencePrimary, FenceUnreachable, FenceFailed:
		m.fenceFailed(p, why)
		if a == FencePrimary && m.role != protocol.Primary && m.disk > protocol.Outdated {
			m.setDisk(protocol.Outdated, p.name+" is primary, as fence-peer says, and has gone on")
			m.broadcastState()
		}
	}
	m.promoteFenced(p)
	m.serveAgain()
}

func (m *Machine) fenceFailed(p *peer, why string) {
	f := &p.fence
	most := fenceRestMax
	if m.cfg.Fencing == FencingStonith && m.role == protocol.Primary {
		most = fenceRetryMax
	}
	f.wait = min(max(2*f.wait, fenceRetryMin), most)
	f.at, f.why = m.now+f.wait, why
	m.event(p.name, "fencing", "asked", "failed", why)
}

// mayHandOver says why, with fencing, the role is not handed over to a peer. A third node may
// have a note that this peer is fenced, of when it was primary itself: it must have dropped
// it (dropNotes), or be unable to take over.
func (m *Machine) mayHandOver(to *peer) error {
	if !m.fencingOn() {
		return nil
	}
	for _, q := range m.peers {
		switch f := &q.fence; {
		case q == to || f.kept && f.sure || q.linked && q.settled && (q.confirms() || q.disk != protocol.DiskUnknown && q.disk <= protocol.Outdated):
		case q.linked:
			return refusal(protocol.CodeBusy, "%s is connected, and not in sync yet: wait for it (qrbd wait %s --for up-to-date)", q.name, m.cfg.Name)
		default:
			return refusal(protocol.CodeNotAllowed, "%s %s. It could take over beside %s: connect it, or, if you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced, and then the switchover again",
				q.name, m.fenceText(q), to.name, m.cfg.Name)
		}
	}
	return nil
}

// dropNotes has the others drop durably, before the drain ends, what they noted of a peer
// that has been brought up to date since: that it is fenced.
func (m *Machine) dropNotes(to *peer) {
	if !m.fencingOn() {
		return
	}
	m.sendStable()
	for _, q := range m.peers {
		q.claims = q.claims || q != to
	}
	m.proclaim()
}

// outOfReach reports whether a promotion has to be sure that the peer is fenced.
func (p *peer) outOfReach() bool { return !(p.linked && p.settled) && !p.fence.kept }

// mayFence says why a promotion without the peer, which is out of reach, is not tried.
func (m *Machine) mayFence(p *peer) error {
	switch {
	case !p.outOfReach():
		return nil
	case p.linked:
		return refusal(protocol.CodeBusy, "%s is connecting: try again in a moment", p.name)
	case !p.fence.shares:
		return refusal(protocol.CodeNotAllowed, "%s is not connected (%s), and may have gone on without %s, which has not been in sync with it since its agent was started or its data became old: "+
			"connect the two, or promote %s. If you are certain that it is dead and that nothing newer is lost with it, run: qrbd promote %s --peer-fenced",
			p.name, orElse(p.reason, p.conn.String()), m.cfg.Self, p.name, m.cfg.Name)
	}
	return nil
}

// fenceFirst has the owner asked about every peer that a promotion has to be sure of;
// it reports whether there is one.
func (m *Machine) fenceFirst(pr *promotion) bool {
	if !m.fencingOn() || pr.opt.PeerFenced || pr.opt.Force {
		return false
	}
	waits := false
	for _, p := range m.peers {
		if !p.outOfReach() {
			continue
		}
		waits = true
		if !p.fence.asking {
			m.askFence(p)
		}
	}
	if waits {
		pr.step = stepFence
	}
	return waits
}

// promoteFenced goes on with a promotion when the last answer is there.
func (m *Machine) promoteFenced(p *peer) {
	pr := m.promote
	if pr == nil || pr.step != stepFence {
		return
	}
	if p.outOfReach() && p.fence.why != "" {
		m.endPromote(refusal(protocol.CodeNotAllowed, "%s is not connected (%s), and is not fenced: %s. Correct that, or, if you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced",
			p.name, orElse(p.reason, p.conn.String()), p.fence.why, m.cfg.Name))
		return
	}
	if slices.ContainsFunc(m.peers, func(q *peer) bool { return q.fence.asking }) {
		return
	}
	// What the connected peers have said may be too old by now.
	pr.step, pr.asked, pr.waiting, pr.votes = stepAsk, 0, 0, 0
	pr.deadline = m.now + m.cfg.AskTime
	m.askAll()
	m.promoteAnswered()
}

// vouchFenced takes the operator's word that whoever is out of reach is dead.
func (m *Machine) vouchFenced() {
	if !m.fencingOn() {
		return
	}
	for _, p := range m.peers {
		if !(p.linked && p.settled) {
			m.keepOff(p, "the operator vouches for it")
		}
	}
}

// vouchAsPrimary is the same word to a primary that waits for it.
func (m *Machine) vouchAsPrimary(done func(error)) {
	m.vouchFenced()
	m.whenSettled(func() {
		m.serveAgain()
		m.reply(done, nil)
	})
}

// Outdate makes it durable that this replica's data are old: it is not promoted before
// it has been in sync with a newer one. done(nil): it is so.
func (m *Machine) Outdate(now Time, done func(error)) {
	m.now = now
	name := m.cfg.Name
	switch {
	case m.cfg.Witness:
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is a witness of %s and holds no data", m.cfg.Self, name))
		return
	case m.role == protocol.Primary:
		m.reply(done, refusal(protocol.CodeTwoPrimaries, "%s is primary on %s: it is the newest", name, m.cfg.Self))
		return
	case m.promote != nil || m.drain != nil || m.handover != nil || m.falling:
		m.reply(done, refusal(protocol.CodeBusy, "a change of the role of %s is under way on %s: try again in a moment", name, m.cfg.Self))
		return
	case m.primary() != "":
		m.reply(done, refusal(protocol.CodeBusy, "%s is connected to the primary %s, and gets what is written: disconnect it first, or wait until the loss of the connection is noticed", m.cfg.Self, m.primary()))
		return
	}
	m.unbind()
	if m.disk > protocol.Outdated {
		m.setDisk(protocol.Outdated, "outdated by the operator, or by the fence-peer hook of a peer")
		m.broadcastState()
	}
	m.whenSettled(func() {
		if m.metaDead && m.disk != protocol.Failed {
			m.reply(done, refusal(protocol.CodeDiskFailed, "the metadata of %s on %s cannot be written", name, m.cfg.Self))
			return
		}
		m.reply(done, nil)
	})
}

// frozenWhy says, for people, why a primary answers nothing; "": it does, or for
// another reason.
func (m *Machine) frozenWhy() string {
	if m.role != protocol.Primary || !m.fencingOn() || m.allCovered() {
		return ""
	}
	var list []string
	for _, p := range m.peers {
		if !m.covered(p) {
			list = append(list, p.name+" "+m.fenceText(p))
		}
	}
	return fmt.Sprintf("%s. If you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced", strings.Join(list, "; "), m.cfg.Name)
}

// fenceText says how it stands with a peer that is not covered.
func (m *Machine) fenceText(p *peer) string {
	f := &p.fence
	switch {
	case m.staleNote(p) && p.linked && p.settled:
		return "holds the data, and the metadata of " + m.cfg.Self + ", which cannot be written, may say that it is fenced: replace the disk (qrbd replace-disk " + m.cfg.Name + ")"
	case p.linked && p.settled:
		return "is connected, and not in sync yet"
	case p.linked:
		return "is connecting"
	case f.asking:
		return "is lost, and may take over: the hook fence-peer is running"
	case f.why != "":
		return fmt.Sprintf("is lost, and may take over: %s; the hook is asked again in %s", f.why, seconds(max(0, f.at-m.now)/1e9*1e9))
	case f.kept:
		return "is fenced, which is not durable yet"
	}
	return "is lost, and may take over: the hook fence-peer is about to be asked"
}
