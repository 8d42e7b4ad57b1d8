package sim

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// meet asks what two replicas would do that come back after all were killed at this
// moment, or have lost their power, and meet before any other: C4, the one that has what
// a client was told is not overwritten by the one that does not. How they would decide is
// asked of the real machines; what must come of it is known here.
func (o *oracle) meet(a, b *node, power bool) {
	if a.disk.failed || b.disk.failed || !power && !o.allC() {
		return
	}
	loses := o.lacking
	if power {
		loses = o.lackingFlushed
	}
	whatA, whatB := loses(a, b), loses(b, a)
	if whatA == "" && whatB == "" {
		return
	}
	ha, hb := o.awake(a, b, power), o.awake(b, a, power)
	if ha == nil || hb == nil {
		return
	}
	d := replica.Compare(replica.Side{Name: a.name, Hello: ha}, replica.Side{Name: b.name, Hello: hb})
	if d.Split { // an operator or a policy has the word
		return
	}
	switch d.Strategy {
	case protocol.SourceBitmap, protocol.SourceFull:
		o.overwriting(b, a, hb, d.Rule, whatB)
	case protocol.TargetBitmap, protocol.TargetFull:
		o.overwriting(a, b, ha, d.Rule, whatA)
	default:
	}
}

// overwriting fails for what n would lose, unless it is in the middle of a sync, whose end
// was not durable.
func (o *oracle) overwriting(n, src *node, h *protocol.Hello, rule replica.Rule, lost string) {
	if lost != "" && h.Disk != protocol.Inconsistent {
		o.w.fail("C4: were all stopped now, and %s and %s back first, %s would be overwritten by rule %s: %s",
			n.name, src.name, n.name, rule, lost)
	}
}

// allC reports whether an acknowledged write is on every connected replica.
func (o *oracle) allC() bool {
	for _, net := range o.w.nets {
		if o.w.sc.mode(net.a, net.b) != protocol.ModeC {
			return false
		}
	}
	return true
}

// awake returns what n would say to a peer if it lost power now, or were killed, and
// started; nil: it would say nothing.
func (o *oracle) awake(n, to *node, power bool) *protocol.Hello {
	m := o.revived(n, power)
	if m.Linked(o.w.now, (&process{n: n}).peerID(to)) != nil {
		return nil
	}
	for _, e := range m.Effects() {
		if h, ok := e.Msg.(*protocol.Hello); ok && h.Disk > protocol.Failed {
			return h
		}
	}
	return nil
}

// revived returns the machine of a node that has lost power now, or was killed, as it is
// when it has started.
func (o *oracle) revived(n *node, power bool) *replica.Machine {
	pages := n.meta.visible
	if power {
		pages = n.meta.durable
	}
	state := n.meta.kept(pages, n.name+" is stopped")
	p := &process{n: n, w: o.w}
	cfg, id := p.config(), uint64(0)
	cfg.Rand = func() uint64 { id++; return id }
	cfg.VolumeID = func() protocol.VolumeID { return protocol.VolumeID{1} }
	m := replica.New(cfg, p.stored(state), p.activity(state), o.w.now)
	m.Effects()
	return m
}

// kept returns what pages of the metadata say. It is not to be changed.
func (s *metaStore) kept(pages map[int64]*[metaPage]byte, when string) *meta.State {
	state, err := meta.Recover(image{pages, s.size}, s.size)
	if err != nil {
		s.w.fail("P7: were it so that %s now, the metadata could not be read: %v", when, err)
	}
	return state
}

// lacking says what src lacks of what was acknowledged and n has; empty: nothing. After a
// power cut of src nothing of that is promised.
func (o *oracle) lacking(n, src *node) string {
	st := o.st[n.index]
	if o.st[src.index].lost {
		return ""
	}
	if first := unique(st.mark(), o.st[src.index].mark()); first != 0 && !st.broken && !st.gaveUp {
		if e := o.more(n, src, first); e != nil {
			return fmt.Sprintf("write %d (%s, branch %d of %s)", e.idx, valueText(e.val), st.br.id, st.br.owner)
		}
	}
	return ""
}

// lackingFlushed says what src may lack, after a power cut, of what was flushed and n has;
// empty: nothing.
func (o *oracle) lackingFlushed(n, src *node) (lost string) {
	st := o.st[n.index]
	floor := st.owed()
	if st.broken || st.gaveUp || st.br != o.st[src.index].br || !o.waitedFor(st.br, n) && !o.waitedFor(st.br, src) {
		return ""
	}
	judge := func(s int64, v uint64) {
		if h := o.slot[s]; lost == "" && h >= 0 && !st.holds(int32(s), h, v, floor) && st.holds(int32(s), h, n.disk.stable(s), floor) {
			lost = fmt.Sprintf("%s in sector %d is older than what was flushed: %d of branch %d has %s",
				valueText(v), s, max(floor, st.fua[int32(s)].idx), st.br.id, st.br.text(h))
		}
	}
	for _, s := range o.hot {
		judge(int64(s), src.disk.stable(int64(s)))
	}
	src.disk.eachVolatile(judge)
	return lost
}

// waitedFor reports whether a flush of the branch's primary waits for n's stable storage.
// Of two that it does not wait for, which under A or B came further is known to neither
// after a power cut: both may lack what was flushed.
func (o *oracle) waitedFor(br *branch, n *node) bool {
	for _, x := range o.w.nodes {
		if x.name == br.owner {
			return x == n || x.disk.failed || o.w.sc.mode(x, n) == protocol.ModeC
		}
	}
	return true
}
