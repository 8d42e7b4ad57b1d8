package sim

import (
	"fmt"
	"math"
	"sort"
	"strings"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// settleTime is how long a cluster may take to settle once faults have ended, and syncs and
// verifies, at a slow rate or beside fast writers, do not get on any more.
const settleTime = 120 * second

// settle ends all faults and has operators put everything in order. C2, C5.
func (w *World) settle() {
	w.calm = true
	w.sc.rest = false
	w.sc.metaFail, w.sc.diskFail = 0, 0
	if w.sc.sync.RateBytes != 0 {
		w.sc.sync.RateBytes = 20 << 20
	}
	w.log("---- faults end")
	for _, net := range w.links {
		net.slow = 0
		net.setCut(false, false)
	}
	for _, n := range w.nodes {
		n.disk.slow, n.disk.space, n.disk.failOp, n.disk.unread, n.disk.bad = 0, 0, 0, 0, nil
		n.meta.failSync = false
		if n.proc != nil {
			n.resume(n.proc)
		}
	}
	limit, most, compared, fewest := w.now+settleTime, w.now+verifyMost, int64(0), int64(math.MaxInt64)
	for tries := 0; ; tries++ {
		w.runUntil(w.now + w.between(500*milli, 1500*milli))
		why := w.unsettled()
		if why == "" {
			why = w.changing()
		}
		if why == "" {
			break
		}
		if at := w.compared(); at > compared {
			compared, limit = at, max(limit, min(w.now+settleTime, most))
		}
		switch left := w.toCopy(); {
		case left == 0: // none is under way
			fewest = math.MaxInt64
		case left < fewest:
			fewest, limit = left, max(limit, min(w.now+settleTime, most))
		}
		if w.now > limit {
			w.fail("C5: not settled %d s after the last fault: %s\n%s", settleTime/second, why, w.dump())
		}
		if w.sc.recentMax != 0 && tries > 40 || w.sc.pullAhead && tries > 10 {
			w.sc.rest = true // every write leaves marks, which are gone a moment after
		}
		if tries%2 == 1 {
			w.mend(tries)
		}
	}
	w.quieten()
	w.equal()
}

// compared returns up to where the verifies under way have come, together.
func (w *World) compared() int64 {
	sum := int64(0)
	for _, n := range w.nodes {
		if n.proc == nil {
			continue
		}
		v := n.proc.m.View()
		for i := range v.Peers {
			if plan := n.proc.m.Plan(replica.PeerID(i)); plan != nil && v.Peers[i].Repl == protocol.VerifySource {
				sum += plan.Position()
			}
		}
	}
	return sum
}

// toCopy returns how many bytes the syncs under way have left, together.
func (w *World) toCopy() (sum int64) {
	for _, n := range w.nodes {
		if n.proc == nil {
			continue
		}
		v := n.proc.m.View()
		for i := range v.Peers {
			if v.Peers[i].Repl == protocol.SyncSource {
				sum += v.Peers[i].DirtyBytes
			}
		}
	}
	return sum
}

// quieten has clients rest, and waits until nothing is under way.
func (w *World) quieten() {
	w.sc.rest = true
	for end := w.now + 60*second; ; {
		w.runUntil(w.now + second)
		why := w.quiet()
		if why == "" {
			break
		}
		if w.now > end {
			w.fail("C5: not quiet: %s\n%s", why, w.dump())
		}
	}
}

// unsettled says what is not as it should be at last.
func (w *World) unsettled() string {
	primaries := 0
	for _, n := range w.nodes {
		if n.size != w.nodes[0].size {
			return fmt.Sprintf("%s has %d bytes, %s %d", n.name, n.size, w.nodes[0].name, w.nodes[0].size)
		}
	}
	for _, n := range w.nodes {
		p := n.proc
		if p == nil || p.stopping {
			return n.name + " is down"
		}
		if n.disk.hangs > w.now {
			return "the disk of " + n.name + " hangs"
		}
		v := p.m.View()
		if v.Role == protocol.Primary {
			primaries++
		}
		if v.Disk != protocol.UpToDate {
			return fmt.Sprintf("%s is %s", n.name, v.Disk)
		}
		if v.Current != w.nodes[0].proc.m.View().Current {
			return "generations differ"
		}
		for i := range v.Peers {
			q := &v.Peers[i]
			if q.Witness {
				continue
			}
			if q.Repl != protocol.Established || q.DirtyBytes != 0 {
				return fmt.Sprintf("%s-%s is %s, %d bytes out of sync", n.name, q.Name, q.Repl, q.DirtyBytes)
			}
			if v.Role == protocol.Primary && !q.Live {
				return fmt.Sprintf("%s is not live on %s", q.Name, n.name)
			}
		}
	}
	if primaries != 1 {
		return fmt.Sprintf("%d primaries", primaries)
	}
	return w.voteless()
}

// changing says which change of a role has not ended: what all is like now is not what
// it will be in a moment.
func (w *World) changing() string {
	for _, n := range w.nodes {
		for r := range w.replies {
			switch kind, _, _ := strings.Cut(r.what, " "); kind {
			case "demote", "promote", "switchover":
				if r.p == n.proc {
					return "a change of the role of " + n.name + " is under way"
				}
			}
		}
	}
	return ""
}

// quiet says what is still under way although clients rest.
func (w *World) quiet() string {
	if s := w.unsettled(); s != "" {
		return s
	}
	for r := range w.replies {
		if !r.p.dead {
			return "no answer to " + r.what + " on " + r.p.n.name
		}
	}
	for _, n := range w.nodes {
		if len(n.proc.ops) > 0 || len(n.disk.order) > 0 {
			return fmt.Sprintf("%d requests and %d writes under way on %s", len(n.proc.ops), len(n.disk.order), n.name)
		}
		v := n.proc.m.View()
		for i := range v.Peers {
			if v.Peers[i].UnackedOps != 0 { // trims have no bytes
				return "unacknowledged operations on " + n.name
			}
			if v.Peers[i].Slot != 0 {
				return fmt.Sprintf("%s has %s at %s", n.name, v.Peers[i].Name, v.Peers[i].Slot)
			}
		}
	}
	return ""
}

// equal is C2, and C8 at the end.
func (w *World) equal() {
	for _, n := range w.nodes {
		n.proc.checkLost()
	}
	for _, n := range w.nodes {
		w.o.prefix(n)
	}
	p := w.primary()
	for h, s := range w.o.hot {
		if v := p.disk.at(int64(s)); !p.proc.seen.branch.legal(int32(h), v, w.o.idx, 0) {
			w.fail("C2: at the end %s has %s in sector %d: %s", p.name, valueText(v), s, p.proc.seen.branch.text(int32(h)))
		}
	}
	for _, n := range w.nodes {
		differ(n.disk, p.disk, func(s int64) {
			w.fail("C2: at the end sector %d is %s on %s and %s on %s", s, valueText(n.disk.at(s)), n.name, valueText(p.disk.at(s)), p.name)
		})
	}
}

// mend is an operator who wants everything connected and one primary.
func (w *World) mend(tries int) {
	w.mendWitnesses()
	for _, n := range w.nodes {
		if n.needsDisk() && w.goodElsewhere(n) {
			w.replace(n)
			return
		}
		if n.proc == nil && !n.busy {
			n.start()
		}
	}
	for _, n := range w.nodes {
		if n.proc == nil || n.proc.stopping {
			return
		}
	}
	for _, n := range w.nodes {
		// A primary without data that nobody can give it any more.
		if p := n.proc; tries > 8 && p.look().Bare && p.view.Carriers == "" {
			p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
			return
		}
	}
	if w.mendSizes(tries) || w.mendRestores() || tries > 20 && w.giveWay() {
		return
	}
	for _, net := range w.nets {
		if net.a.proc != nil && net.b.proc != nil && (tries <= 12 || !w.mendHalf(net)) {
			w.mendPair(net)
		}
	}
	for _, n := range w.nodes {
		if n.proc == nil || n.proc.seen.branch != nil {
			return
		}
	}
	best := w.best()
	v := best.proc.m.View()
	for i := range v.Peers {
		if v.Peers[i].Conn == protocol.Connecting && tries < 20 {
			return
		}
	}
	best.promote(replica.PromoteOptions{Force: tries > 30 || v.Current == 0, PeerFenced: w.hasQuorum() && tries > 30})
}

func (w *World) goodElsewhere(n *node) bool {
	for _, x := range w.nodes {
		if x != n && !x.needsDisk() && x.proc != nil {
			return true
		}
	}
	return w.p(0.3)
}

// best is the replica that an operator would promote.
func (w *World) best() *node {
	list := append([]*node(nil), w.nodes...)
	sort.SliceStable(list, func(i, j int) bool { return list[i].proc.m.View().Disk > list[j].proc.m.View().Disk })
	return list[0]
}

// mendPair connects two nodes that stand alone, giving one side up where they have
// diverged.
func (w *World) mendPair(net *net) {
	a, b := net.a, net.b
	va, vb := a.view(b), b.view(a)
	if va.Conn != protocol.Standalone && vb.Conn != protocol.Standalone {
		return
	}
	text := va.Reason + vb.Reason
	if strings.Contains(text, "the sizes of") {
		w.connectBoth(a, b)
		return
	}
	if !strings.Contains(text, "discard") && !strings.Contains(text, "demote") && !strings.Contains(text, "differ") {
		w.connectBoth(a, b)
		return
	}
	// The loser: not the primary, not the better disk.
	win, lose := a, b
	ma, mb := a.proc.m.View(), b.proc.m.View()
	switch {
	case ma.Role != mb.Role:
		if mb.Role == protocol.Primary {
			win, lose = b, a
		}
	case ma.Disk != mb.Disk:
		if mb.Disk > ma.Disk {
			win, lose = b, a
		}
	case w.p(0.5):
		win, lose = b, a
	}
	if strings.Contains(text, "would be overwritten") || strings.Contains(text, "the older") {
		// The primary is the older side.
		win, lose = lose, win
	}
	if strings.Contains(text, "two different volumes") {
		w.recreate(lose)
		return
	}
	w.o.outlived(lose)
	w.count("divergence mended")
	w.log("operator: %s wins over %s", win.name, lose.name)
	then := func(error) {
		lose.connect(win, true)
		win.connect(lose, false)
	}
	if lose.proc.m.View().Role == protocol.Primary {
		p := lose.proc
		p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, then) })
		return
	}
	then(nil)
}

func (n *node) view(q *node) replica.PeerView {
	return n.proc.m.View().Peers[n.proc.peerID(q)]
}

// compare is C3: two replicas that are taken to be equal, with nothing under way,
// differ only where a bit says so.
func (w *World) compare() {
	w.at(w.between(100*milli, 700*milli), w.compare)
	for _, n := range w.nodes {
		if n.proc != nil {
			n.proc.checkLost()
			n.proc.reopened()
		}
	}
	w.o.glance(1)
	for _, n := range w.nodes {
		w.o.prefix(n)
	}
	for _, net := range w.nets {
		w.apart(net)
		a, b := net.a.proc, net.b.proc
		if a == nil || b == nil || a.paused || b.paused || !idle(a, b) || !idle(b, a) {
			continue
		}
		va, vb := net.a.view(net.b), net.b.view(net.a)
		if a.m.View().Disk <= protocol.Inconsistent || b.m.View().Disk <= protocol.Inconsistent {
			continue
		}
		if va.Repl != protocol.Established || vb.Repl != protocol.Established || va.Rule == replica.RuleDefer || !va.Live && !vb.Live {
			continue
		}
		if va.Live && a.seen.branch == nil || vb.Live && b.seen.branch == nil {
			if a.m.View().Current != b.m.View().Current || !w.idle() {
				continue // they follow a primary, each at its own pace
			}
		}
		w.count("compared")
		da, db := a.dirty[a.peerID(net.b)], b.dirty[b.peerID(net.a)]
		differ(net.a.disk, net.b.disk, func(s int64) {
			if w.rotten[s] {
				return
			}
			block := s * sectorSize / bitmap.BlockSize
			if !da.Test(block) && !db.Test(block) {
				w.fail("C3: sector %d is %s on %s and %s on %s; they are established, nothing is under way and no bit is set",
					s, valueText(net.a.disk.at(s)), net.a.name, valueText(net.b.disk.at(s)), net.b.name)
			}
		})
	}
}

// idle reports whether nothing is under way anywhere.
func (w *World) idle() bool {
	for _, net := range w.nets {
		a, b := net.a.proc, net.b.proc
		if a == nil || b == nil || a.paused || b.paused || !idle(a, b) || !idle(b, a) {
			return false
		}
	}
	return true
}

// idle reports whether p has nothing under way toward q.
func idle(p, q *process) bool {
	l, back := p.linkTo(q.n), q.linkTo(p.n)
	if l == nil || back == nil || l.e.c != back.e.c || len(p.ops) > 0 || len(p.n.disk.order) > 0 || len(l.queue) > 0 ||
		l.rx.busy || l.bulk.busy || l.planning || len(l.rx.q) > 0 {
		return false
	}
	for _, st := range l.e.out {
		if len(st.q) > 0 {
			return false
		}
	}
	return true
}

// dump describes every node.
func (w *World) dump() string {
	s := ""
	for _, n := range append(append([]*node(nil), w.nodes...), w.voters...) {
		if n.proc == nil {
			s += n.name + ": down\n"
			continue
		}
		v := n.proc.m.View()
		s += fmt.Sprintf("%s: %s %s (%s) generation %s, in flight %d, waiting %d\n", n.name, v.Role, v.Disk, v.DiskReason, short(v.Current), v.InFlight, v.Waiting)
		if w.hasQuorum() {
			s += fmt.Sprintf("    quorate %v serving %v: %s\n", v.Quorate, v.Serving, n.proc.m.Missing())
		}
		for i := range v.Peers {
			q := &v.Peers[i]
			s += fmt.Sprintf("    %s: %s %s (%s) role %s disk %s dirty %d slot %s live %v linked %v rule %s\n", q.Name, q.Conn, q.Repl, q.Reason, q.Role, q.Disk,
				q.DirtyBytes/bitmap.BlockSize, short(q.Slot), q.Live, q.Linked, q.Rule)
			if l := n.proc.links[i]; l != nil {
				s += fmt.Sprintf("        link: queue %d sending %v receiving %v/%d held %v/%v bulk %v/%d flushing %v plan %v, on the way %d and %d, cut %v, %v\n", len(l.queue), l.sending,
					l.rx.busy, len(l.rx.q), l.hold != nil, n.proc.m.Held(replica.PeerID(i)), l.bulk.busy, len(l.bulk.q), l.flushing, l.planning, len(l.e.out[0].q), len(l.e.out[1].q), w.net(n, n.peers[i]).cut, l.e.out[0].state())
			}
		}
	}
	return s
}
