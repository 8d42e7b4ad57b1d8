package replica

import (
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// PeerData takes a replicated operation from a peer, in stream order. err: the
// peer broke the protocol and the connection is being dropped; or ErrDiskFailed:
// the operation is to be ignored. wait: the operation must not be applied before Held(peer) is false (an
// extent must become durable on the activity map first); the owner holds the
// stream until then, and asks MayApply. Afterwards the owner applies it and calls PeerApplied.
func (m *Machine) PeerData(now Time, id PeerID, d *protocol.Data) (wait bool, err error) {
	m.now = now
	p := m.all[id]
	switch {
	case !m.Receiving(id):
		err = refusal(protocol.CodeProtocol, "%s sent a write while the connection is %s and it is %s", p.name, p.repl, p.role)
	case !m.usable():
		return false, ErrDiskFailed // the primary has been told, or is about to be
	case d.Seq <= p.rxSeq || d.Seq > seqMax:
		err = refusal(protocol.CodeProtocol, "%s sent sequence %d after %d", p.name, d.Seq, p.rxSeq)
	case d.Off > m.cfg.Size || d.Len > m.cfg.Size-d.Off:
		err = refusal(protocol.CodeProtocol, "%s wrote %d bytes at %d of %d", p.name, d.Len, d.Off, m.cfg.Size)
	}
	if err != nil {
		m.dropPeer(p, err)
		return false, err
	}
	p.rxSeq = d.Seq
	m.seq = max(m.seq, d.Seq)
	m.holds = max(m.holds, d.Seq)
	if d.Op == protocol.DataFlush {
		return false, nil
	}
	hold := m.writerIs(p)
	if len(m.peers) > 1 {
		hold = m.noteWrite(p, d) || hold
	}
	if hold {
		m.holdUntilDurable(p)
	}
	return hold, nil
}

// holdUntilDurable keeps p's stream back until what is to be committed now is durable.
func (m *Machine) holdUntilDurable(p *peer) {
	epoch := p.epoch
	p.rxHold = true
	m.commit()
	m.whenDurable(func() {
		if p.epoch == epoch { // else the hold is another connection's
			m.release(p)
		}
	})
}

// noteWrite remembers what the other replicas may lack of a primary's write, should that one be lost,
// and reports whether an extent of the activity map has to become durable before it is applied.
func (m *Machine) noteWrite(p *peer, d *protocol.Data) bool {
	from, to := bitmap.Touched(d.Off, d.Len)
	p.overwrites(d.Off, d.Len)
	m.leaveSyncs(p) // what is copied there may be older than what is marked here
	for _, q := range m.peers {
		if q != p && q.weak {
			q.dirty.Set(from, to)
		}
	}
	m.recent.push(d.Seq, d.Off, d.Len)
	m.boundRecent(p)
	return !m.activity.Touch(d.Off, d.Len, d.Seq, m.now)
}

// Receiving reports whether the peer may send operations now.
func (m *Machine) Receiving(id PeerID) bool {
	p := m.all[id]
	return m.role != protocol.Primary && p.settled && (p.repl == protocol.SyncTarget && p.step == syncRunning ||
		p.role == protocol.Primary && (p.repl == protocol.Established || p.repl == protocol.VerifyTarget))
}

// leaveSyncs ends the syncs from this secondary: the primary p is here, and settles it.
func (m *Machine) leaveSyncs(p *peer) {
	for _, q := range m.peers {
		if q != p && q.repl == protocol.SyncSource {
			m.restart(q, m.cfg.Self+" follows the primary "+p.name+" again")
		}
	}
}

// seqMax bounds the sequences that a peer may name: this node counts on from there,
// and must not wrap in its life.
const seqMax = 1 << 62

// release lets a held stream go on.
func (m *Machine) release(p *peer) {
	p.rxHold = false
	m.emit(Effect{Kind: DoResume, Peer: p.id})
}

// Held reports whether the peer's stream must wait: after a message, as after an operation,
// nothing else of it is handed in before this is false.
func (m *Machine) Held(id PeerID) bool { return m.all[id].rxHold || m.all[id].early != nil }

// MayApply reports whether an operation that was held may be applied after all. It may
// not when the disk failed meanwhile: the extent is not on the activity map, and
// nothing would tell that its blocks were written.
func (m *Machine) MayApply() bool { return m.usable() }

// PeerTaken reports that a peer's operation is about to enter the local store, and is
// applied even if the connection is lost now: what protocol B calls received.
func (m *Machine) PeerTaken(id PeerID, seq uint64) {
	p := m.all[id]
	p.rxTaken = max(p.rxTaken, seq)
}

// PeerApplied reports a peer's operation as written to the local store, or
// failed. A replica that could not write is failed: it has lost its place.
func (m *Machine) PeerApplied(now Time, id PeerID, seq uint64, err error) {
	m.now = now
	p := m.all[id]
	if err != nil {
		m.failDisk("write from " + p.name + ": " + err.Error())
		return
	}
	p.rxApplied = max(p.rxApplied, seq)
}

// PeerDurable reports that everything the peer sent up to seq is on stable
// storage here.
func (m *Machine) PeerDurable(now Time, id PeerID, seq uint64, err error) {
	m.now = now
	p := m.all[id]
	if err != nil {
		m.failDisk("flush for " + p.name + ": " + err.Error())
		return
	}
	p.rxDurable = max(p.rxDurable, seq)
	m.localDurable = max(m.localDurable, seq)
	m.bootDurable = true
}

// recentRing remembers the writes of the primary that some other secondary may
// not have on stable storage, by sequence.
type recentRing struct {
	list []recentWrite
}

type recentWrite struct {
	seq uint64
	off int64
	n   int64
}

func (r *recentRing) push(seq uint64, off, n int64) {
	r.list = append(r.list, recentWrite{seq, off, n})
}

// prune forgets what everybody has.
func (r *recentRing) prune(upTo uint64) {
	i := 0
	for i < len(r.list) && r.list[i].seq <= upTo {
		i++
	}
	if i > 0 {
		r.list = append(r.list[:0], r.list[i:]...)
	}
}

// markAfter sets in set every write after seq.
func (r *recentRing) markAfter(seq uint64, set *bitmap.Set) {
	for _, w := range r.list {
		if w.seq > seq {
			set.Set(bitmap.Touched(w.off, w.n))
		}
	}
}

// recentMax bounds the ring; beyond it the writes are marked at once, which
// costs a comparison later and never a lost block.
const recentMax = 64 << 10

// weaken notes that, from here on in the primary's stream, q does not get what we
// get.
func (m *Machine) weaken(q *peer) {
	if q.weak {
		return
	}
	m.recent.markAfter(q.stable, q.dirty)
	q.weak = true
}

// onStable takes the primary's word on the other secondaries.
func (m *Machine) onStable(p *peer, s *protocol.Stable) {
	if p.role != protocol.Primary || m.role == protocol.Primary || p.repl == protocol.Behind {
		return
	}
	low := ^uint64(0)
	for _, e := range s.Peers {
		q := m.byName(e.Name)
		if q == nil || q == p {
			continue
		}
		if e.InSync && p.outrun {
			m.restart(p, q.name+" was brought up to date from here: what "+p.name+" says of it may be older")
			return
		}
		q.stable, q.told = max(q.stable, e.Durable), true
		if e.Settled {
			m.unfence(q, "in sync with the primary "+p.name)
		}
		switch {
		case !e.InSync:
			m.weaken(q)
		case q.weak || q.slot != 0 || (e.Settled && q.dirty.Count() > 0):
			// The primary saw q's flush after everything this node could have
			// marked: the replica there is confirmed. But only one that equals the
			// primary as well equals q.
			q.weak = false
			if e.Settled && q.stable >= q.marked && p.repl != protocol.SyncTarget {
				q.dirty.Clear(0, q.dirty.Blocks())
				m.remember(q.slot)
				q.level()
				m.wantBitmaps = true
				m.persist()
			}
		}
		if !q.weak {
			low = min(low, q.stable)
		}
	}
	m.recent.prune(low)
}

// outrun notes that a sync from here changes p: what another peer has said of it, as a
// primary, and what is still on its way here, may be older (onStable).
func (m *Machine) outrun(p *peer) {
	for _, q := range m.peers {
		if q != p && !q.outrun {
			q.outrun, q.outrunIn = true, m.reign
		}
	}
}

// forgetOutrun takes back what was noted in a reign of this node's that is over, if its
// syncs are: who is primary next begins after them. Who has this node's leave may have begun
// before.
func (m *Machine) forgetOutrun(reign uint64) {
	if slices.ContainsFunc(m.peers, func(p *peer) bool { return p.repl == protocol.SyncSource }) {
		return
	}
	for _, p := range m.peers {
		if p.outrunIn == reign && !(m.granted.to == p.id && m.granted.until != 0) {
			p.outrun = false
		}
	}
}

// boundRecent marks everything at once when p, the primary, says too seldom how far
// the others are.
func (m *Machine) boundRecent(p *peer) {
	n := len(m.recent.list)
	if n <= m.cfg.RecentMax {
		return
	}
	for _, q := range m.peers {
		if q != p {
			m.recent.markAfter(q.stable, q.dirty)
			q.marked = m.recent.list[n-1].seq
		}
	}
	m.recent.list = m.recent.list[:0]
}

// endReign marks, toward every other secondary, what it may not have of the writes of
// p, which is the primary no longer, as far as p has said. What was said of one
// primary's writes says nothing of the next one's.
func (m *Machine) endReign(p *peer) {
	for _, q := range m.peers {
		if q != p && !q.weak {
			m.recent.markAfter(q.stable, q.dirty)
		}
		q.mendAt = max(q.mendAt, m.now+mendEvery) // the next primary may be about to come
		q.weak, q.told, q.stable, q.marked = false, false, 0, 0
	}
	m.recent.list = m.recent.list[:0]
}

// primaryLost marks, toward every other secondary, what it may not have, and has
// the secondaries settle it between themselves.
func (m *Machine) primaryLost(p *peer) {
	m.endReign(p)
	m.idSerial++ // whoever was told of that primary is to hear that it is gone
	if m.role == protocol.Primary {
		return
	}
	for _, q := range m.peers {
		if q != p && q.linked && q.settled {
			m.restart(q, "the primary "+p.name+" is gone: compare again")
		}
	}
}
