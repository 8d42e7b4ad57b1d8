package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// PromoteOptions are the operator's words on a promotion.
type PromoteOptions struct {
	Force      bool // accept inconsistent or outdated data; start a brand-new volume
	PeerFenced bool // unreachable peers are dead: the operator vouches
}

// promotion is one in progress.
type promotion struct {
	id       uint64
	opt      PromoteOptions
	waiting  uint16 // connected peers that have not answered
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
		m.reply(done, nil)
		return
	}
	if err := m.mayPromote(opt); err != nil {
		m.reply(done, err)
		return
	}
	m.promote = &promotion{id: m.cfg.Rand(), opt: opt, deadline: now + m.cfg.AskTime, done: done}
	for _, p := range m.peers {
		if p.linked && p.settled {
			m.promote.waiting |= 1 << p.id
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.PromoteAsk{ID: m.promote.id, Force: opt.Force}})
		}
	}
	m.promoteAnswered()
}

// mayPromote says why not, in the words of who could change it.
func (m *Machine) mayPromote(opt PromoteOptions) error {
	name := m.cfg.Name
	switch {
	case m.stopping:
		return refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case m.promote != nil || m.drain != nil || m.handover != nil || m.grantHeld():
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
	if opt.Force {
		return nil
	}
	switch {
	case m.current == 0:
		return refusal(protocol.CodeNotAllowed, "%s is brand new: no replica has data yet. If this is the first start of the volume, run: qrbd promote %s --force", name, name)
	case m.disk <= protocol.Outdated:
		return refusal(protocol.CodeNotAllowed, "%s on %s is %s (%s): promote the node that has the newest data. Only if there is none left: qrbd promote %s --force",
			name, m.cfg.Self, m.disk, m.why(), name)
	}
	if opt.PeerFenced {
		return nil
	}
	for _, p := range m.peers {
		if !p.linked || !p.settled {
			return refusal(protocol.CodeNotAllowed, "%s is not connected (%s) and may be primary. If you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced",
				p.name, orElse(p.reason, p.conn.String()), name)
		}
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

func (m *Machine) grantHeld() bool { return m.granted.until > m.now }

func (m *Machine) grantUsed(p *peer) {
	if m.granted.to == p.id {
		m.granted = grant{}
	}
}

// promoteAnswered goes on when every connected peer has agreed.
func (m *Machine) promoteAnswered() {
	pr := m.promote
	if pr == nil || pr.waiting != 0 {
		return
	}
	if err := m.mayStillPromote(pr.opt); err != nil {
		m.endPromote(err)
		return
	}
	first := m.current == 0
	if first {
		m.current = protocol.Generation(m.cfg.Rand())
		m.event("", "generation", protocol.Generation(0).String(), m.current.String(), "first generation of the volume")
		if m.volume == (protocol.VolumeID{}) {
			m.volume = m.cfg.VolumeID()
		}
	}
	m.crashed = false
	m.fenced = m.fenced || pr.opt.PeerFenced || pr.opt.Force
	why := "promoted by the operator"
	if pr.opt.Force {
		why += ", by force"
	}
	m.setDisk(protocol.UpToDate, why)
	m.frozen++ // no write before the role is durable
	m.setRole(protocol.Primary, why)
	m.recent.list = m.recent.list[:0]
	m.endTarget()
	m.forgetWords()
	m.promote.waiting = 0
	m.whenDurable(func() {
		m.frozen--
		m.endPromote(nil)
		m.becamePrimary()
	})
}

// forgetWords drops what operators said of the data that was here: it is not the
// same any more.
func (m *Machine) forgetWords() {
	for _, p := range m.peers {
		p.discard, p.overwrite = false, false
	}
}

// endTarget ends the sync that would go on overwriting what this node, primary by
// force, writes.
func (m *Machine) endTarget() {
	for _, p := range m.peers {
		if p.repl == protocol.SyncTarget {
			m.restart(p, m.cfg.Self+" was promoted by force while it was overwritten")
		}
	}
}

// mayStillPromote checks again what may have changed while peers were asked.
func (m *Machine) mayStillPromote(opt PromoteOptions) error {
	pr := m.promote
	m.promote = nil
	err := m.mayPromote(opt)
	m.promote = pr
	return err
}

// becamePrimary tells the peers, and settles with those that cannot simply be
// written to.
func (m *Machine) becamePrimary() {
	for _, p := range m.peers {
		p.apart = false
	}
	m.broadcastState()
	for _, p := range m.peers {
		if !p.linked || !p.settled || p.repl != protocol.Established {
			continue
		}
		p.live = p.disk > protocol.Failed && p.slot == 0 && p.dirty.Count() == 0 && !m.knownNew(p) && p.lastWhy != RuleDefer
		if !p.live {
			m.restart(p, "compare again, as primary")
		}
	}
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

func (m *Machine) onPromoteAsk(p *peer, a *protocol.PromoteAsk) {
	ans := &protocol.PromoteAnswer{ID: a.ID}
	switch {
	case m.role == protocol.Primary:
		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+" is primary on "+m.cfg.Self
	case m.handover != nil || m.drain != nil || m.grantHeld() && m.granted.to != p.id:
		ans.Code, ans.Text = protocol.CodeBusy, m.cfg.Self+" takes part in another change of the role of "+m.cfg.Name
	case m.promote != nil && m.cfg.Self < p.name:
		ans.Code, ans.Text = protocol.CodeBusy, m.cfg.Self+" is being promoted itself"
	case m.primary() != "" && m.primary() != p.name:
		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+" is primary on "+m.primary()+", which "+m.cfg.Self+" is connected to"
	default:
		ans.Yes = true
		m.granted = grant{p.id, m.now + m.cfg.AskTime}
		if m.promote != nil {
			m.endPromote(refusal(protocol.CodeBusy, "%s is being promoted at the same time and goes first", p.name))
		}
	}
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: ans})
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
	m.promoteAnswered()
}

func (m *Machine) promoteLost(p *peer) {
	if m.promote != nil && m.promote.waiting&(1<<p.id) != 0 {
		m.promote.waiting &^= 1 << p.id
		m.promoteAnswered()
	}
}

// draining is a demotion in progress: no new request is taken, those in flight
// end, everything is flushed, then next is called.
type draining struct {
	flush    *Request
	flushed  bool
	deadline Time
	next     func(error)
}

// Demote makes this node a secondary. The owner has seen to it that no client is
// left; requests that still come fail with ErrNotPrimary.
func (m *Machine) Demote(now Time, done func(error)) {
	m.now = now
	m.startDrain(done, func(err error) {
		if err != nil {
			m.undrain()
			m.reply(done, err)
			return
		}
		m.stepDown("demoted by the operator", func() { m.reply(done, nil) })
	})
}

// startDrain calls next once nothing is in flight and all of it is flushed.
func (m *Machine) startDrain(done func(error), next func(error)) {
	switch {
	case m.role != protocol.Primary && m.drain == nil:
		m.reply(done, nil)
		return
	case m.drain != nil || m.handover != nil:
		m.reply(done, refusal(protocol.CodeBusy, "another change of the role of %s is under way: try again in a moment", m.cfg.Name))
		return
	}
	m.drain = &draining{next: next, deadline: m.now + m.cfg.WriteTimeout + m.cfg.AskTime}
	m.frozen++
	list := m.held
	m.held = nil
	for _, r := range list {
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	}
	if m.flights == 0 {
		m.drained()
	}
}

// drained flushes when the last request has ended, and goes on after that.
func (m *Machine) drained() {
	d := m.drain
	switch {
	case !m.usable():
		m.drain = nil
		d.next(nil) // nothing can be flushed; stepping down is right all the same
	case m.minting || len(m.arming) > 0:
		return // Tick looks again
	case d.flush == nil:
		// The next primary may be one that cannot know what is still on its way
		// to a third replica.
		d.flush = &Request{Op: Flush, Tag: internalTag, span: -1, all: true}
		m.issueFlush(d.flush)
	case d.flushed:
		m.drain = nil
		d.next(d.flush.err)
	}
}

// internalTag marks the machine's own requests; the owner answers nobody.
var internalTag = new(int)

// Internal reports whether a request is the machine's own: the owner executes its
// DoLocal like any other and calls Finished in place of answering a client.
func (r *Request) Internal() bool { return r.Tag == any(internalTag) }

// Finished takes back an internal request that completed.
func (m *Machine) Finished(now Time, r *Request) {
	m.now = now
	if m.ownFlush == r {
		m.ownFlush = nil
	}
	if m.drain != nil && m.drain.flush == r {
		m.drain.flushed = true
		m.drained()
	}
}

func (m *Machine) undrain() {
	m.drain = nil
	m.frozen--
	m.pumpHeld()
}

// stepDown makes the secondary role durable, tells the peers and calls then. It
// ends the freeze of the drain before it.
func (m *Machine) stepDown(why string, then func()) {
	m.crashed = false
	m.fenced = false
	m.setRole(protocol.Secondary, why)
	for _, p := range m.peers {
		if p.plan != nil && p.repl == protocol.VerifySource {
			m.endVerifyEarly(p)
		}
	}
	// Metadata that still says primary counts as a crash at the next start: that
	// costs a comparison, and nobody can write meanwhile.
	m.whenSettled(func() {
		m.frozen--
		m.broadcastState()
		then()
		m.pumpHeld()
	})
}

func (m *Machine) endVerifyEarly(p *peer) {
	done := p.verifyReply
	p.lastStats, p.lastBad = p.plan.Stats(), p.plan.Bad()
	p.plan, p.verifyReply = nil, nil
	m.setRepl(p, protocol.Established, "demoted")
	m.reply(done, refusal(protocol.CodeNotAllowed, "%s was demoted while it was verified", m.cfg.Name))
}

// handoverOut is a planned switchover, at the old primary.
type handoverOut struct {
	id       uint64
	to       PeerID
	sent     bool
	deadline Time
	done     func(error)
}

// Switchover hands the role over to a peer: drain, flush, step down durably, then
// the peer becomes primary in the same generation. If it refuses, the role comes
// back; if it falls silent, nobody is primary and the text says so.
func (m *Machine) Switchover(now Time, id PeerID, done func(error)) {
	m.now = now
	p := m.peers[id]
	switch {
	case m.role != protocol.Primary:
		where := m.primary()
		if where == "" {
			m.reply(done, refusal(protocol.CodeNotAllowed, "%s is not primary on %s, nor on any node it is connected to", m.cfg.Name, m.cfg.Self))
			return
		}
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is primary on %s: run the switchover there", m.cfg.Name, where))
		return
	case p.repl != protocol.Established || p.disk != protocol.UpToDate || !p.live:
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s cannot take over: replication is %s, its disk is %s. Wait for it: qrbd wait %s --for up-to-date",
			p.name, p.repl, p.disk, m.cfg.Name))
		return
	}
	m.startDrain(done, func(err error) {
		if err == nil && !p.live {
			err = refusal(protocol.CodeNotAllowed, "%s was lost during the switchover; %s stays primary", p.name, m.cfg.Self)
		}
		if err != nil {
			m.undrain()
			m.reply(done, err)
			return
		}
		m.handover = &handoverOut{id: m.cfg.Rand(), to: id, deadline: m.now + 2*m.cfg.AskTime, done: done}
		m.stepDown("switchover to "+p.name, func() {
			if m.handover == nil {
				return
			}
			m.handover.sent = true
			m.emit(Effect{Kind: DoSend, Peer: id, Msg: &protocol.Handover{ID: m.handover.id, Current: m.current, Seq: m.seq}})
		})
	})
}

func (m *Machine) onHandover(p *peer, h *protocol.Handover) {
	epoch := p.epoch
	answer := func(err error) {
		if p.epoch != epoch || !p.linked {
			return
		}
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.HandoverAnswer{ID: h.ID, Yes: err == nil, Text: text(err)}})
	}
	var err error
	switch {
	case m.role == protocol.Primary || m.primary() != "" || m.promote != nil || m.drain != nil || m.stopping || h.Seq > seqMax:
		err = refusal(protocol.CodeBusy, "%s takes part in another change of the role", m.cfg.Self)
	case p.repl != protocol.Established || m.disk != protocol.UpToDate || m.current != h.Current:
		err = refusal(protocol.CodeNotAllowed, "%s is %s, at generation %s", m.cfg.Self, m.disk, m.current)
	}
	if err != nil {
		answer(err)
		return
	}
	m.seq = max(m.seq, h.Seq)
	m.frozen++
	m.setPeerRole(p, protocol.Secondary)
	m.setRole(protocol.Primary, "switchover from "+p.name)
	m.recent.list = m.recent.list[:0]
	m.whenDurable(func() {
		m.frozen--
		answer(nil)
		m.becamePrimary()
	})
}

func (m *Machine) onHandoverAnswer(p *peer, a *protocol.HandoverAnswer) {
	h := m.handover
	if h == nil || h.id != a.ID || h.to != p.id {
		return
	}
	m.handover = nil
	if a.Yes {
		m.reply(h.done, nil)
		return
	}
	m.frozen++
	m.setRole(protocol.Primary, p.name+" refused the switchover")
	m.whenDurable(func() {
		m.frozen--
		m.becamePrimary()
		m.reply(h.done, refusal(protocol.CodeNotAllowed, "%s refuses the switchover: %s. %s is primary again", p.name, a.Text, m.cfg.Self))
	})
}

func (m *Machine) handoverLost(p *peer) {
	if h := m.handover; h != nil && h.to == p.id {
		m.handover = nil
		m.reply(h.done, refusal(protocol.CodeTimeout, "%s fell silent during the switchover: it may be primary now. Look there with qrbd status; if it is not, promote one node by hand", p.name))
	}
}

// Invalidate has this replica overwritten in full by a peer.
func (m *Machine) Invalidate(now Time, done func(error)) {
	m.now = now
	if m.role == protocol.Primary {
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is primary on %s: demote it before its data is given up", m.cfg.Name, m.cfg.Self))
		return
	}
	var from *peer
	for _, p := range m.peers {
		if p.linked && p.settled && p.disk == protocol.UpToDate && (from == nil || p.role == protocol.Primary) {
			from = p
		}
	}
	if from == nil {
		m.reply(done, refusal(protocol.CodeNotAllowed, "no connected peer of %s is up-to-date: there is nothing to copy from", m.cfg.Name))
		return
	}
	from.overwrite = true
	m.restart(from, "the operator has this replica overwritten")
	m.reply(done, nil)
}

// Stop takes no more requests and operations; the owner drains first if it can.
// Durable afterwards (MetaDone): whether the volume was closed in order.
func (m *Machine) Stop(now Time) {
	m.now = now
	m.stopping = true
	for _, p := range m.peers {
		if p.linked {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Bye{Code: protocol.CodeShutdown, Text: m.cfg.Self + " is stopping"}})
			m.drop(p, refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self))
		}
	}
}

// Abandon answers the requests that nobody will finish any more. REQUIRES Stop.
// Those that are with the local store are answered when it is done (LocalDone).
func (m *Machine) Abandon(now Time) {
	m.now = now
	for _, list := range []*[]*Request{&m.held, &m.arming, &m.overlapped} {
		for _, r := range *list {
			m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrStopping})
		}
		*list = nil
	}
	for _, r := range m.genWait {
		r.err = ErrStopping
	}
	m.releaseGenWait()
}

// MarkClean is the last change: nothing is in flight, the store is flushed. The
// activity map need not be replayed.
func (m *Machine) MarkClean(now Time) {
	m.now = now
	if m.role == protocol.Primary || m.crashed || m.flights > 0 || !m.usable() {
		return
	}
	m.cleanMark = true
	m.wantBitmaps = true
	m.persist()
}
