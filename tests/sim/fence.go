package sim

import (
	"errors"
	"math/rand/v2"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// fencingFrom is the first of the seeds whose clusters have fencing and no quorum. Nobody
// vouches for anybody there, and nobody forces: hooks do, and what they say is true, but
// for those of the seeds whose hooks lie.
const fencingFrom = 9_000_000

// staleFrom is the first of those of them in which the metadata often cannot be written
// when a peer is fenced no longer.
const staleFrom = 9_500_000

func (w *World) chooseFencing() {
	if w.seed >= fencingFrom && w.seed < growsFrom {
		w.withFencing()
	}
}

// withFencing draws from a source of its own, so that what else a seed does stays.
func (w *World) withFencing() {
	sc, rng := &w.sc, rand.New(rand.NewPCG(w.seed, 0x6e))
	sc.honest = true
	sc.modes = [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC} // what the others promise has nothing to do with fencing
	sc.fencing = replica.FencingStonith
	if rng.IntN(4) == 0 {
		sc.fencing = replica.FencingResource
	}
	sc.fenceBy = fenceBy(1 + rng.IntN(3))
	sc.lies = rng.IntN(6) == 0
	sc.lease = 3 * second // of supplant; nothing else knows it
}

// fenceBy is what the hooks of a cluster do.
type fenceBy uint8

const (
	byWord    fenceBy = iota + 1 // they reach the peer by another way, and outdate it
	byStonith                    // they switch it off
	byBoth                       // first the one, then the other
)

func (w *World) hasFencing() bool { return w.sc.fencing != replica.FencingOff }

// unfenced: a peer of a node is fenced no longer, which its metadata do not say yet.
func (p *process) unfenced() {
	if w := p.w; w.seed >= staleFrom && w.seed < growsFrom && !w.calm && w.p(0.3) {
		p.failCommit = true
	}
}

// strict: what was acknowledged is never lost, and never answered beside.
func (w *World) strict() bool {
	return w.hasQuorum() || w.sc.fencing == replica.FencingStonith && !w.lied
}

// fence is volume.fence: a hook that takes a while, comes late, hangs, fails, is
// interrupted, and sometimes lies. What it has begun it goes on with when its agent dies.
func (p *process) fence(id replica.PeerID, token uint64) {
	w, q := p.w, p.n.peers[id]
	w.count("fence-peer asked")
	answer := func(a replica.FenceAnswer, why string) {
		w.log("fence-peer of %s about %s: %s", p.n.name, q.name, why)
		w.count("fence-peer: " + why)
		p.enter(func() {
			p.m.FenceAnswered(p.now(), id, token, a, why)
			p.run()
		})
	}
	delay := w.between(milli, 500*milli)
	if w.calm {
		w.at(delay, func() { w.outdate(q, 20, answer, func() { answer(replica.FenceUnreachable, "unreachable") }) })
		return
	}
	if w.p(0.1) {
		delay = w.between(second, 20*second)
	}
	switch k := w.n(100); {
	case k < 5:
		w.at(w.between(5*second, 60*second), func() { answer(replica.FenceFailed, "hung") })
		return
	case k < 12:
		w.at(delay, func() { answer(replica.FenceFailed, "failed") })
		return
	case k < 17: // and what it has done is not heard of
		w.at(delay, func() {
			w.carryOut(q, func(replica.FenceAnswer, string) { answer(replica.FenceFailed, "interrupted") })
		})
		return
	case k < 40 && w.sc.lies:
		w.at(delay, func() {
			w.lied, p.vouched = true, true
			answer([]replica.FenceAnswer{replica.FenceStonithed, replica.FenceOutdated, replica.FenceInconsistent}[w.n(3)], "lies")
		})
		return
	}
	w.at(delay, func() { w.carryOut(q, answer) })
}

// carryOut fences a node as the cluster's hooks do.
func (w *World) carryOut(q *node, answer func(replica.FenceAnswer, string)) {
	if w.sc.fenceBy == byStonith {
		w.stonith(q, answer)
		return
	}
	w.outdate(q, 12, answer, func() {
		if w.sc.fenceBy == byBoth {
			w.stonith(q, answer)
			return
		}
		answer(replica.FenceUnreachable, "unreachable")
	})
}

// stonith switches a node off; it is started again later.
func (w *World) stonith(q *node, answer func(replica.FenceAnswer, string)) {
	switch {
	case w.calm: // asked before
		answer(replica.FenceUnreachable, "unreachable")
		return
	case q.busy || w.p(0.1):
		answer(replica.FenceFailed, "the switch does not answer")
		return
	case q.proc == nil && w.p(0.3):
		answer(replica.FenceUnreachable, "unreachable")
		return
	}
	w.count("stonith")
	q.crash(w.p(0.7), w.back())
	answer(replica.FenceStonithed, "stonithed")
}

// outdate asks a node by another way, as `qrbd outdate --fence-code` does there.
func (w *World) outdate(q *node, tries int, answer func(replica.FenceAnswer, string), failed func()) {
	p := q.proc
	if p == nil || p.paused || p.stopping || !w.calm && w.p(0.1) {
		failed()
		return
	}
	p.m.Outdate(p.now(), func(err error) {
		var r *replica.Refusal
		switch {
		case errors.As(err, &r) && r.Code == protocol.CodeTwoPrimaries:
			answer(replica.FencePrimary, "primary")
		case errors.As(err, &r) && r.Code == protocol.CodeBusy && tries > 0:
			w.at(300*milli, func() { w.outdate(q, tries-1, answer, failed) })
		case err != nil:
			failed()
		case p.m.View().Disk == protocol.Inconsistent:
			answer(replica.FenceInconsistent, "inconsistent")
		default:
			answer(replica.FenceOutdated, "outdated")
		}
	})
	p.run()
	if !p.dead {
		p.observe()
	}
}

// nothingLost is C4 with fencing: whoever is promoted has what was acknowledged, as far as
// anybody else has it still.
func (o *oracle) nothingLost(p *process) {
	if !o.w.strict() || o.w.hasQuorum() || p.vouched {
		return
	}
	st := o.st[p.n.index]
	for _, n := range p.n.peers {
		x := o.st[n.index]
		if x.gaveUp || x.broken {
			continue
		}
		if i := unique(x.mark(), st.mark()); i != 0 {
			if e := o.more(n, p.n, i); e != nil {
				o.w.fail("C4: %s is promoted without write %d (%s), which was acknowledged and which %s has", p.n.name, e.idx, valueText(e.val), n.name)
			}
		}
	}
}

// noSplit is C4 with fencing: two sides that have both acknowledged what the other does
// not have are the work of a hook that lied. Where data are not good any more, two
// replicas can look like that to each other, and nothing is lost.
func (o *oracle) noSplit(p *process, n *node) {
	me, st := o.st[p.n.index], o.st[n.index]
	if !o.w.strict() || o.w.hasQuorum() || me.broken || st.broken || me.gaveUp || st.gaveUp {
		return
	}
	if a, b := unique(me.mark(), st.mark()), unique(st.mark(), me.mark()); a != 0 && b != 0 {
		o.w.fail("C4: %s has %d and %s has %d acknowledged, which the other does not have, and no hook has lied", p.n.name, a, n.name, b)
	}
}
