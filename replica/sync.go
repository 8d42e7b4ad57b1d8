package replica

import (
	"fmt"
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// Plan returns the sync or verify that runs toward a peer, nil when none does.
// The owner calls its methods under the same lock as the machine's.
func (m *Machine) Plan(id PeerID) *resync.Plan { return m.all[id].plan }

// Free reports whether nothing that is being written, here or on its way to the
// peer, touches the range: what Plan.Next asks.
func (m *Machine) Free(id PeerID) func(off, n int64) bool {
	p := m.all[id]
	return func(off, n int64) bool { return !m.overlaps(off, n) && !p.ring.overlapsUnapplied(off, n) }
}

// startSource prepares to overwrite the peer: the bits of both sides and the
// generation that they count from are durable before the first block is sent, so
// that an interruption at any point resumes.
func (m *Machine) startSource(p *peer, d Decision) {
	m.setRepl(p, protocol.SyncSource, "rule "+string(d.Rule))
	p.live, p.left = false, true
	p.digest = d.Digest
	p.lastStats = resync.Stats{} // of another sync
	p.base = p.heard.Current
	if d.Rebase || p.base == 0 {
		p.base = protocol.Generation(m.cfg.Rand())
	}
	p.deadline = m.now + m.cfg.HandshakeTime
	if d.Other != "" {
		m.mergeSlot(p, m.byName(d.Other))
	}
	p.patience = m.now + askMax
	if d.Strategy == protocol.SourceFull {
		p.dirty.SetAll()
	}
	p.step = syncBitmap
}

// mergeSlot adds to p's bits those toward another peer.
func (m *Machine) mergeSlot(p, other *peer) {
	if other == nil {
		p.dirty.SetAll() // its slot is not ours to read: compare everything
		p.digest = true
		return
	}
	eachRun(other.dirty, p.dirty.Set)
}

func (m *Machine) onBitmapPart(p *peer, b *protocol.BitmapPart) {
	if p.step != syncBitmap && p.step != syncWaitStart {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent a bitmap that nobody asked for", p.name))
		return
	}
	p.deadline = m.now + m.cfg.HandshakeTime
	switch {
	case b.First > uint64(p.dirty.Words()):
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent bits beyond the end of the volume", p.name))
		return
	case b.First < p.rxWord: // or it never ends
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent bits from word %d after those up to %d", p.name, b.First, p.rxWord))
		return
	}
	p.rxWord = b.First + uint64(len(b.Words))
	if p.step == syncWaitStart {
		m.markOverwritten(p, b)
		return
	}
	if _, err := p.dirty.OrWords(int64(b.First), b.Words); err != nil {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s: %v", p.name, err))
	}
}

func (m *Machine) onBitmapDone(p *peer, _ *protocol.BitmapDone) {
	if p.step != syncBitmap {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s ended a bitmap that nobody asked for", p.name))
		return
	}
	m.persistBase(p)
}

func (m *Machine) persistBase(p *peer) {
	p.step = syncPersist
	if p.slot != p.base {
		m.remember(p.slot)
		p.slot = p.base
		m.idSerial++
	}
	m.wantBitmaps = true
	m.persist()
	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch != epoch || p.step != syncPersist {
			return
		}
		p.step = syncWaitReady
		p.deadline = m.now + m.cfg.HandshakeTime
		if len(m.peers) > 1 {
			m.sendBits(p)
		}
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.SyncStart{Base: p.base, Volume: m.volume, Blocks: uint64(p.dirty.Count()), Digest: p.digest}})
		// From this place in the stream on the peer gets every write.
		p.live = true
		m.pumpHeld()
	})
}

func (m *Machine) onSyncReady(p *peer) {
	if p.step != syncWaitReady {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s is ready for a sync that was not started", p.name))
		return
	}
	p.step = syncRunning
	m.parted(p) // it is at the base of the sync, durably
	m.outrun(p)
	p.deadline = never
	kind := resync.Copy
	if p.digest {
		kind = resync.Digest
	}
	m.setPeerDisk(p, protocol.Inconsistent)
	p.total = p.dirty.Count()
	p.plan = resync.New(kind, p.dirty, m.cfg.Size, m.cfg.Sync, m.now)
	m.emit(Effect{Kind: DoSync, Peer: p.id})
}

// PlanProgressed is called after every answer that a plan took: it lets writes in
// that waited for a run.
func (m *Machine) PlanProgressed(now Time, id PeerID) {
	m.now = now
	m.pumpOverlapped()
}

// PlanDone reports that the peer's plan has nothing left to do.
func (m *Machine) PlanDone(now Time, id PeerID) {
	m.now = now
	p := m.all[id]
	if p.plan == nil {
		return
	}
	if p.plan.Kind() == resync.Verify {
		m.setRepl(p, protocol.Established, "verify done")
		m.endVerify(p, nil)
		return
	}
	if n := p.dirty.Count(); n != 0 {
		panic(fmt.Sprintf("replica: sync with %s ends with %d blocks out of sync", p.name, n))
	}
	p.lastStats = p.plan.Stats()
	p.plan = nil
	m.pumpOverlapped()
	// The slot is cleared durably before the peer hears that it is in sync: were
	// it the other way, a crash between would leave a peer that is taken to be
	// behind at a generation that it has left.
	p.step = syncEnding
	p.deadline = m.now + m.cfg.HandshakeTime
	m.remember(p.slot)
	p.level()
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch != epoch || p.step != syncEnding {
			return
		}
		if m.minting {
			p.endPending = true // minted goes on
			return
		}
		m.endSource(p)
	})
}

// endSource tells the target that it is in sync. A generation that is being minted
// comes first: the target must not be told an id that is about to be left.
func (m *Machine) endSource(p *peer) {
	p.step = syncWaitAck
	p.since = m.seq // what a run brought had its place in the order of writes
	p.deadline = m.now + m.cfg.HandshakeTime
	done := &protocol.SyncDone{Current: m.current, Seq: m.holds, History: append([]protocol.Generation(nil), m.history...)}
	for _, q := range m.peers {
		done.Slots = append(done.Slots, protocol.PeerSlot{Name: q.name, Bitmap: q.slot, Dirty: uint64(q.dirty.Count())})
	}
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: done})
}

func (m *Machine) onSyncDoneAck(p *peer) {
	if p.step != syncWaitAck {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s confirmed a sync that has not ended", p.name))
		return
	}
	p.step = syncNone
	p.deadline = never
	m.setPeerDisk(p, protocol.UpToDate)
	m.setRepl(p, protocol.Established, "sync done")
	p.claims = p.sent.Flags&afterCrash != 0 // it has them from here
	m.equalNow(p)
	m.foundEqual(p)
	m.inSync(p)
	if m.role == protocol.Secondary {
		m.raiseDisk(p)
	}
	m.nextTick.stable = 0
}

// startTarget prepares to be overwritten, by one peer at a time. Whoever is
// connected as an equal will not be one any more.
func (m *Machine) startTarget(p *peer, d Decision) {
	m.idSerial++
	p.discards = m.discards(p, d)
	m.setRepl(p, protocol.SyncTarget, "rule "+string(d.Rule))
	p.step = syncWaitStart
	p.live = false
	p.deadline = m.now + m.cfg.HandshakeTime
	m.unfence(p, p.name+" has newer data")
	if m.disk > protocol.Outdated {
		m.setDisk(protocol.Outdated, p.name+" has newer data")
	}
	if p.role == protocol.Primary && p.heard.Current == m.current && m.crashed {
		// What this node had as a primary is given up on a later primary's word, whatever
		// becomes of the sync: who follows that one is not to be overwritten with it.
		m.crashed = false
		m.persist()
	}
	if m.fencingOn() { // a primary waits for it
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.State{Role: m.role, Disk: m.disk, Current: m.current, Primary: m.primary()}})
	}
	for _, q := range m.peers {
		if q != p && q.linked && q.lastWhy != RuleDefer {
			m.restart(q, m.cfg.Self+" is being overwritten by "+p.name)
		}
	}
	if p.repl != protocol.SyncTarget {
		return // a promotion by force waited for one of those only
	}
	if m.cfg.AskTarget {
		m.askTarget(p)
		return
	}
	m.readyTarget(p)
}

// readyTarget sends the source this side's bits; the sync may begin.
func (m *Machine) readyTarget(p *peer) {
	p.step = syncWaitStart
	p.deadline = m.now + m.cfg.HandshakeTime
	if p.decision.Strategy != protocol.TargetBitmap {
		for _, q := range m.peers {
			if q != p {
				q.dirty.SetAll()
			}
		}
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.BitmapDone{}})
		return
	}
	m.sendBits(p)
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.BitmapDone{Blocks: uint64(p.dirty.Count())}})
}

// sendBits sends what is marked toward the peer.
func (m *Machine) sendBits(p *peer) {
	for w := p.dirty.NextWord(0); w >= 0 && w < p.dirty.Words(); w = p.dirty.NextWord(w) {
		n := min(int64(protocol.BitmapWordMax), p.dirty.Words()-w)
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.BitmapPart{First: uint64(w), Words: p.dirty.AppendWords(nil, w, int(n))}})
		w += n
	}
}

// onSyncStart holds the stream until what the sync takes from here can be archived,
// and until "inconsistent, at this base" is durable.
func (m *Machine) onSyncStart(p *peer, s *protocol.SyncStart) {
	switch {
	case p.step != syncWaitStart || m.role == protocol.Primary || p.rxHold || s.Base == 0:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s starts a sync that was not agreed", p.name))
		return
	case !m.usable(): // it failed since the handshake
		m.dropPeer(p, refusal(protocol.CodeDiskFailed, "the disk of %s on %s has failed: %s", m.cfg.Name, m.cfg.Self, m.diskWhy))
		return
	}
	p.base, p.startVolume = s.Base, s.Volume
	p.total = int64(min(s.Blocks, uint64(p.dirty.Blocks())))
	if p.discards != nil {
		m.archive(p)
		return
	}
	m.beginTarget(p)
}

// beginTarget makes "inconsistent, at this base" durable; then blocks come.
func (m *Machine) beginTarget(p *peer) {
	m.volume = p.startVolume
	m.forgetWords()
	m.current = p.base
	m.crashed, m.lacking, m.writer = false, false, ""
	m.idSerial++
	m.setDisk(protocol.Inconsistent, "being overwritten by "+p.name)
	m.wantBitmaps = true
	m.persist()
	p.rxHold = true
	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch != epoch {
			return
		}
		p.step = syncRunning
		p.deadline = never
		m.release(p)
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.SyncReady{}})
	})
}

// SyncAllowed reports whether the peer may write (verify: compare) through the
// bulk stream now.
func (m *Machine) SyncAllowed(id PeerID, compareOnly bool) error {
	p := m.all[id]
	switch {
	case !p.linked || !p.settled || m.disk <= protocol.Failed:
	case p.repl == protocol.SyncTarget && p.step == syncRunning:
		return nil
	case compareOnly && p.repl == protocol.Established && (m.primary() == "" || m.primary() == p.name):
		return nil // another primary's writes are not held off what is compared
	}
	return refusal(protocol.CodeProtocol, "%s sent bulk data while the connection is %s", p.name, p.repl)
}

// SyncedDurable tells the target that the runs are on its stable storage: what it
// had marked toward the source is equal now.
func (m *Machine) SyncedDurable(id PeerID, runs []resync.Run) {
	p := m.all[id]
	if p.repl != protocol.SyncTarget {
		return
	}
	for _, r := range runs {
		p.dirty.Clear(bitmap.Covered(r.Off, r.Len, m.cfg.Size))
	}
}

func (m *Machine) onSyncDone(p *peer, s *protocol.SyncDone) {
	if p.repl != protocol.SyncTarget || p.step != syncRunning || m.role == protocol.Primary {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s ends a sync that did not run", p.name))
		return
	}
	switch {
	case s.Seq > seqMax:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s says it has sequence %d", p.name, s.Seq))
		return
	case s.Current == 0 || p.rxHold:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s ends a sync at generation %s, or twice", p.name, s.Current))
		return
	case !m.usable():
		m.dropPeer(p, refusal(protocol.CodeDiskFailed, "the disk of %s on %s has failed: %s", m.cfg.Name, m.cfg.Self, m.diskWhy))
		return
	}
	m.event("", "generation", m.current.String(), s.Current.String(), "in sync with "+p.name)
	m.current = s.Current
	m.history = append([]protocol.Generation(nil), s.History...)
	m.seqSeen(s.Seq)
	m.holds = max(s.Seq, p.rxSeq) // what it held before counts no more
	m.shaken = p.role != protocol.Primary && p.heard.Flags&protocol.HelloShaken != 0
	m.forgetWords()
	for _, q := range m.peers {
		q.level()
	}
	p.dirty.Clear(0, p.dirty.Blocks()) // the source confirmed the whole replica
	for _, e := range s.Slots {
		q := m.byName(e.Name)
		if q == nil || q == p {
			continue
		}
		// Who parted from the source parted from this replica. The bits toward it
		// are this replica's own: they count from what was here before, and what
		// the sync has overwritten is among them. The base of a sync that the
		// source has under way is another matter: this replica has not begun it.
		if slices.Contains(m.history, e.Bitmap) {
			q.slot = e.Bitmap
		}
	}
	m.unmark(p)
	// What a crashed primary has is here now, and counts for as much.
	m.crashed = p.role != protocol.Primary && p.heard.Flags&protocol.HelloCrashedPrimary != 0
	m.heir = m.crashed
	m.lacking = p.role != protocol.Primary && !m.crashed && p.heard.Flags&protocol.HelloMayLack != 0
	for _, q := range m.peers {
		q.knowsCrash = q == p
	}
	m.idSerial++
	m.wantBitmaps = true
	m.setDisk(protocol.UpToDate, "in sync with "+p.name)
	m.discarded(p, "")
	m.vote.superseded = false
	m.persist()
	epoch := p.epoch
	p.rxHold = true // what follows belongs to the new generation
	m.whenDurable(func() {
		if p.epoch != epoch {
			return
		}
		m.release(p)
		p.step = syncNone
		m.setRepl(p, protocol.Established, "sync done")
		m.equalNow(p)
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.SyncDoneAck{}})
		m.broadcastState()
	})
}

// endSync forgets a sync or verify whose peer is lost. Bits stay as they are: they
// were cleared only on proof.
func (m *Machine) endSync(p *peer) {
	switch {
	case p.plan == nil:
	case p.plan.Kind() == resync.Verify:
		m.endVerify(p, refusal(protocol.CodeShutdown, "the connection to %s was lost while it was verified", p.name))
	default:
		p.lastStats = p.plan.Stats()
		p.plan = nil
		m.pumpOverlapped()
	}
	p.step, p.endPending, p.fresh = syncNone, false, nil
	p.deadline = never
	if p.rxHold {
		m.release(p)
	}
}
