package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// farRead is a piece of a read that a peer was asked for.
type farRead struct {
	id  uint64
	r   *Request
	off int64
	n   int64
	at  Time   // its answer is due since then
	seq uint64 // of the last write before it
}

// delayReads notes that answers are not due while the peer, which may lag far behind,
// has not applied what was sent before the question. Whether it gets on with that is
// judged by itself (stuckSince).
func (p *peer) delayReads(now Time) {
	if !p.patient || p.ring.applied == p.ring.tail {
		return
	}
	for i := range p.reads {
		if f := &p.reads[i]; p.ring.at(p.ring.applied).seq <= f.seq {
			f.at = now
		}
	}
}

// read serves a read from the local disk, or from a carrier where that is no copy.
func (m *Machine) read(r *Request) {
	if m.localReadable(r.Off, r.Len) {
		m.localRead(r)
		return
	}
	m.readFar(r)
}

// localReadable reports whether the range may be read from the local disk.
func (m *Machine) localReadable(off, n int64) bool {
	return m.usable() && (m.left == nil || !m.lacks(off, n))
}

// LocalReadable reports whether what the local store says of the range counts.
func (m *Machine) LocalReadable(off, n int64) bool { return m.localReadable(off, n) }

// readFar asks a carrier that has not failed to read it yet.
func (m *Machine) readFar(r *Request) {
	p := m.carrierOf(r.Off, r.Len, r.tried)
	if p == nil {
		if r.tried != 0 { // somebody has it, and cannot read it
			m.endRead(r, ErrDiskFailed)
			return
		}
		if !m.bare() {
			m.endRead(r, ErrDiskFailed)
			return
		}
		m.withoutData(r)
		return
	}
	if r.Op == Pull && p.dirty.Any(bitmap.Touched(r.Off, r.Len)) {
		for _, q := range m.peers { // who differs from p has other data than this node will have
			if q != p {
				q.dirty.Set(bitmap.Touched(r.Off, r.Len))
			}
		}
	}
	pieces := int((r.Len + protocol.ReadMax - 1) / protocol.ReadMax)
	if len(p.reads) > 0 && len(p.reads)+pieces > protocol.ReadsMax {
		m.farWait = append(m.farWait, r)
		return
	}
	r.pieces, r.bad = pieces, false
	for off := r.Off; off < r.Off+r.Len; off += protocol.ReadMax {
		m.readSerial++
		f := farRead{m.readSerial, r, off, min(protocol.ReadMax, r.Off+r.Len-off), m.now, m.seq}
		p.reads = append(p.reads, f)
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.PeerRead{ID: f.id, Off: f.off, Len: f.n}})
	}
}

func (m *Machine) endRead(r *Request, err error) {
	if r.Op == Pull {
		m.pullEnded(r)
		return
	}
	m.answer(r, err)
}

// FarRead says whose read an answer of the peer is for, and where in it; nil:
// nobody's any more. The owner puts the bytes there (Pull: keeps them for the
// DoLocal that follows) and calls FarReadDone, both before the next event.
func (m *Machine) FarRead(id PeerID, a *protocol.PeerReply) (r *Request, at int64) {
	for _, f := range m.all[id].reads {
		if f.id == a.ID && f.n == a.Len {
			return f.r, f.off - f.r.Off
		}
	}
	return nil, 0
}

// FarReadDone reports the answer as taken.
func (m *Machine) FarReadDone(now Time, id PeerID, a *protocol.PeerReply) {
	m.now = now
	p := m.all[id]
	for i, f := range p.reads {
		if f.id != a.ID {
			continue
		}
		p.reads = append(p.reads[:i], p.reads[i+1:]...)
		r := f.r
		if a.Code != protocol.CodeNone || a.Len != f.n {
			r.bad = true
			r.tried |= 1 << id
		}
		if r.pieces--; r.pieces == 0 {
			m.farReadEnded(r)
		}
		m.readmitAll(&m.farWait)
		return
	}
	m.dropPeer(p, refusal(protocol.CodeProtocol, "%s answered a read that was not asked for", p.name))
}

func (m *Machine) farReadEnded(r *Request) {
	switch {
	case r.bad:
		m.readFar(r)
	case r.Op == Pull && !m.usable():
		m.pullEnded(r)
	case r.Op == Pull:
		r.local, r.at = true, m.now
		m.emit(Effect{Kind: DoLocal, Req: r})
	default:
		m.readDone(r, nil)
	}
}

// readsLost asks somebody else for what a lost peer was to read.
func (m *Machine) readsLost(p *peer) {
	list := p.reads
	p.reads = nil
	for _, f := range list {
		if f.r.pieces == 0 {
			continue // asked again already
		}
		f.r.pieces = 0
		switch {
		case f.r.Op == Pull:
			m.pullEnded(f.r)
		case m.stopping:
			m.emit(Effect{Kind: DoComplete, Req: f.r, Err: ErrStopping})
		default:
			m.readmit(f.r)
		}
	}
}

// readFailed: the local disk could not read what a client asked for.
func (m *Machine) readFailed(r *Request, err error) {
	switch {
	case !m.usable():
	case m.cfg.OnReadError == ReadDetach:
		m.failDisk("read at " + position(r) + ": " + err.Error())
	case m.carrier(0) == nil:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: err})
		return
	default:
		m.event("", "data", "local", "repair", "read error at "+position(r)+": "+err.Error()+"; read from "+m.carrierNames())
		m.lack(r.Off, r.Len)
	}
	m.readmit(r)
	m.pumpFill()
}

// onPeerRead checks a primary's wish to read here.
func (m *Machine) onPeerRead(p *peer, v *protocol.PeerRead) {
	if p.role != protocol.Primary || m.role == protocol.Primary || v.Off > m.cfg.Size || v.Len > m.cfg.Size-v.Off {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s, %s, reads %d bytes at %d of %d", p.name, p.role, v.Len, v.Off, m.cfg.Size))
		return
	}
	e := Effect{Kind: DoServe, Peer: p.id, Read: *v}
	if m.disk < protocol.Consistent || p.repl != protocol.Established && p.repl != protocol.VerifyTarget {
		e.Err = ErrDiskFailed
	}
	m.emit(e)
}
