package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// do makes a step and waits until it is answered, or for a crash.
func (w *World) do(s step) {
	w.log("STEP %v", s)
	const half = bitmap.BlockSize / 2
	switch s {
	case stepWrite:
		w.ask(replica.Write, half, bitmap.BlockSize, false)
	case stepZero:
		w.ask(replica.Zero, half, half, false)
	case stepTrim:
		w.ask(replica.Trim, bitmap.BlockSize, half, false)
	case stepFlush:
		w.ask(replica.Flush, 0, 0, false)
	case stepFUA:
		w.ask(replica.Write, bitmap.ExtentSize, bitmap.BlockSize, true)
	case stepCut:
		w.nets[0].setCut(true, true)
		return
	case stepPromote:
		w.promoteOther()
	case stepDemote:
		for _, n := range w.nodes {
			if p := n.proc; p.seen.branch != nil {
				p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil)
				break
			}
		}
	case stepResync:
		w.resync()
		return
	default:
		panic("sim: no such step")
	}
	w.until(20*second, s.String(), w.answeredAll)
}

// ask has a client of every primary make a request.
func (w *World) ask(op replica.Op, off, n int64, fua bool) {
	for _, x := range w.nodes {
		p := x.proc
		if p == nil || p.seen.branch == nil {
			continue
		}
		o := &clientOp{proc: p, at: w.now}
		o.id = w.o.note(o)
		o.r = replica.Request{Op: op, FUA: fua, Off: off, Len: n, Tag: o}
		if op == replica.Write {
			for i := range n / sectorSize {
				o.vals = append(o.vals, o.id<<16|uint64(off/sectorSize+i))
			}
		}
		p.ops[o] = true
		w.o.submitted(p, o)
		p.enter(func() {
			p.m.Submit(p.now(), &o.r)
			p.run()
		})
	}
}

// answeredAll reports whether nobody alive waits for an answer.
func (w *World) answeredAll() bool {
	for r := range w.replies {
		if !r.p.dead {
			return false
		}
	}
	for _, n := range w.nodes {
		if n.proc != nil && len(n.proc.ops) > 0 {
			return false
		}
	}
	return true
}

// promoteOther has a secondary become primary: by a switchover where that is
// possible; where it is not, the operator says that the peer is dead, which need not be
// true.
func (w *World) promoteOther() {
	a, b := w.nodes[0], w.nodes[1]
	if a.proc.seen.branch == nil && b.proc.seen.branch != nil {
		a, b = b, a
	}
	switch {
	case b.proc.seen.branch != nil: // both are
	case !w.nets[0].whole():
		w.until(5*second, "the loss to be noticed", func() bool { return b.view(a).Conn != protocol.Connected })
		if !w.points.over {
			b.promote(replica.PromoteOptions{PeerFenced: true})
		}
	case a.proc.seen.branch != nil:
		p := a.proc
		p.enter(func() {
			p.operate("switchover", func(done func(error)) { p.m.Switchover(p.now(), p.peerID(b), done) }, nil)
		})
	default:
		b.promote(replica.PromoteOptions{})
	}
}

// resync has the two in sync again, after a resync if there was none to wait for.
func (w *World) resync() {
	if w.nets[0].whole() {
		for _, n := range w.nodes {
			if p := n.proc; p.seen.branch == nil {
				p.enter(func() {
					p.operate("invalidate", func(done func(error)) { p.m.Invalidate(p.now(), done) }, func(err error) {
						if err == nil {
							w.o.st[n.index].gaveUp = true
						}
					})
				})
				break
			}
		}
	}
	w.nets[0].setCut(false, false)
	w.until(60*second, "the resync's end", func() bool {
		if !w.answeredAll() {
			return false
		}
		for _, n := range w.nodes {
			v := n.view(n.peers[0])
			if v.Conn == protocol.Standalone {
				return true // a split brain
			}
			if v.Repl != protocol.Established || v.DirtyBytes != 0 {
				return false
			}
		}
		return true
	})
}

// goOn is what follows a crash.
func (w *World) goOn(s sequel) {
	c := w.points
	first, last := c.who.peers[0], c.who // to be primary; to start
	if s == failsOver {
		if c.kind.both {
			first.start()
		}
		w.nets[0].setCut(false, false)
		w.until(5*second, "the death to be noticed", func() bool { return first.view(last).Conn != protocol.Connected })
		if first.proc.seen.branch == nil {
			first.promote(replica.PromoteOptions{PeerFenced: true})
			w.until(20*second, "the promotion", w.answeredAll)
		}
		w.ask(replica.Write, 0, bitmap.BlockSize, false)
		w.ask(replica.Flush, 0, 0, false)
		w.until(20*second, "a write after it", w.answeredAll)
	}
	a, b := w.o.st[0].mark(), w.o.st[1].mark()
	diverged := unique(a, b) != 0 && unique(b, a) != 0 && w.held(0, b) && w.held(1, a)
	for _, n := range w.nodes {
		n.start()
	}
	w.settle()
	if diverged && w.counts["split brains"] == 0 {
		w.fail("C4: both nodes had acknowledged writes that the other did not have, and no split brain was reported")
	}
}

// held reports whether a node's store still has something that the other does not
// have by its mark.
func (w *World) held(i int, other mark) bool {
	n, st := w.nodes[i], w.o.st[i]
	first := unique(st.mark(), other)
	if first == 0 {
		return false
	}
	for h, s := range w.o.hot {
		for _, e := range st.br.hist[h] {
			if e.idx >= first && e.idx <= st.pos && n.disk.at(int64(s)) == e.val && e.val != 0 {
				return true
			}
		}
	}
	return false
}
