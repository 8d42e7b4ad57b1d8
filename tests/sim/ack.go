package sim

import (
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// holders calls fn for every replica that a request's acknowledgement speaks for under
// C: the primary's own, and those in the ack set since before it was submitted. Without
// a disk of the primary's own, for every one in the ack set under any protocol. What
// counts for the primary is when the machine decided on the answer: its disk may have
// failed, or its last copy, before that was carried out.
func (o *oracle) holders(p *process, c *clientOp, v *replica.View, fn func(n *node)) {
	bare, carriers := v.Bare, v.Carriers
	if c.decided {
		bare, carriers = c.bare, c.carriers
	}
	if !bare {
		fn(p.n)
	} else if carriers == "" {
		o.w.fail("C1: %s acknowledges %v and nobody has it: its disk is %s, and no copy can be reached", p.n.name, c.r.Op, v.Disk)
	}
	for i := range v.Peers {
		q, n := &v.Peers[i], p.n.peers[i]
		st := o.st[n.index]
		if q.Live && (q.Mode == protocol.ModeC || bare) && o.counts(p, q, n, c.br) && c.at > st.hurt {
			fn(n)
		}
	}
}

// applied: C1 at the moment of a write's acknowledgement, which has the newest index.
// A FUA write's own value on stable storage is enough: a later write, acknowledged before
// it, may only be in the cache.
func (o *oracle) applied(p *process, c *clientOp, v *replica.View) {
	o.holders(p, c, v, func(n *node) {
		o.within(c.r.Off, c.r.Len, func(s, h int32) {
			if x := n.disk.at(int64(s)); !c.br.legal(h, x, o.idx, 0) {
				o.w.fail("C1: %s acknowledges %s in sector %d, and %s, of which that speaks, has %s: %s",
					p.n.name, valueText(c.value(s)), s, n.name, valueText(x), c.br.text(h))
			}
			if x := n.disk.stable(int64(s)); c.r.FUA && x != c.value(s) && !c.br.legal(h, x, o.idx, 0) {
				o.w.fail("C1: %s acknowledges %s in sector %d with FUA, and %s, of which that speaks, has only %s on stable storage: %s",
					p.n.name, valueText(c.value(s)), s, n.name, valueText(x), c.br.text(h))
			}
		})
	})
	o.apart(p, c, v)
}

// forced notes what a FUA write has made durable on a replica.
func (o *oracle) forced(c *clientOp, fua map[int32]forced) {
	o.within(c.r.Off, c.r.Len, func(s, _ int32) { fua[s] = forced{o.idx, c.value(s), c.r.Seq()} })
}

// stable: C1 at the moment of a flush's acknowledgement.
func (o *oracle) stable(p *process, c *clientOp, v *replica.View) {
	o.holders(p, c, v, func(n *node) {
		n.disk.eachVolatile(func(s int64, _ uint64) {
			h := o.slot[s]
			if x := n.disk.stable(s); h >= 0 && !c.br.legal(h, x, c.idx, 0) {
				o.w.fail("C1: %s acknowledges a flush of everything up to %d, and %s, of which that speaks, has only %s of sector %d on stable storage: %s",
					p.n.name, c.idx, n.name, valueText(x), s, c.br.text(h))
			}
		})
	})
}

// apart: C4 at the moment of a write's acknowledgement. Whoever does not have it is,
// on stable storage, at another generation than the one who acknowledges; and whoever
// is in the ack set is not at one that was left.
func (o *oracle) apart(p *process, c *clientOp, v *replica.View) {
	mine := p.n.meta.believed().Super
	if v.Bare { // its metadata may be those of a disk that is gone
		mine.Current, mine.History = v.Current, nil
	}
	for i := range v.Peers {
		q, n := &v.Peers[i], p.n.peers[i]
		theirs := n.meta.believed().Super.Current
		if q.Live && q.Repl == protocol.Established {
			for _, g := range mine.History {
				if g == theirs && g != mine.Current {
					o.w.fail("C4: %s acknowledges in generation %s while %s, in its ack set, is at %s on stable storage", p.n.name, mine.Current, n.name, theirs)
				}
			}
		}
		if q.Live && (q.Repl != protocol.SyncSource || n.meta.believed().Super.Disk == protocol.Inconsistent) || q.Mode != protocol.ModeC || theirs != mine.Current || c.at <= o.st[n.index].hurt || o.passedOn(p, c, v) {
			continue
		}
		o.within(c.r.Off, c.r.Len, func(s, h int32) {
			if x := n.disk.at(int64(s)); !c.br.legal(h, x, o.idx, 0) {
				o.w.fail("C4: %s acknowledges %s in sector %d without %s, which has %s and is at the same generation %s on stable storage",
					p.n.name, valueText(c.value(s)), s, n.name, valueText(x), theirs)
			}
		})
	}
}

// unflushed: C4 at the moment of a flush's acknowledgement. Whoever would not have, after
// a power cut, all that it covers is, on stable storage, at another generation than the
// one who acknowledges: else that one could be overwritten by it.
func (o *oracle) unflushed(p *process, c *clientOp, v *replica.View) {
	mine := p.n.meta.believed().Super.Current
	if v.Bare {
		mine = v.Current
	}
	for i := range v.Peers {
		q, n := &v.Peers[i], p.n.peers[i]
		sup := &n.meta.believed().Super
		if q.Repl == protocol.Ahead && p.seen.live[i] {
			continue // the primary has gone ahead in this very event, after it had decided: under A it did not wait for it
		}
		if q.Live || sup.Current != mine || sup.Disk <= protocol.Inconsistent || o.passedOn(p, c, v) {
			continue
		}
		for h, s := range o.hot {
			if x := n.disk.stable(int64(s)); !c.br.legal(int32(h), x, c.idx, 0) {
				o.w.fail("C4: %s acknowledges a flush of everything up to %d without %s, which has only %s of sector %d on stable storage and is at the same generation %s: %s",
					p.n.name, c.idx, n.name, valueText(x), s, mine, c.br.text(int32(h)))
			}
		}
	}
}

// passedOn reports whether a replica that p counts among the ack sets has left the
// connection unnoticed, at p's generation, and may lack the write: under A or B, or because
// it has lost power since it took it. Whom it has brought to that generation lacks, as it
// does itself, what p answers until it notices. Then p begins another.
func (o *oracle) passedOn(p *process, c *clientOp, v *replica.View) bool {
	for i := range v.Peers {
		q, n := &v.Peers[i], p.n.peers[i]
		if q.Live && (q.Mode != protocol.ModeC || c.at <= o.st[n.index].hurt) && left(n, p, p.linkTo(n)) && n.meta.believed().Super.Current == v.Current {
			return true
		}
	}
	return false
}

// follows reports whether a sector's value is of a write that the machine took after the
// one with the given sequence, which may have been answered before that one.
func (b *branch) follows(h int32, v, seq uint64) bool {
	for _, e := range b.hist[h] {
		if e.val == v && e.seq > seq {
			return true
		}
	}
	for _, m := range b.maybe[h] {
		if m.val == v && m.op != nil && m.op.r.Seq() > seq {
			return true
		}
	}
	return false
}

// beneath reports whether a replica has a write, but where later ones have come.
func (o *oracle) beneath(b *branch, c *clientOp, n *node) bool {
	all := true
	o.within(c.r.Off, c.r.Len, func(s, h int32) {
		v := n.disk.at(int64(s))
		all = all && (v == c.value(s) || b.follows(h, v, c.r.Seq()))
	})
	return all
}

// promised: C6 at the moment of a read's answer: a write that is not acknowledged is
// read only when every replica that its acknowledgement would speak for has it.
// Otherwise what was read is gone with the primary.
func (o *oracle) promised(p *process, c *clientOp, s, h int32, x uint64) {
	b := c.br
	list := b.hist[h]
	base := 0
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].val == x {
			return
		}
		if base = list[i].idx; base <= c.idx {
			break
		}
	}
	for _, m := range b.maybe[h] {
		// Zeroes may be of one that has failed, of which nothing is promised, as well as
		// of one that was issued when the read was done.
		if m.val == x && m.op == nil && m.reign == b.id && base <= m.end {
			return
		}
	}
	for _, m := range b.maybe[h] {
		if m.val != x || m.op == nil || m.op.r.Seq() == 0 {
			continue
		}
		o.holders(p, m.op, p.look(), func(n *node) {
			if !n.disk.has(m.op) && !o.beneath(b, m.op, n) && !b.follows(h, n.disk.at(int64(s)), m.op.r.Seq()) {
				o.w.fail("C6: %s reads %s in sector %d, which is not acknowledged, and %s does not have it", p.n.name, valueText(x), s, n.name)
			}
		})
		return
	}
}
