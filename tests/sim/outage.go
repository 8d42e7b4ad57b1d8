package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume/meta"
)

// outage asks what would be if every node lost power at this moment, with all that is
// not on stable storage. It looks and changes nothing, so that moments can be judged
// that a run would have to be lucky to be cut at.
//
//	C1  a replica that could then be promoted without force has, in every sector,
//	    something that was there since what was flushed last
//	C3  where two replicas, which by their generations would be joined by a bitmap,
//	    may differ, a bit or an active extent says so
//	C4  of two that meet afterwards, the one that has what a client was told is not
//	    overwritten by the one that does not (meet.go; of all that were killed, too)
func (o *oracle) outage() {
	if o.w.looks.IntN(4) == 0 {
		o.alone()
	}
	for _, n := range o.w.nodes {
		o.readable(n)
	}
	for _, net := range o.w.nets {
		o.covered(net.a, net.b)
		if o.w.points == nil && o.w.aside.Float64() < 1.0/4 { // crash points stop all of them themselves
			o.meet(net.a, net.b, true)
			o.meet(net.a, net.b, false)
		}
	}
}

// glance looks at an outage with some chance, which it takes from numbers of its own:
// looking changes no run.
func (o *oracle) glance(chance float64) {
	if o.w.points != nil || o.w.aside.Float64() < chance {
		o.outage()
	}
}

// readable: C1 of one replica after an outage.
func (o *oracle) readable(n *node) {
	st, sup := o.st[n.index], &n.meta.believed().Super
	if sup.Disk <= protocol.Outdated || sup.Disk == protocol.DiskUnknown || sup.Current == 0 || st.dur < st.wild || n.disk.failed {
		return
	}
	judge := func(s int64, h int32, v uint64) {
		if !st.holds(int32(s), h, v, st.dur) {
			o.w.fail("C1: were the power cut now, %s, %s, could be promoted with %s in sector %d; it must have everything up to %d of branch %d: %s",
				n.name, sup.Disk, valueText(v), s, max(st.dur, st.fua[int32(s)].idx), st.br.id, st.br.text(h))
		}
	}
	for h, s := range o.hot {
		judge(int64(s), int32(h), n.disk.stable(int64(s)))
	}
	n.disk.eachVolatile(func(s int64, v uint64) {
		if h := o.slot[s]; h >= 0 {
			judge(s, h, v)
		}
	})
}

// marks are a replica's, toward one other, as stable storage has them.
type marks struct {
	bits   *bitmap.Set
	active *bitmap.Activity // nil: it was closed in order
}

func marksOf(st *meta.State, slot int) marks {
	m := marks{bits: st.Bitmaps[slot]}
	if !st.Super.Clean {
		m.active = st.Activity
	}
	return m
}

func (m marks) cover(s int64) bool {
	off := s * sectorSize
	return m.bits.Test(off/bitmap.BlockSize) || m.active != nil && m.active.Durable(off, sectorSize)
}

func (m marks) any() bool { return m.bits.Count() > 0 || m.active != nil && m.active.Count() > 0 }

// slotOf returns the index of a peer's slot, -1: none yet.
func slotOf(sup *meta.Super, name string) int {
	for i := range sup.Peers {
		if sup.Peers[i].Name == name {
			return i
		}
	}
	return -1
}

// covered: C3 of a pair after an outage.
func (o *oracle) covered(a, b *node) {
	sa, sb := a.meta.believed(), b.meta.believed()
	toB, toA := slotOf(&sa.Super, b.name), slotOf(&sb.Super, a.name)
	if toB < 0 || toA < 0 || sa.Super.Current == 0 || sb.Super.Current == 0 || sa.Super.Disk <= protocol.Failed || sb.Super.Disk <= protocol.Failed || a.disk.failed || b.disk.failed {
		return
	}
	ba, bb := sa.Super.Peers[toB].Bitmap, sb.Super.Peers[toA].Bitmap
	if sa.Super.Current != sb.Super.Current && ba != sb.Super.Current && bb != sa.Super.Current && (ba == 0 || ba != bb) {
		return // a full sync, or none
	}
	ma, mb := marksOf(sa, toB), marksOf(sb, toA)
	badA, badB := sa.Super.Disk == protocol.Inconsistent, sb.Super.Disk == protocol.Inconsistent
	if badA && badB || badA != badB && sa.Super.Current == sb.Super.Current && !ma.any() && !mb.any() {
		return // no good copy, or a full sync
	}
	both := min(sa.Super.Size, sb.Super.Size) // what only one of them has counts when the other has grown, too
	judge := func(s int64) {
		if s*sectorSize >= both {
			return
		}
		if !ma.cover(s) && !mb.cover(s) {
			o.w.fail("C3: were the power cut now, sector %d would be %s on %s (%s at %s, slot %s) and %s on %s (%s at %s, slot %s), or may be, and no bit or active extent of either would say so",
				s, valueText(a.disk.stable(s)), a.name, sa.Super.Disk, short(sa.Super.Current), short(ba), valueText(b.disk.stable(s)), b.name, sb.Super.Disk, short(sb.Super.Current), short(bb))
		}
	}
	for _, s := range o.hot {
		if a.disk.stable(int64(s)) != b.disk.stable(int64(s)) {
			judge(int64(s))
		}
	}
	for _, x := range []*disk{a.disk, b.disk} {
		x.eachVolatile(func(s int64, v uint64) {
			if a.disk.stable(s) != v || b.disk.stable(s) != v {
				judge(s)
			}
		})
	}
}
