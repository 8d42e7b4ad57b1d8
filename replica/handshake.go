package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// Linked reports that the owner has streams to the peer; err refuses them. The
// machine says hello.
func (m *Machine) Linked(now Time, id PeerID) error {
	m.now = now
	p := m.all[id]
	switch {
	case m.stopping:
		return refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case m.restoring:
		return m.unfinished()
	case p.alone == aloneHere:
		return refusal(protocol.CodeOperator, "%s was disconnected by the operator on %s: run there qrbd connect %s", m.cfg.Name, m.cfg.Self, m.cfg.Name)
	case p.linked:
		return refusal(protocol.CodeBusy, "%s is connected to %s already", m.cfg.Self, p.name)
	}
	p.linked, p.settled, p.alone, p.verified, p.spoiled, p.outrun = true, false, aloneNo, 0, false, false
	p.epoch++
	p.heard, p.rxSeq, p.rxTaken, p.rxApplied, p.rxDurable, p.rxWord = nil, 0, 0, 0, 0, 0
	p.deadline = now + m.cfg.HandshakeTime
	if p.witness || m.cfg.Witness {
		m.linkWitness(p)
		return nil
	}
	if m.quorumOn() {
		m.emit(Effect{Kind: DoSend, Peer: id, Msg: m.ballot()})
		p.saidLeft = m.hasLeft()
	}
	p.sent = m.hello(p)
	p.serial = m.idSerial
	m.emit(Effect{Kind: DoSend, Peer: id, Msg: p.sent})
	return nil
}

// hello says what this replica is, to p.
func (m *Machine) hello(p *peer) *protocol.Hello {
	h := &protocol.Hello{Volume: m.volume, Size: m.cfg.Size, Block: bitmap.BlockSize, Attempt: m.cfg.Rand(), Instance: m.instance,
		Role: m.role, Disk: m.disk, Mode: p.mode, Seq: m.holds, Current: m.current,
		History: append([]protocol.Generation(nil), m.history...), Primary: m.primary(), Policy: m.cfg.Policy, Changes: m.changes(p)}
	set := func(on bool, flag uint32) {
		if on {
			h.Flags |= flag
		}
	}
	set(m.crashed && !p.knowsCrash, protocol.HelloCrashedPrimary)
	set(m.shaken, protocol.HelloShaken)
	set(m.replayed, protocol.HelloReplayed)
	set(p.reconnect, protocol.HelloReconnect)
	set(p.discard, protocol.HelloDiscard)
	set(p.overwrite, protocol.HelloFullTarget)
	set(m.fenced, protocol.HelloPeerFenced)
	set(m.wasPrimary(p), protocol.HelloWasPrimary)
	set(m.writer == m.cfg.Self, protocol.HelloOwnWrites)
	set(m.writer == p.name, protocol.HelloYourWrites)
	set(m.writer != "" && m.writer != m.cfg.Self && m.writer != p.name, protocol.HelloOtherWrites)
	set(p.repair == repairFromPeer && m.role == protocol.Secondary, protocol.HelloRepairTarget)
	set(p.repair == repairFromHere && m.role == protocol.Secondary, protocol.HelloRepairSource)
	set(m.quorumOn() && m.crashed && m.vote.voted != m.current, protocol.HelloUnvoted)
	set(m.lacking, protocol.HelloMayLack)
	for _, q := range m.peers {
		set(q != p && q.repl == protocol.SyncTarget, protocol.HelloTarget)
		set(q != p && (q.mode == protocol.ModeA || q.mode == protocol.ModeB && m.shaken), protocol.HelloMayLack)
	}
	for _, q := range m.peers {
		h.Slots = append(h.Slots, protocol.PeerSlot{Name: q.name, Bitmap: q.slot, Dirty: uint64(q.dirty.Count())})
	}
	return h
}

// onHello checks what both sides must have in common; then one of them decides:
// the primary, whose state alone may move while hellos cross, else the smaller
// name.
func (m *Machine) onHello(p *peer, h *protocol.Hello) {
	if p.witness || m.cfg.Witness {
		m.onWitnessHello(p, h)
		return
	}
	if p.heard != nil {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s said hello twice", p.name))
		return
	}
	c := *h
	c.Slots = append([]protocol.PeerSlot(nil), h.Slots...)
	c.History = append([]protocol.Generation(nil), h.History...)
	p.heard, p.heardAt = &c, m.now
	c.Changes.Ranges = append([]protocol.Range(nil), h.Changes.Ranges...)
	if h.Seq > seqMax {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s says it has sequence %d", p.name, h.Seq))
		return
	}
	p.claims = h.Flags&afterCrash != 0
	m.seqSeen(h.Seq)
	switch {
	case h.Size != m.cfg.Size:
		m.standAlone(p, refusal(protocol.CodeSize, "the sizes of %s differ: %d bytes on %s, %d bytes on %s. Correct the configuration",
			m.cfg.Name, m.cfg.Size, m.cfg.Self, h.Size, p.name))
		return
	case h.Block != bitmap.BlockSize:
		m.standAlone(p, refusal(protocol.CodeVersion, "%s tracks blocks of %d bytes, %s of %d", p.name, h.Block, m.cfg.Self, bitmap.BlockSize))
		return
	case h.Mode != p.mode:
		m.standAlone(p, refusal(protocol.CodeModeMismatch, "the protocols of %s differ: %s on %s, %s on %s. Correct the configuration",
			m.cfg.Name, p.mode, m.cfg.Self, h.Mode, p.name))
		return
	}
	if m.quorumOn() && !m.comparable(p, h) {
		return
	}
	if m.vote.yielding != "" { // it is about to be a secondary
		m.restart(p, m.vote.yielding)
		return
	}
	m.setPeerDisk(p, h.Disk)
	m.setPeerRole(p, h.Role)
	if o := m.offer; m.bare() && !m.minting && o != nil && o.parent == m.current && o.current == h.Current {
		m.takeOffer(o) // it was lost before it could say that it has taken it
	}
	if h.Role == protocol.Primary {
		if m.grantHeld() && m.granted.to != p.id {
			m.restart(p, m.all[m.granted.to].name+" is being promoted, with the leave of "+m.cfg.Self)
			return
		}
		m.yieldTo(p)
	}
	if !m.decides(p) {
		return
	}
	if p.serial != m.idSerial {
		m.verdict(p, Decision{Strategy: protocol.Retry})
		return
	}
	d := Compare(m.side(m.hello(p)), p.side())
	if d.Rule.byPolicy() && Compare(m.side(p.sent), p.side()).Strategy != d.Strategy {
		d = Decision{Strategy: protocol.Retry} // the peer goes by what it was sent
	}
	if d.Rule == RuleDiskless && m.bare() && !m.mayCarry(p) {
		d.Rule = RuleNoDisk
	}
	m.verdict(p, d)
}

// yieldTo ends a sync from another secondary when the primary is here: it goes on
// writing what that secondary would have to copy, and may never be done with.
func (m *Machine) yieldTo(p *peer) {
	for _, q := range m.peers {
		if q != p && q.repl == protocol.SyncTarget && q.role != protocol.Primary {
			m.idSerial++ // the hello says that this replica is busy: have it again
			m.restart(q, "the primary "+p.name+" is here")
		}
	}
}

func (m *Machine) decides(p *peer) bool {
	if p.sent.Role != p.heard.Role {
		return p.sent.Role == protocol.Primary
	}
	return m.cfg.Self < p.name
}

func (m *Machine) seqSeen(s uint64) {
	if m.role != protocol.Primary {
		m.seq = max(m.seq, s)
	}
}

// verdict tells the peer, from its side, and acts on it.
func (m *Machine) verdict(p *peer, d Decision) {
	mirror := d.Mirror()
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Verdict{
		Attempt: p.heard.Attempt, Strategy: mirror.Strategy, Rule: string(mirror.Rule), Digest: d.Digest}})
	m.act(p, d)
}

func (m *Machine) onVerdict(p *peer, v *protocol.Verdict) {
	if p.heard == nil || p.settled || m.decides(p) || v.Attempt != p.sent.Attempt {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent a verdict that nobody asked for", p.name))
		return
	}
	if p.serial != m.idSerial || p.role == protocol.Primary && m.followsAnother(p) {
		m.restart(p, "the state changed during the handshake")
		return
	}
	// The ids are looked at again for explain and for the code of a refusal;
	// the strategy is the decider's.
	d := Compare(m.side(p.sent), p.side())
	switch {
	case !m.acceptable(d, v.Strategy):
		m.dropPeer(p, refusal(protocol.CodeProtocol, "the verdict of %s, %s by rule %s, must not be: here it is %s, %s, by rule %s %s",
			p.name, v.Strategy, v.Rule, m.role, m.disk, d.Rule, d.Strategy))
		return
	case v.Strategy == protocol.NoSync && p.dirty.Count() != 0 && !Rule(v.Rule).allowsBits():
		m.restart(p, "blocks were marked out of sync during the handshake")
		return
	case d.Strategy != v.Strategy:
		d = Decision{Code: d.Code, IDs: d.IDs}
	}
	d.Strategy, d.Rule, d.Digest = v.Strategy, Rule(v.Rule), v.Digest
	m.act(p, d)
}

// acceptable reports whether a strategy that the peer decided on may be followed
// where Compare came to d. Counts of blocks may have moved under the peer, so that
// it need not be the same; but no verdict joins what must not be joined, has a
// primary overwritten, or copies from what is no good.
func (m *Machine) acceptable(d Decision, s protocol.Strategy) bool {
	refused := d.Strategy == protocol.SplitBrain || d.Strategy == protocol.Unrelated || d.Strategy == protocol.RefusedStrategy
	switch s {
	case protocol.TargetBitmap, protocol.TargetFull:
		return !refused && m.role != protocol.Primary
	case protocol.SourceBitmap, protocol.SourceFull:
		return !refused && m.disk > protocol.Inconsistent
	case protocol.NoSync:
		return !refused
	case protocol.SplitBrain, protocol.Unrelated, protocol.Retry, protocol.RefusedStrategy:
	}
	return true
}

// allowsBits reports whether the rule leaves blocks that are out of sync as they
// are.
func (r Rule) allowsBits() bool {
	return r == RuleDefer || r == RuleBothNew || r == RuleDiskless || r == RuleNoDisk
}

// act carries out a decision.
func (m *Machine) act(p *peer, d Decision) {
	p.decision, p.lastWhy = d, d.Rule
	m.tellSplit(p, d)
	switch d.Strategy {
	case protocol.Retry:
		m.restart(p, "the state changed during the handshake")
		return
	case protocol.SplitBrain, protocol.Unrelated, protocol.RefusedStrategy:
		code := d.Code
		if code == protocol.CodeNone {
			code = protocol.CodeNotAllowed
		}
		why := refusal(code, "%s", d.Text(m.cfg.Self, p.name, m.cfg.Name))
		if d.Rule == RuleNoGoodCopy || d.Rule == RuleBusy || d.Rule == RuleFollowsAnother { // a third node may change that: try again
			m.drop(p, why)
			return
		}
		// Both sides know: each says it in its own words.
		p.alone = aloneRefused
		m.event(p.name, "handshake", "", d.Strategy.String(), why.Text)
		m.setConn(p, protocol.Standalone, why.Text)
		m.drop(p, why)
		return
	case protocol.NoSync, protocol.SourceBitmap, protocol.SourceFull, protocol.TargetBitmap, protocol.TargetFull:
	}
	if p.heard.Current == m.current {
		m.mayHavePassedOn(p)
	}
	p.settled = true
	p.older = false // wasPrimary goes by the role now
	p.reconnect = true
	p.repair = repairNone // the bits, and the base of the sync, say the rest
	p.mendAt = max(p.mendAt, m.now+mendEvery)
	p.retryWait = 0
	p.deadline = never
	p.answeredAt, m.vote.claimAt = m.now, 0
	m.event(p.name, "handshake", "", d.Strategy.String(), "rule "+string(d.Rule))
	m.setConn(p, protocol.Connected, "")
	switch d.Strategy {
	case protocol.NoSync:
		m.settleEqual(p, d)
	case protocol.SourceBitmap, protocol.SourceFull:
		m.startSource(p, d)
	case protocol.TargetBitmap, protocol.TargetFull:
		m.startTarget(p, d)
	default:
		panic("replica: unhandled strategy " + d.Strategy.String())
	}
	m.welcome(p)
	m.votersChanged()
}

// settleEqual begins replication between replicas that are equal (or brand new,
// or kept in sync by a third node).
func (m *Machine) settleEqual(p *peer, d Decision) {
	switch d.Rule {
	case RuleDiskless:
		m.settleCarrier(p)
		return
	case RuleNoDisk:
		m.settleWithout(p)
		return
	default:
	}
	dirty := p.dirty.Count()
	if !d.Rule.allowsBits() {
		if dirty != 0 {
			panic(fmt.Sprintf("replica: no sync by rule %s with %d blocks out of sync toward %s", d.Rule, dirty, p.name))
		}
		if p.slot != 0 {
			m.remember(p.slot)
			p.level()
			m.persist()
		}
		m.foundEqual(p)
		m.raiseDisk(p)
		m.holds = max(m.holds, p.heard.Seq)
	}
	p.live = d.Rule != RuleDefer && p.disk > protocol.Failed && m.current != 0 && p.slot == 0 && dirty == 0
	p.discard, p.overwrite = false, false
	if p.disk > protocol.Failed && m.usable() {
		m.setRepl(p, protocol.Established, "")
	}
	if p.live {
		m.equalNow(p)
		m.inSync(p)
		m.proclaim()
	}
	m.pumpHeld()
}

// inSync notes that the peer has all that this node has.
func (m *Machine) inSync(p *peer) {
	p.joined, p.left, p.lacks, p.loose = true, false, false, false
	p.since = m.seq
}

// settleWithout stays connected where one side has no disk: for what else there is
// to say, and until the disk is replaced.
func (m *Machine) settleWithout(p *peer) {
	p.live = false
	p.discard, p.overwrite = false, false
	who := p.name
	if !m.usable() {
		who = m.cfg.Self
	}
	p.reason = fmt.Sprintf("the disk of %s on %s has failed. Replace it and run there: qrbd replace-disk %s", m.cfg.Name, who, m.cfg.Name)
	if m.bare() && p.disk >= protocol.Consistent {
		p.reason = fmt.Sprintf("%s may lack writes that were acknowledged before it was lost: it cannot stand in for the disk of %s, which has failed. To go on from it: qrbd demote %s --force here, then qrbd promote %s there",
			p.name, m.cfg.Self, m.cfg.Name, m.cfg.Name)
	}
	m.pumpHeld()
}

// foundEqual notes that p equals this replica. What a crash may have cost is settled
// with that peer only: another one may have what both lack, or lack what both have. A
// primary's word settles it with all.
func (m *Machine) foundEqual(p *peer) {
	if m.role == protocol.Primary {
		return
	}
	if m.lacking && p.role == protocol.Primary {
		m.lacking = false
		m.persist()
	}
	if m.shaken && (p.role == protocol.Primary || p.heard.Flags&protocol.HelloShaken == 0) {
		m.shaken = false
		m.persist()
	}
	if !m.crashed {
		return
	}
	p.knowsCrash = true
	for _, q := range m.peers {
		if !q.knowsCrash && p.role != protocol.Primary {
			return
		}
	}
	m.crashed = false
	m.persist()
}

// equalNow brings what the peer said of itself up to date once it is known to
// equal this replica, for explain.
func (m *Machine) equalNow(p *peer) {
	if p.heard == nil {
		return
	}
	h := p.heard
	h.Volume, h.Current, h.Disk, h.Flags = m.volume, m.current, protocol.UpToDate, 0
	h.Changes = protocol.Changes{}
	h.History = append(h.History[:0], m.history...)
	for i := range h.Slots {
		h.Slots[i].Bitmap, h.Slots[i].Dirty = 0, 0
	}
}
