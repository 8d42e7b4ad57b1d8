package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// Submit takes a client's request. It ends, now or later, in one DoComplete.
func (m *Machine) Submit(now Time, r *Request) {
	m.now = now
	r.seq, r.local, r.pending, r.copies, r.without, r.needGen, r.covers, r.err, r.span = 0, false, 0, 0, 0, false, 0, nil, -1
	r.all, r.late, r.inWait, r.pieces, r.tried = false, false, false, 0, 0
	switch {
	case m.stopping:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrStopping})
	case m.role != protocol.Primary:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	default:
		m.admit(r)
	}
}

// admit issues r, or parks it until what stands in its way is gone.
func (m *Machine) admit(r *Request) {
	if m.gated() && m.withhold(r) {
		return
	}
	switch r.Op {
	case Read:
		// A read waits for an overlapping write: it must not return what no
		// peer may have yet. One that begins while the read is under way is
		// waited for when the read is done.
		if m.overlaps(r.Off, r.Len) {
			m.overlapped = append(m.overlapped, r)
			return
		}
		r.reign = m.reign
		m.read(r)
		return
	case Flush:
		switch {
		case m.frozen > 0:
			m.held = append(m.held, r)
		case m.noData():
			m.withoutData(r)
		case m.bare() && !m.detached:
			m.held = append(m.held, r)
			m.mint()
		default:
			m.issueFlush(r)
		}
		return
	case Write, Zero, Trim:
	case Pull:
		panic("replica: a client pulls")
	}
	if m.noData() {
		m.withoutData(r)
		return
	}
	m.pullAhead()
	if m.frozen > 0 || m.congested() {
		m.held = append(m.held, r)
		return
	}
	if m.mustMint() {
		m.held = append(m.held, r)
		m.mint()
		return
	}
	if m.overlaps(r.Off, r.Len) || m.syncing(r.Off, r.Len) {
		m.overlapped = append(m.overlapped, r)
		return
	}
	if m.usable() && !m.activity.Touch(r.Off, r.Len, m.seq+1, m.now) {
		m.arming = append(m.arming, r)
		m.commit()
		return
	}
	m.issue(r)
}

// issue gives a write its place in the order of every copy.
//
// Invariant: a peer that does not get the write has its blocks marked before the
// local store can execute it.
func (m *Machine) issue(r *Request) {
	m.seq++
	m.holds = m.seq
	m.wroteHere()
	r.seq = m.seq
	r.local, r.at = m.usable(), m.now
	r.all = m.bare()
	m.flights++
	m.foreground.begin(m.now)
	d := protocol.Data{Op: dataOp(r.Op), Seq: r.seq, Time: m.now, Off: r.Off, Len: r.Len}
	if r.FUA {
		d.Flags |= protocol.DataFUA
	}
	if r.NoHole {
		d.Flags |= protocol.DataNoHole
	}
	for _, p := range m.peers {
		if p.live {
			m.sendData(p, d, r)
			continue
		}
		p.dirty.Set(bitmap.Touched(r.Off, r.Len))
		p.wrote(m.now)
	}
	if m.looseAt == 0 {
		m.looseAt = m.now
	}
	if r.Op == Write {
		m.loose += r.Len
	}
	r.span = len(m.spans)
	m.spans = append(m.spans, span{r.Off, r.Off + r.Len, r})
	if r.local {
		m.emit(Effect{Kind: DoLocal, Req: r})
	}
}

func dataOp(o Op) protocol.DataOp {
	switch o {
	case Write:
		return protocol.DataWrite
	case Zero:
		return protocol.DataZero
	case Trim:
		return protocol.DataTrim
	case Flush:
		return protocol.DataFlush
	case Read, Pull:
	}
	panic(fmt.Sprintf("replica: no data operation for %d", o))
}

// sendData queues d to a live peer and, but for protocol A, makes r wait for it.
func (m *Machine) sendData(p *peer, d protocol.Data, r *Request) {
	s := sent{seq: d.Seq, off: d.Off, n: d.Len, at: m.now, op: d.Op, fua: d.Flags&protocol.DataFUA != 0}
	if r != nil && (p.mode != protocol.ModeA || r.all) {
		s.req = r
		r.pending |= 1 << p.id
	}
	if r != nil {
		r.copies |= 1 << p.id
	}
	if p.ring.head == p.ring.tail {
		p.moved = m.now
	}
	p.ring.push(s)
	p.last = d.Seq
	m.emit(Effect{Kind: DoSend, Peer: p.id, Data: d, Req: r})
}

// issueFlush sends a flush point to every peer and flushes the local store.
func (m *Machine) issueFlush(r *Request) {
	m.seq++
	r.seq = m.seq
	r.local, r.at = m.usable(), m.now
	r.all = r.all || m.bare()
	r.covers = m.oldestLocal() - 1
	m.loose, m.looseAt = 0, 0
	m.flights++
	if !r.Internal() {
		m.foreground.begin(m.now)
	}
	d := protocol.Data{Op: protocol.DataFlush, Seq: r.seq, Time: m.now}
	for _, p := range m.peers {
		if p.live {
			m.sendData(p, d, r)
		}
	}
	// No range: it stands in nobody's way.
	r.span = len(m.spans)
	m.spans = append(m.spans, span{0, 0, r})
	if r.local {
		m.emit(Effect{Kind: DoLocal, Req: r})
		return
	}
	m.settle(r)
}

// oldestLocal returns the lowest sequence whose local part is not done, or the
// next one.
func (m *Machine) oldestLocal() uint64 {
	oldest := m.seq
	if oldest == 0 {
		oldest = 1
	}
	for _, s := range m.spans {
		if s.req.local && s.req.Op != Flush && s.req.Op != Pull && s.req.seq < oldest {
			oldest = s.req.seq
		}
	}
	return oldest
}

// overlaps reports whether a write in flight touches the range.
func (m *Machine) overlaps(off, n int64) bool {
	end := off + n
	for i := range m.spans {
		if s := &m.spans[i]; s.off < end && off < s.end {
			return true
		}
	}
	return false
}

// syncing reports whether a sync or verify run of any peer holds the range.
func (m *Machine) syncing(off, n int64) bool {
	for _, p := range m.peers {
		if p.plan != nil && p.plan.Holds(off, n) {
			return true
		}
	}
	return false
}

// congested reports whether a peer is so far behind that new writes must wait.
// A peer that stays there is dropped by Tick, so that the wait has an end.
func (m *Machine) congested() bool {
	for _, p := range m.peers {
		switch {
		case !p.live:
		case p.ring.bytes > p.buffer || p.ring.len() > m.cfg.RingMax:
			return true
		case p.patient && p.repl != protocol.SyncSource: // the end of a sync has its place in the stream, and a time limit
		case m.now-p.oldestUnapplied(m.now) > m.cfg.WriteTimeout/4:
			return true // it keeps up, but slowly
		}
	}
	return false
}

// ringMax bounds what is remembered of unconfirmed writes per peer: at most
// FlushInterval's worth in practice, since Tick and the bound itself cause
// flushes. 64 Ki entries of 64 bytes are 4 MiB.
const ringMax = 64 << 10

// LocalDone reports the local part of a request as done. fatal: the error says
// that the store cannot be trusted any more; otherwise (no space) only this
// request failed, and what the peers applied of it must be overwritten by what is
// here now.
func (m *Machine) LocalDone(now Time, r *Request, err error, fatal bool) {
	m.now = now
	if r.late {
		r.late = false
		return
	}
	if err == nil {
		m.localMoved = now
	}
	if r.Op == Read {
		m.foreground.end(now)
		m.localReadDone(r)
	}
	switch {
	case r.Op == Read && err != nil && fatal:
		m.readFailed(r, err)
		return
	case r.Op == Read:
		if err == nil && r.reign != m.reign {
			err = ErrNotPrimary // who knows what was there when it was read
		}
		m.readDone(r, err)
		return
	case r.Op == Pull:
		m.pullDone(r, err)
		return
	}
	// Until it is known what the error means r counts as under way here, so that nothing
	// which a failing disk settles answers it before.
	switch {
	case err == nil && r.Op == Flush:
		m.localDurable = max(m.localDurable, r.covers)
		m.bootDurable = true
	case err == nil:
	case !m.usable():
	case fatal || m.bare():
		m.failDisk(fmt.Sprintf("%s at %d: %v", r.Op, r.Off, err))
		if m.role != protocol.Primary {
			r.err = ErrDiskFailed
		}
	default:
		r.err = err
		if r.Op == Flush {
			break
		}
		for _, p := range m.peers {
			p.dirty.Set(bitmap.Touched(r.Off, r.Len))
			p.spoiled = true
			if p.plan != nil {
				p.plan.Spoil(r.Off, r.Len)
			}
		}
	}
	r.local = false
	m.settle(r)
}

// readDone answers a read, unless writes to its range have begun since it was issued:
// it may have seen them, and is answered after them. Else a client would know of a
// write that is gone when this node dies now.
func (m *Machine) readDone(r *Request, err error) {
	r.err, r.covers = err, m.seq
	switch {
	case err == nil && m.seen(r):
		m.readBack = append(m.readBack, r)
		return
	case err == nil && m.takenBack(r):
		m.held = append(m.held, r) // and is done again after them
		return
	}
	m.answer(r, err)
}

// seen reports whether a write under way may be in what r has read. Those that are
// issued later cannot be, so that r does not wait for ever.
func (m *Machine) seen(r *Request) bool {
	for i := range m.spans {
		if s := &m.spans[i]; s.off < r.Off+r.Len && r.Off < s.end && s.req.seq <= r.covers && s.req.Op != Pull {
			return true
		}
	}
	return false
}

// pumpReads answers the reads whose writes are done.
func (m *Machine) pumpReads() {
	if len(m.readBack) == 0 {
		return
	}
	parked := m.readBack
	m.readBack = nil
	for _, r := range parked {
		if m.seen(r) {
			m.readBack = append(m.readBack, r)
			continue
		}
		if r.err == nil && m.takenBack(r) {
			m.held = append(m.held, r)
			continue
		}
		m.answer(r, r.err)
	}
}

// settle completes r if nothing is missing any more.
func (m *Machine) settle(r *Request) {
	if r.local || r.pending != 0 {
		return
	}
	if m.vote.yielding != "" { // nobody relies on it, and no generation comes
		if r.needGen = false; r.err == nil {
			r.err = ErrNotPrimary
		}
		m.finish(r)
		return
	}
	if m.bare() && r.copies == 0 {
		m.orphan(r)
		return
	}
	// A generation that begins may not be durable yet.
	if r.Op == Flush && !r.Internal() && r.err == nil && (m.minting || m.mustMintToFlush()) {
		r.needGen = true
	}
	if r.needGen && m.stopping { // no generation comes any more
		if r.needGen = false; r.err == nil {
			r.err = ErrStopping
		}
	}
	if r.needGen {
		if !r.inWait {
			r.inWait = true
			m.genWait = append(m.genWait, r)
		}
		m.mint()
		return
	}
	m.finish(r)
}

// finish takes r out of flight and answers it.
func (m *Machine) finish(r *Request) {
	m.land(r)
	m.answer(r, r.err)
	m.pumpReads()
	if len(m.pullWait) > 0 {
		m.pumpPulls()
	}
	m.pumpOverlapped()
	if m.flights == 0 && m.drain != nil {
		m.drained()
	}
	if m.vote.yielding != "" {
		m.yielded()
	}
}

// land takes r out of flight.
func (m *Machine) land(r *Request) {
	m.flights--
	if !r.Internal() {
		m.foreground.end(m.now)
	}
	if r.span >= 0 {
		last := len(m.spans) - 1
		m.spans[r.span] = m.spans[last]
		m.spans[r.span].req.span = r.span
		m.spans[last] = span{}
		m.spans = m.spans[:last]
		r.span = -1
	}
}

// Acked takes a peer's cumulative acknowledgement.
func (m *Machine) Acked(now Time, id PeerID, a protocol.Ack) {
	m.now = now
	p := m.all[id]
	if !p.live && p.ring.len() == 0 {
		return // of a connection, or a time, before
	}
	if a.Received < a.Applied || a.Applied < a.Durable || a.Received > p.last {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s acknowledged %d/%d/%d of %d", p.name, a.Received, a.Applied, a.Durable, p.last))
		return
	}
	r := &p.ring
	for ; r.received < r.tail && r.at(r.received).seq <= a.Received; r.received++ {
		if s := r.at(r.received); p.mode == protocol.ModeB && (s.req == nil || !s.req.all) {
			m.answered(p, s)
		}
	}
	for ; r.applied < r.tail && r.at(r.applied).seq <= a.Applied; r.applied++ {
		s := r.at(r.applied)
		r.bytes -= s.payload()
		if !s.fua && s.op != protocol.DataFlush {
			m.confirmed(p, s)
			m.answered(p, s)
		}
	}
	for ; r.head < r.tail && r.at(r.head).seq <= a.Durable; r.head++ {
		s := r.at(r.head)
		if s.op == protocol.DataFlush {
			p.loose = false
		}
		if s.fua || s.op == protocol.DataFlush {
			m.confirmed(p, s)
		}
		m.answered(p, s)
		*s = sent{}
	}
	if a != p.acked {
		p.acked, p.moved = a, m.now
	}
	m.pumpHeld()
}

// confirmed tells how long a peer took, of what a client asked for.
func (m *Machine) confirmed(p *peer, s *sent) {
	if m.cfg.Confirmed != nil && (s.req == nil || !s.req.Internal()) {
		m.cfg.Confirmed(p.id, s.op, m.now-s.at)
	}
}

// answered takes p out of the ack set of the request behind s.
func (m *Machine) answered(p *peer, s *sent) {
	r := s.req
	if r == nil {
		return
	}
	s.req = nil
	r.pending &^= 1 << p.id
	m.settle(r)
}

// forget takes a lost peer out of every ack set. What it had not confirmed as
// durable is marked; what had to be completed without it waits for a generation
// that it does not have.
//
// Invariant: no request that p was to hold completes before the mark.
func (m *Machine) forget(p *peer) {
	was := p.live
	if p.live {
		p.live, p.apart = false, false
		m.mayReachOthers(p)
	}
	p.passOver()
	r := &p.ring
	for i := r.head; i < r.tail; i++ {
		if s := r.at(i); s.op != protocol.DataFlush {
			p.dirty.Set(bitmap.Touched(s.off, s.n))
			p.wrote(s.at)
			p.loose = p.loose || i < r.applied
			p.lacks = p.lacks || i >= r.applied && s.req == nil
		}
	}
	if was && p.heard != nil { // one that came back without being live has nothing newer to lose
		p.lostInstance = p.heard.Instance
	}
	for _, s := range m.spans {
		s.req.copies &^= 1 << p.id
	}
	for i := r.head; i < r.tail; i++ {
		s := r.at(i)
		if q := s.req; q != nil {
			s.req = nil
			q.pending &^= 1 << p.id
			q.needGen = true
			m.settle(q)
		}
	}
	r.reset()
	p.acked, p.last = protocol.Ack{}, 0
	m.readsLost(p)
	if was && !m.minting && m.noData() {
		m.dataLost()
	}
	m.pumpHeld()
}

func (m *Machine) pumpHeld() {
	if len(m.held) > 0 && m.role == protocol.Primary {
		m.pullAhead()
	}
	if len(m.held) == 0 || m.frozen > 0 || m.congested() || m.gated() && m.vote.yielding == "" && m.role == protocol.Primary && !m.mayServe() {
		return
	}
	m.readmitAll(&m.held)
}

func (m *Machine) pumpOverlapped() { m.readmitAll(&m.overlapped) }

func (m *Machine) pumpArming() { m.readmitAll(&m.arming) }

// readmitAll tries every request of a list again; those that still have to wait
// are back on a list afterwards.
func (m *Machine) readmitAll(list *[]*Request) {
	parked := *list
	*list = nil
	for _, r := range parked {
		m.readmit(r)
	}
}

// readmit tries a parked request again; the state may have changed meanwhile.
func (m *Machine) readmit(r *Request) {
	switch {
	case m.role != protocol.Primary:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	default:
		m.admit(r)
	}
}
