package replica

import (
	"slices"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

const (
	stableEvery  = Time(250e6)
	coolEvery    = Time(1e9)
	bitmapsEvery = Time(5e9)
	coolMax      = 4096 // extents taken off the activity map at once
)

// Tick is called several times a second: everything that time alone causes.
func (m *Machine) Tick(now Time) {
	m.now = now
	for _, p := range m.all {
		m.tickPeer(p)
		m.tickAsk(p)
	}
	if m.minting && m.mintWait != 0 && now > m.mintDeadline {
		for _, p := range m.peers {
			if m.mintWait&(1<<p.id) != 0 {
				m.dropPeer(p, refusal(protocol.CodeTimeout, "%s did not confirm the new generation", p.name))
			}
		}
	}
	m.tickEarly()
	m.tickPlans()
	m.tickBoot()
	m.tickDisk()
	m.tickFill()
	m.tickFlush()
	m.tickRoles()
	m.tickQuorum()
	m.tickFencing()
	if m.role == protocol.Primary && len(m.peers) > 1 && now >= m.nextTick.stable {
		m.nextTick.stable = now + stableEvery
		m.sendStable()
	}
	if now >= m.nextTick.bitmaps {
		m.nextTick.bitmaps = now + bitmapsEvery
		m.flushBitmaps()
		m.keepTimes()
	}
	if now >= m.nextTick.cool && !m.metaBusy && m.metaDone == m.metaWant {
		m.nextTick.cool = now + coolEvery
		m.cool()
	}
}

func (m *Machine) tickPeer(p *peer) {
	now := m.now
	p.delayReads(now)
	switch {
	case !p.linked && p.alone == aloneNo && !m.stopping && now >= p.retryAt:
		m.setConn(p, protocol.Connecting, p.reason)
		m.tryConnect(p)
	case p.linked && !p.settled && now > p.deadline:
		m.dropPeer(p, refusal(protocol.CodeTimeout, "%s did not finish the handshake in %s", p.name, seconds(m.cfg.HandshakeTime)))
	case p.linked && p.deadline != never && now > p.deadline:
		m.dropPeer(p, refusal(protocol.CodeTimeout, "%s did not go on with the sync in %s", p.name, seconds(m.cfg.HandshakeTime)))
	case (p.live || p.repl == protocol.Ahead) && p.ring.head < p.ring.tail && now-m.stuckSince(p) > m.cfg.WriteTimeout:
		m.dropPeer(p, refusal(protocol.CodeTimeout, "%s has not acknowledged a write for %s", p.name, seconds(m.cfg.WriteTimeout)))
	case len(p.reads) > 0 && now-p.reads[0].at > m.cfg.WriteTimeout:
		m.dropPeer(p, refusal(protocol.CodeTimeout, "%s has not answered a read for %s", p.name, seconds(m.cfg.WriteTimeout)))
	case p.repl == protocol.Ahead:
		m.tickAhead(p)
	default:
		m.tickMend(p)
	}
}

// stuckSince returns since when an answer is due from the peer and nothing has
// come: a peer that is slow, and gets on, is not lost but waited for (congested).
func (m *Machine) stuckSince(p *peer) Time {
	r := &p.ring
	if r.applied < r.tail {
		return max(r.at(r.applied).at, p.moved)
	}
	for i := r.head; i < r.tail; i++ {
		if s := r.at(i); s.fua || s.op == protocol.DataFlush {
			return max(s.at, p.moved)
		}
	}
	return m.now
}

// tickBoot flushes the local store once. A process that was killed leaves its
// writes in the cache: until they are flushed, an extent that was active then must
// stay on the map, also when its blocks have been copied to every peer since.
func (m *Machine) tickBoot() {
	if m.bootDurable || m.bootFlush != nil || !m.usable() {
		return
	}
	m.bootFlush = &Request{Op: Flush, Tag: internalTag, local: true, span: -1}
	m.flights++
	m.emit(Effect{Kind: DoLocal, Req: m.bootFlush})
}

// tickFlush sends a flush of the machine's own when writes have gone without one
// for long, so that what must be remembered stays bounded and extents can cool.
func (m *Machine) tickFlush() {
	due := m.looseAt != 0 && m.now-m.looseAt >= m.cfg.FlushInterval || m.loose >= m.cfg.FlushBytes
	if !due || m.ownFlush != nil || m.role != protocol.Primary || m.noData() || m.bare() && !m.detached {
		return
	}
	m.ownFlush = &Request{Op: Flush, Tag: internalTag, span: -1}
	m.issueFlush(m.ownFlush)
}

func (m *Machine) tickRoles() {
	now := m.now
	if m.promote != nil && now > m.promote.deadline {
		for _, p := range m.all {
			if m.promote != nil && m.promote.waiting&(1<<p.id) != 0 {
				m.endPromote(refusal(protocol.CodeTimeout, "%s does not answer: is it busy or its disk stuck? Try again", p.name))
			}
		}
		if m.promote != nil && m.promote.step == stepSettle {
			m.endPromote(refusal(protocol.CodeDiskFailed, "the disk of %s on %s has not finished what a peer sent: is it stuck? Try again", m.cfg.Name, m.cfg.Self))
		}
	}
	if h := m.handover; h != nil && h.sent && now > h.deadline {
		m.handoverLost(m.all[h.to])
	}
	if d := m.drain; d != nil {
		if m.flights == 0 {
			m.drained()
		}
		if m.drain == d && now > d.deadline {
			d.next(refusal(protocol.CodeTimeout, "%d requests are still under way after %s; nothing was changed", m.flights, seconds(m.cfg.WriteTimeout)))
		}
	}
}

// sendStable tells every secondary how far the others are. While a write that failed here
// is on some of them, and not on others, nobody is said to be in sync with anybody.
func (m *Machine) sendStable() {
	mixed := slices.ContainsFunc(m.peers, func(q *peer) bool { return q.live && q.repl == protocol.Established && q.unsettled() })
	for _, p := range m.peers {
		if !p.settled || p.repl == protocol.ReplOff || p.repl == protocol.Ahead { // one that is behind is not what the others are compared with
			continue
		}
		s := &protocol.Stable{}
		for _, q := range m.peers {
			if q == p {
				continue
			}
			e := protocol.PeerStable{Name: q.name, Durable: q.acked.Durable, InSync: q.live && !mixed,
				Settled: q.live && !mixed && q.repl == protocol.Established && q.slot == 0 && q.dirty.Count() == 0}
			// What p did not get as a write it does not remember as one: it is marked
			// there until q has made it durable too.
			e.Settled = e.Settled && (q.ring.len() == 0 || q.acked.Durable >= p.since)
			if e.Settled && q.ring.len() == 0 {
				e.Durable = m.seq // also what it got by a sync, or before this connection
			}
			s.Peers = append(s.Peers, e)
		}
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: s})
	}
}

func (m *Machine) flushBitmaps() {
	for _, p := range m.peers {
		if p.dirty.AnyChanged() {
			m.wantBitmaps = true
			m.commit()
			return
		}
	}
}

// cool takes idle extents off the activity map: their writes are durable here and
// at every connected peer, and the bits of the others are on disk.
func (m *Machine) cool() {
	oldest := m.seq + 1
	for _, s := range m.spans {
		if s.req.Op != Flush && s.req.Op != Pull {
			oldest = min(oldest, s.req.seq)
		}
	}
	m.activity.Cool(m.now, m.cfg.ActivityIdle, coolMax, func(extent int64, last uint64) bool {
		if last >= oldest || last > m.localDurable || !m.bootDurable {
			return false
		}
		page := extent / bitmap.ExtentsPerPage
		for _, p := range m.peers {
			switch {
			case p.dirty.PageChanged(page):
				return false
			case m.followsAnother(p) && (!p.told || !p.weak && p.stable < last):
				return false // not known to have what this secondary has
			case p.ring.head < p.ring.tail && p.ring.at(p.ring.head).seq <= last: // live, or gone ahead of
				return false
			}
		}
		return true
	})
}

// LackingUnknown: a peer may lack blocks, and since when is not known: it never had
// them, or a comparison found that they differ.
const LackingUnknown = never

// lacking returns when the first write was issued that the peer may lack.
func (p *peer) lacking() Time {
	since := LackingUnknown
	if p.ring.applied < p.ring.tail {
		since = p.ring.at(p.ring.applied).at
	}
	switch {
	case p.dirty.Count() > 0 && p.wroteFirst <= 0:
		return LackingUnknown
	case p.dirty.Count() > 0:
		return min(since, p.wroteFirst)
	case since == LackingUnknown:
		return 0
	}
	return since
}

// PeerView is a snapshot of one peer, for people.
type PeerView struct {
	Name       string
	Mode       protocol.Mode
	Conn       protocol.Conn
	Repl       protocol.Repl
	Role       protocol.Role
	Disk       protocol.Disk
	Reason     string
	DirtyBytes int64
	Slot       protocol.Generation
	TotalBytes int64 // of the sync under way
	Unacked    int64 // bytes sent and not applied
	UnackedOps int64 // operations, flushes included
	Lacking    Time  // when the first write was issued here that it may lack; 0: there is none, LackingUnknown
	Rule       Rule
	Stats      resync.Stats // of the sync or verify under way, or the last
	Started    Time         // of the one under way
	Live       bool
	Linked     bool
	Heard      *protocol.Hello
	Witness    bool
	Fenced     bool   // it cannot take over before it has been in sync with this node again
	Bonded     bool   // this node may be promoted without it, once it is fenced
	Fencing    string // the last question of the hook fence-peer, in words; "": none, or it is answered
}

// View is a snapshot of the machine, for people.
type View struct {
	Volume     protocol.VolumeID
	Role       protocol.Role
	Disk       protocol.Disk
	DiskReason string
	Current    protocol.Generation
	Primary    string
	InFlight   int
	Waiting    int
	Active     int
	Bare       bool   // primary, and its disk is no copy: everything goes through peers
	Carriers   string // through which
	LacksBytes int64  // what the local disk lacks and is being filled with
	NoData     bool   // primary, and no copy of the data can be reached
	Congested  bool   // writes wait because a peer is too far behind
	Quorum     Quorum // off: what follows says nothing
	Quorate    bool
	Serving    bool // primary, and requests are answered
	Fencing    Fencing
	Frozen     string // why a primary with FencingStonith answers nothing, in words; "": it does
	Peers      []PeerView
}

// View returns the snapshot.
func (m *Machine) View() View {
	var v View
	m.ViewInto(&v)
	return v
}

// ViewInto is View into what an earlier call has filled.
func (m *Machine) ViewInto(v *View) {
	peers := v.Peers[:0]
	*v = View{Volume: m.volume, Role: m.role, Disk: m.disk, DiskReason: m.diskWhy, Current: m.current, Primary: m.primary(),
		InFlight: m.flights, Waiting: len(m.held) + len(m.arming) + len(m.overlapped) + len(m.farWait) + len(m.readBack), Active: m.activity.Count()}
	v.NoData, v.Congested = m.noData(), m.congested()
	if v.Bare = m.bare(); v.Bare {
		v.Carriers = m.carrierNames()
	}
	if m.left != nil {
		v.LacksBytes = min(m.left.Count()*bitmap.BlockSize, m.cfg.Size)
	}
	if v.Quorum = m.cfg.Quorum; m.quorumOn() {
		v.Quorate, v.Serving = m.vote.quorate && !m.hasLeft(), m.role == protocol.Primary && m.mayServe()
		v.Waiting += len(m.vote.unanswered)
	}
	if m.fencingOn() {
		v.Fencing, v.Frozen = m.cfg.Fencing, m.frozenWhy()
		v.Waiting += len(m.vote.unanswered)
	}
	for _, p := range m.all {
		w := PeerView{Name: p.name, Witness: p.witness, Mode: p.mode, Conn: p.conn, Repl: p.repl, Role: p.role, Disk: p.disk, Reason: p.reason,
			DirtyBytes: min(p.dirty.Count()*bitmap.BlockSize, m.cfg.Size), Slot: p.slot, TotalBytes: min(p.total*bitmap.BlockSize, m.cfg.Size),
			Unacked: p.ring.bytes, UnackedOps: int64(p.ring.tail - p.ring.applied), Lacking: p.lacking(), Rule: p.lastWhy, Stats: p.lastStats, Live: p.live, Linked: p.linked, Heard: p.heard}
		if p.plan != nil {
			w.Stats, w.Started = p.plan.Stats(), p.plan.Started()
		}
		w.Bonded = p.fence.shares
		if w.Fenced = p.fence.kept; !w.Fenced && (p.fence.asking || p.fence.why != "") {
			w.Fencing = m.fenceText(p)
		}
		peers = append(peers, w)
	}
	v.Peers = peers
}

// Missing lists who is not there for a quorum, for people.
func (m *Machine) Missing() string { return m.missing() }

// MayPromote says whether a promotion would be tried now; nil: yes.
func (m *Machine) MayPromote(now Time, opt PromoteOptions) error {
	m.now = now
	return m.mayPromote(opt)
}

// AckFor returns what is to be acknowledged to the peer now.
func (m *Machine) AckFor(id PeerID) protocol.Ack {
	p := m.all[id]
	return protocol.Ack{Received: max(p.rxTaken, p.rxApplied), Applied: p.rxApplied, Durable: p.rxDurable}
}
