package replica

import (
	"sort"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// A primary whose own disk has failed goes on from its peers: writes and flushes
// go to all that are in sync and wait for all, reads go to one. The words used
// below:
//
//	bare       this node is primary and its disk is no copy: it failed, or it was
//	           replaced and is not filled yet
//	carrier    a connected peer that holds all of the data and gets every write
//	detached   the current generation was begun without this node's disk: whatever
//	           comes back here, with old metadata or new, is recognised as old
//
// Nothing here depends on this node's metadata, which may be on the same disk:
// the generation that leaves the disk behind is durable at every carrier, and
// there every block is marked out of sync toward this node, before a request
// completes under it.
//
// Invariant: while bare, no request completes without a carrier that has it, and
// none before the generation that leaves this disk behind.

// NoData says what becomes of requests while no copy of the data can be reached.
type NoData uint8

// The policies.
const (
	NoDataError   NoData = iota // they fail
	NoDataSuspend               // they wait for a copy to return
)

// OnReadError says what a read error of the primary's own disk leads to.
type OnReadError uint8

// The policies.
const (
	ReadRepair OnReadError = iota // the blocks are read from a peer and written anew
	ReadDetach                    // the disk fails
)

// bare reports whether the primary's own disk is no copy of the data.
func (m *Machine) bare() bool {
	return m.role == protocol.Primary && (m.disk < protocol.Consistent || m.filling)
}

// carries reports whether the peer holds all of the data and gets every write.
func (p *peer) carries() bool {
	return p.linked && p.settled && p.live && p.disk >= protocol.Consistent &&
		(p.repl == protocol.Established || p.repl == protocol.VerifySource)
}

// carrier returns the carrier that is not in tried and has the least to read; nil
// if there is none.
func (m *Machine) carrier(tried uint16) *peer {
	var best *peer
	for _, p := range m.peers {
		if p.carries() && tried&(1<<p.id) == 0 && (best == nil || len(p.reads) < len(best.reads)) {
			best = p
		}
	}
	return best
}

// carrierOf returns the carrier to read a range from. One that differs there, by what failed
// on this node's disk alone, is the last resort.
func (m *Machine) carrierOf(off, n int64, tried uint16) *peer {
	differ := tried
	for _, p := range m.peers {
		if p.dirty.Any(bitmap.Touched(off, n)) {
			differ |= 1 << p.id
		}
	}
	if p := m.carrier(differ); p != nil {
		return p
	}
	return m.carrier(tried)
}

// noData reports whether no copy of the data can be reached.
func (m *Machine) noData() bool { return m.bare() && m.carrier(0) == nil }

// failDisk takes the local disk out of use, for good (P9): nothing is written to it
// any more, the peers are told. A primary goes on from them.
func (m *Machine) failDisk(why string) {
	if m.disk == protocol.Failed {
		return
	}
	m.setDisk(protocol.Failed, why)
	m.filling, m.left, m.fillFlush = false, nil, nil
	if m.rising { // the role is not durable, and never will be
		m.rising = false
		m.frozen--
		m.setRole(protocol.Secondary, "its disk failed")
	}
	if m.promote != nil {
		m.endPromote(refusal(protocol.CodeDiskFailed, "the local disk of %s failed: %s", m.cfg.Name, why))
	}
	for _, p := range m.peers {
		m.emit(Effect{Kind: DoResume, Peer: p.id})
		p.rxHold = false
	}
	if m.role != protocol.Primary {
		m.broadcastState()
		return
	}
	m.detached = false
	m.adoptFlights()
	for _, p := range m.peers {
		switch {
		case p.plan != nil && p.repl == protocol.VerifySource:
			m.stopVerify(p, "the disk of "+m.cfg.Self+" failed")
		case p.linked && p.settled && p.repl == protocol.SyncSource:
			m.dropPeer(p, refusal(protocol.CodeDiskFailed, "the disk of %s on %s failed during the sync", m.cfg.Name, m.cfg.Self))
		}
	}
	m.broadcastState()
	settled := m.minting && m.mintNext == nil // waits for metadata that may never be durable
	switch {
	case m.carrier(0) != nil:
		m.event("", "data", "local", "peer", "reads and writes go through "+m.carrierNames())
		if settled {
			m.mintRound()
		} else {
			m.mint()
		}
	case settled:
		m.mintAborted()
	default:
		m.dataLost()
	}
	m.pumpPulls()
	m.pumpArming()
	m.pumpOverlapped()
}

// carrierNames lists who holds the data, for people.
func (m *Machine) carrierNames() string {
	s := ""
	for _, p := range m.peers {
		if p.carries() {
			if s != "" {
				s += ", "
			}
			s += p.name
		}
	}
	return s
}

// adoptFlights has every request in flight wait until each carrier has applied it
// (a flush or FUA: has made it durable), whatever its protocol, and until the
// generation that leaves this disk behind has begun.
func (m *Machine) adoptFlights() {
	flights := make(map[uint64]*Request, len(m.spans))
	for _, s := range m.spans {
		if s.req.Op != Pull {
			s.req.all, s.req.needGen = true, true
			flights[s.req.seq] = s.req
		}
	}
	for _, p := range m.peers {
		if !p.live {
			continue
		}
		for i := p.ring.head; i < p.ring.tail; i++ {
			s := p.ring.at(i)
			lasting := s.fua || s.op == protocol.DataFlush
			if r := flights[s.seq]; r != nil && s.req == nil && (lasting || i >= p.ring.applied) {
				s.req = r
				r.pending |= 1 << p.id
			}
		}
	}
}

// dataLost tells what waits that no copy of the data can be reached.
func (m *Machine) dataLost() {
	m.event("", "data", "reachable", "unreachable", m.unreachableText())
	m.readmitWaiting()
}

// readmitWaiting has every request judged anew that waits.
func (m *Machine) readmitWaiting() {
	for _, list := range []*[]*Request{&m.arming, &m.overlapped, &m.farWait} {
		m.readmitAll(list)
	}
	m.readmitAll(&m.held)
}

func (m *Machine) unreachableText() string {
	if m.cfg.NoData == NoDataSuspend {
		return "no copy of the data can be reached: requests wait for one"
	}
	return "no copy of the data can be reached: requests fail"
}

// withoutData ends or parks a request that finds no copy of the data.
func (m *Machine) withoutData(r *Request) {
	if m.cfg.NoData == NoDataSuspend && !m.stopping && !r.Internal() {
		m.held = append(m.held, r)
		return
	}
	if r.Op == Pull {
		m.pullEnded(r)
		return
	}
	m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNoData})
}

// orphan takes a request out of flight that was issued and that no copy which can
// be reached is known to have. Suspended, it is issued again when there is one:
// nothing that overlaps it was issued since, so that doing it twice does no harm.
func (m *Machine) orphan(r *Request) {
	m.reread(r)
	if m.cfg.NoData != NoDataSuspend || m.stopping || m.drain != nil || r.Internal() {
		if r.err == nil {
			r.err = ErrNoData
		}
		m.finish(r)
		return
	}
	m.land(r)
	seq := r.seq
	r.needGen, r.all, r.err = false, r.FUA && r.all, nil
	i := sort.Search(len(m.held), func(i int) bool { return m.held[i].seq == 0 || m.held[i].seq > seq })
	m.held = append(m.held, nil)
	copy(m.held[i+1:], m.held[i:])
	m.held[i] = r
	m.pumpReads()
	m.pumpPulls()
	m.pumpOverlapped()
}

// reread has the reads done again that may have seen a write which no copy that can be
// reached is known to have.
func (m *Machine) reread(w *Request) {
	parked := m.readBack
	m.readBack = nil
	for _, r := range parked {
		if w.seq > r.covers || w.Off >= r.Off+r.Len || r.Off >= w.Off+w.Len {
			m.readBack = append(m.readBack, r)
			continue
		}
		m.readmit(r)
	}
}

// takenBack reports whether a write that waits to be issued again, orphaned or kept back
// for votes, may be in what r has read: what is issued again before it may put older data
// over it.
func (m *Machine) takenBack(r *Request) bool {
	for _, list := range [][]*Request{m.held, m.overlapped, m.arming} {
		for _, w := range list {
			if w.seq != 0 && w.Off < r.Off+r.Len && r.Off < w.Off+w.Len {
				return true
			}
		}
	}
	return false
}

// mintAborted ends a mint that no carrier is left for.
func (m *Machine) mintAborted() {
	m.minting, m.unheard, m.vote.stalled = false, false, false
	m.frozen--
	m.mintNext = nil
	list := m.genWait
	m.genWait = nil
	for _, r := range list {
		r.inWait = false
		m.orphan(r)
	}
	m.dataLost()
}

// mayCarry reports whether a peer of the current generation that returns to a bare
// primary has everything that was acknowledged: it was in sync in this reign and kept
// what it was sent: it was not lost with writes that it had not applied, and did not
// restart with some that it had not made durable. One that a generation was begun
// without got that from others: then they must have had it on stable storage.
func (m *Machine) mayCarry(p *peer) bool {
	if !p.joined || p.lacks || p.loose && p.heard.Instance != p.lostInstance {
		return false
	}
	for _, q := range m.peers {
		if p.left && q.joined && !q.left && !q.safe() {
			return false
		}
	}
	return true
}

// safe reports whether the peer, which was in sync in this reign, has all that it was
// sent on stable storage. One that is connected may have restarted all the same, and that
// was not noticed yet.
func (p *peer) safe() bool {
	for i := p.ring.head; i < p.ring.tail; i++ {
		if p.ring.at(i).op != protocol.DataFlush {
			return false
		}
	}
	return !p.lacks && !p.loose
}

// settleCarrier begins replication between a bare primary and who holds its data.
func (m *Machine) settleCarrier(p *peer) {
	p.discard, p.overwrite = false, false
	m.setRepl(p, protocol.Established, "")
	if m.role != protocol.Primary {
		p.live, p.bare = false, true
		if m.disk == protocol.Consistent {
			m.setDisk(protocol.UpToDate, p.name+", primary without a disk of its own, has its data here")
		}
		m.broadcastState()
		return
	}
	p.live, p.left = true, false
	p.since = m.seq
	m.redoWaiting()
	m.event("", "data", "unreachable", "peer", "reads and writes go through "+m.carrierNames())
	m.pumpHeld()
	m.pumpFill()
}

// primaryBare is the peer's side of the primary's failure: nothing that is on that
// node counts any more.
func (m *Machine) primaryBare(p *peer, parent protocol.Generation) {
	p.bare = true
	if p.slot == 0 {
		p.slot = parent
	}
	p.dirty.SetAll()
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
}

// primaryWhole: the primary's disk is a copy again, flushed and durably known there
// as such.
func (m *Machine) primaryWhole(p *peer) {
	p.bare = false
	p.dirty.Clear(0, p.dirty.Blocks())
	m.remember(p.slot)
	p.slot = 0
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
}
