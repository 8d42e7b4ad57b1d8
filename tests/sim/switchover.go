package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

const (
	// switchoversFrom is the first of the seeds whose operators hand the role over often,
	// among three replicas, and whose third hears of it late. Half of the clusters have a
	// quorum.
	switchoversFrom = 12_000_000
	// switchoversFencedFrom is the first of those whose clusters have fencing.
	switchoversFencedFrom = 12_500_000
)

func (w *World) switchovers() bool { return w.seed >= switchoversFrom }

// chooseSwitchovers draws from a source of its own, as the other ranges do.
func (w *World) chooseSwitchovers() {
	if !w.switchovers() {
		return
	}
	sc, rng := &w.sc, rand.New(rand.NewPCG(w.seed, 0x5317))
	switch {
	case w.seed >= switchoversFencedFrom:
		w.withFencing()
	case w.seed%2 == 1:
		w.withQuorum()
		sc.witness = false
	}
	sc.count = 3
	sc.pace = []int64{500 * milli, second, 2 * second}[rng.IntN(3)]
	if sc.length < 100*second { // a long run has one client, and ends in bounded events
		sc.length = max(sc.length, 20*second)
		sc.think = []int64{milli, 5 * milli, 30 * milli}[rng.IntN(3)]
	}
	sc.badDisks, sc.diskFail, sc.metaFail = 0, 0, 0 // most of the time there is somebody to hand over to
}

// handOver has the primary hand over to one of the others, while the network to the third
// is slow from the moment of the farewell on: the new primary is heard of first. Often
// something happens to one of the three meanwhile.
func (w *World) handOver() {
	old := w.primary()
	if old == nil || old.proc.paused || old.proc.stopping {
		return
	}
	k := w.n(2)
	to, third := old.peers[k], old.peers[1-k]
	late := []int64{w.between(0, 20*milli), w.between(0, 500*milli), w.between(0, 4*second)}[w.n(3)]
	strikes := w.p(0.3)
	w.said = func(m moment, from, at *node) {
		if m != moment(protocol.TypeState) || from != old || at != third || old.proc.look().Role == protocol.Primary {
			return
		}
		w.said = nil
		net := w.net(old, third)
		net.slow = late
		w.at(0, func() { net.slow = 0 })
		w.count("farewell late")
		w.log("FAULT the farewell of %s to %s takes %d ms more", old.name, third.name, late/milli)
		if strikes {
			w.at(w.between(0, late+10*milli), func() {
				if !w.calm {
					w.strike(w.any())
				}
			})
			return
		}
		if late < 1500*milli { // else longer than the third waits, perhaps
			w.watchThird(to, third, late+50*milli+w.sc.netMax)
		}
	}
	p := old.proc
	p.enter(func() {
		p.operate("switchover to "+to.name, func(done func(error)) { p.m.Switchover(p.now(), p.peerID(to), done) }, nil)
	})
}

// watchThird counts whether the third goes on with the new primary over the connection that
// it has.
func (w *World) watchThird(to, third *node, after int64) {
	p := third.proc
	if p == nil || to.proc == nil || to.proc.look().Peers[to.proc.peerID(third)].Rule == replica.RuleDefer {
		return // the two have never been compared, and are now
	}
	l := p.linkTo(to)
	w.at(after, func() {
		switch {
		case third.proc != p || to.proc == nil || to.proc.seen.branch == nil || l == nil:
		case p.linkTo(to) == l:
			w.count("third went on")
		default:
			w.count("third connected anew")
			w.log("%s has connected to %s anew", third.name, to.name)
		}
	})
}
