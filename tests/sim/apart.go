package sim

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// apart is C3 for two replicas that are not connected and will be compared by their
// bitmaps when they meet: where they differ a bit of either side says so already.
func (w *World) apart(net *net) {
	a, b := net.a.proc, net.b.proc
	if a == nil || b == nil || !alone(a, b) || !alone(b, a) {
		return
	}
	va, vb := a.m.View(), b.m.View()
	if va.Bare || vb.Bare || va.Disk <= protocol.Failed || vb.Disk <= protocol.Failed || va.Current == 0 || vb.Current == 0 || va.Volume != vb.Volume {
		return
	}
	if va.Role != protocol.Primary && vb.Role != protocol.Primary && w.primary() != nil || third(&va, a, b) || third(&vb, a, b) {
		return // they remember what a third has written until they know that it is lost
	}
	sa, sb := va.Peers[a.peerID(net.b)].Slot, vb.Peers[b.peerID(net.a)].Slot
	if va.Current != vb.Current && sa != vb.Current && sb != va.Current && (sa == 0 || sa != sb) {
		return // everything will be compared, or nothing
	}
	w.count("compared apart")
	da, db := a.dirty[a.peerID(net.b)], b.dirty[b.peerID(net.a)]
	differ(net.a.disk, net.b.disk, func(s int64) {
		if w.rotten[s] || s*sectorSize >= min(net.a.size, net.b.size) {
			return
		}
		block := s * sectorSize / bitmap.BlockSize
		if !da.Test(block) && !db.Test(block) && !net.a.disk.writing(s) && !net.b.disk.writing(s) {
			w.fail("C3: sector %d is %s on %s and %s on %s; they are apart, at generations %s and %s with slots %s and %s, and no bit is set",
				s, valueText(net.a.disk.at(s)), net.a.name, valueText(net.b.disk.at(s)), net.b.name, short(va.Current), short(vb.Current), short(sa), short(sb))
		}
	})
}

// third reports whether a node believes in a primary that is neither of two.
func third(v *replica.View, a, b *process) bool {
	return v.Primary != "" && v.Primary != a.n.name && v.Primary != b.n.name
}

// alone reports whether p has no connection with q, and nothing of an earlier one
// is still being applied.
func alone(p, q *process) bool {
	if p.paused || p.linkTo(q.n) != nil {
		return false
	}
	for _, l := range p.all {
		if l.peer == q.n && l.active() {
			return false
		}
	}
	return true
}
