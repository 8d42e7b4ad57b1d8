package volume

import (
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// serve is a read that the primary wants done here.
type serve struct {
	read   protocol.PeerRead
	failed bool
}

const (
	// serversMax goroutines serve a link's reads: a disk wants some depth.
	serversMax = 8
	// holeMin is the least read, bytes, for which the store is asked whether it has
	// a hole there: a refill, not a client's page.
	holeMin = 64 << 10
)

// toServe queues a read of the peer. REQUIRES v.mu, and that the caller is one of
// the link's goroutines.
func (l *link) toServe(e *replica.Effect) {
	if len(l.asked) >= protocol.ReadsMax {
		l.cause = refuse(protocol.CodeProtocol, "%s has more than %d reads without an answer", l.name, protocol.ReadsMax)
		l.abort() // lost is reported by receive
		return
	}
	l.asked = append(l.asked, serve{e.Read, e.Err != nil})
	if l.servers < serversMax {
		l.servers++
		l.v.fast.Add(1)
		go l.serveReads()
	}
}

// serveReads answers queued reads until there is none.
func (l *link) serveReads() {
	defer l.v.fast.Done()
	for {
		l.v.mu.Lock()
		if len(l.asked) == 0 || l.v.links[l.id] != l {
			l.servers--
			l.asked = nil
			l.v.mu.Unlock()
			return
		}
		s := l.asked[0]
		l.asked = l.asked[1:]
		l.v.mu.Unlock()
		if err := l.serveOne(&s); err != nil {
			l.lost(err)
		}
	}
}

// serveOne reads and answers. An error is the link's.
func (l *link) serveOne(s *serve) error {
	v, r := l.v, &s.read
	answer := &protocol.PeerReply{ID: r.ID, Len: r.Len}
	if s.failed {
		answer.Code = protocol.CodeDiskFailed
		return l.writeBulk(answer, nil)
	}
	if r.Len >= holeMin {
		if exts, err := v.store().Extents(r.Off, r.Len, 1); err == nil && exts[0].Zero && exts[0].Len == r.Len {
			answer.Zero = true
			return l.writeBulk(answer, nil)
		}
	}
	buf := v.opt.Pool.Get(int(r.Len), l.dead)
	if buf == nil {
		return nil // the link is gone
	}
	defer buf.Release()
	if err := v.store().ReadAt(buf.Bytes(), r.Off); err != nil {
		v.meter.localBad[OpKindRead].Add(1)
		v.log.Warn("a read for the primary failed", "peer", l.name, "off", r.Off, "len", r.Len, "err", err)
		answer.Code = protocol.CodeDiskFailed
		return l.writeBulk(answer, nil)
	}
	if allZero(buf.Bytes()) {
		answer.Zero = true
		return l.writeBulk(answer, nil)
	}
	return l.writeBulk(answer, buf.Bytes())
}

// pulled is what a run of a refill writes to the local store.
type pulled struct {
	buf *blockdev.Buffer // nil: zeroes
}

// farRead takes the answer to a read that a peer did for this node. The bytes are
// copied under the lock: the request must not end meanwhile, and they are few.
func (l *link) farRead(a *protocol.PeerReply, buf *blockdev.Buffer) {
	v := l.v
	v.mu.Lock()
	if v.links[l.id] == l {
		if r, at := v.m.FarRead(l.id, a); r != nil && a.Code == protocol.CodeNone {
			v.keep(r, at, a, buf)
		}
		v.m.FarReadDone(v.now(), l.id, a)
	}
	v.unlockAndRun()
}

// keep puts a peer's bytes where they belong. REQUIRES v.mu.
func (v *Volume) keep(r *replica.Request, at int64, a *protocol.PeerReply, buf *blockdev.Buffer) {
	if r.Op == replica.Pull {
		if old := v.pulled[r]; old.buf != nil {
			old.buf.Release()
		}
		p := pulled{}
		if !a.Zero {
			buf.Retain()
			p.buf = buf
		}
		v.pulled[r] = p
		return
	}
	o := r.Tag.(*op)
	if r.Late() && !o.parted { // the store may still write into that one
		o.parted = true
		o.user.Buf = blockdev.NewBuffer(len(o.buf.Bytes()))
	}
	to := o.user.Buf.Bytes()[at : at+a.Len]
	if a.Zero {
		clear(to)
		return
	}
	copy(to, buf.Bytes())
}

// writePulled writes a run of a refill.
func (v *Volume) writePulled(r *replica.Request) error {
	v.mu.Lock()
	p := v.pulled[r]
	delete(v.pulled, r)
	v.mu.Unlock()
	if p.buf == nil {
		return v.zeroUnlessZero(r.Off, r.Len, nil)
	}
	defer p.buf.Release()
	return v.store().WriteAt(p.buf.Bytes(), r.Off, 0)
}
