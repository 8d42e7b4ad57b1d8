package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// OnCongestion is what a primary does about a peer under protocol A whose buffer is
// full.
type OnCongestion uint8

// The policies.
const (
	// CongestionBlock: new writes wait for room.
	CongestionBlock OnCongestion = iota
	// CongestionPullAhead: the peer gets no more writes. Its blocks are marked, and
	// copied when the buffer has drained.
	CongestionPullAhead
)

// String returns the word in the configuration.
func (o OnCongestion) String() string {
	if o == CongestionPullAhead {
		return "pull-ahead"
	}
	return "block"
}

const (
	// aheadMin is the shortest time between going ahead of a peer and catching up:
	// each time costs a generation and a handshake.
	aheadMin = Time(1e9)
	// aheadOfMint: a peer that is that far behind is gone ahead of when a generation
	// begins, which it would have to confirm before anybody may write.
	aheadOfMint = Time(1e9)
	// heldLeast is what an operation on its way counts for at least, in bytes: the
	// smallest buffer that holds a payload.
	heldLeast = 4 << 10
)

// congestion is how a peer under protocol A may lag behind.
type congestion struct {
	patient bool  // it has a buffer of its own: but during a sync its bytes count, not their age
	buffer  int64 // bytes under way to it: writes wait above it
	fill    int64 // bytes under way to it: the primary goes ahead of it; 0: never
}

func (m *Machine) congestionOf(c PeerConfig) congestion {
	out := congestion{buffer: m.cfg.QueueBytes}
	if c.Mode != protocol.ModeA || c.Witness {
		return out
	}
	patient := !m.quorumOn() // claims have their place in the stream
	if c.Buffer > 0 {
		out.patient, out.buffer = patient, c.Buffer
	}
	if c.OnCongestion == CongestionPullAhead {
		out.patient, out.fill = patient, out.buffer
		if c.Fill > 0 {
			out.fill = min(c.Fill, out.buffer)
		}
	}
	return out
}

// held returns how much of the peer's buffer is used, bytes.
func (r *sentRing) held() int64 { return max(r.bytes, heldLeast*int64(r.tail-r.applied)) }

// mayGoAhead reports whether writes may go on without p, which is connected and in
// sync. A target of a sync is not left half-way: writes wait for it.
func (m *Machine) mayGoAhead(p *peer) bool {
	return p.fill > 0 && p.live && p.step == syncNone && (p.repl == protocol.Established || p.repl == protocol.VerifySource) &&
		m.role == protocol.Primary && m.disk == protocol.UpToDate && !m.filling && !m.quorumOn() && !m.fencingOn() && !m.stopping
}

// pullAhead goes ahead of the peers whose buffers are full. REQUIRES that nothing
// freezes writes: the generation that the peer will not have begins at once.
func (m *Machine) pullAhead() {
	if m.frozen > 0 {
		return
	}
	for _, p := range m.peers {
		if p.fill > 0 && (p.ring.held() >= p.fill || p.ring.len() >= m.cfg.RingMax) && m.mayGoAhead(p) {
			m.goAhead(p, fmt.Sprintf("%d bytes wait for it", p.ring.held()))
		}
	}
}

// pullAheadToMint goes ahead of the peers for which everybody would have to wait
// before a generation can begin.
func (m *Machine) pullAheadToMint() {
	for _, p := range m.peers {
		if p.fill > 0 && m.now-p.oldestUnapplied(m.now) > aheadOfMint && m.mayGoAhead(p) {
			m.goAhead(p, "a generation begins, and it is far behind")
		}
	}
}

// goAhead lets writes go on without p, to which the connection stays: what was sent
// arrives, then nothing more until the next handshake. So p stays at a state that this
// primary has passed through, and in its generation: the next write begins one without
// it, as if it were lost. What it has not confirmed as durable stays in its ring, and is
// marked if it is lost.
func (m *Machine) goAhead(p *peer, why string) {
	m.stopVerify(p, m.cfg.Self+" goes ahead of "+p.name)
	if !m.mayGoAhead(p) {
		return // a write that waited for the verify has done it
	}
	m.seq++ // a flush point of p's own, so that its ring can empty
	m.sendData(p, protocol.Data{Op: protocol.DataFlush, Seq: m.seq, Time: m.now}, nil)
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.GoneAhead{}})
	p.live, p.apart = false, false
	for _, s := range m.spans {
		s.req.copies &^= 1 << p.id // no copy to go on from, should the disk here fail
	}
	p.aheadAt, p.knowsBehind = m.now, false
	m.setRepl(p, protocol.Ahead, why)
}

// onGoneAhead: from this place in the stream on the primary's writes do not come here.
func (m *Machine) onGoneAhead(p *peer) {
	if p.role != protocol.Primary || m.role == protocol.Primary || p.repl != protocol.Established || p.lastWhy == RuleDefer {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s, %s, says that it goes ahead while replication is %s", p.name, p.role, p.repl))
		return
	}
	m.setRepl(p, protocol.Behind, p.name+" goes ahead")
	if m.disk > protocol.Outdated {
		m.setDisk(protocol.Outdated, p.name+" has gone ahead, and this replica has not caught up yet")
	}
	epoch := p.epoch
	p.rxHold = true
	m.whenDurable(func() {
		if p.epoch == epoch && p.linked {
			m.release(p)
			m.broadcastState()
		}
	})
}

// tickAhead has p catch up once it has everything that was sent, durably, and has said
// that it is outdated: by a new handshake, as if it had come back.
func (m *Machine) tickAhead(p *peer) {
	switch {
	case p.repl != protocol.Ahead || m.minting || m.drain != nil || m.handover != nil:
	case p.disk <= protocol.Failed || p.role == protocol.Primary:
		m.restart(p, p.name+" is not what it was when "+m.cfg.Self+" went ahead")
	case p.ring.len() > 0: // it is dropped when it does not get on
	case !p.knowsBehind:
		if m.now-p.moved > m.cfg.WriteTimeout {
			m.dropPeer(p, refusal(protocol.CodeTimeout, "%s has not said for %s that it is outdated", p.name, seconds(m.cfg.WriteTimeout)))
		}
	case m.now-p.aheadAt >= aheadMin:
		m.restart(p, p.name+" has taken all that was sent, and catches up")
	}
}
