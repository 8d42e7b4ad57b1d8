package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// quorumFrom is the first of the seeds whose clusters have a quorum: three replicas, or
// two and a witness. Nobody vouches for anybody there, and nobody forces.
const quorumFrom = 8_000_000

func (w *World) chooseQuorum() {
	if w.seed >= quorumFrom && w.seed < fencingFrom {
		w.withQuorum()
	}
}

// withQuorum draws from a source of its own, so that what else a seed does stays.
func (w *World) withQuorum() {
	sc, rng := &w.sc, rand.New(rand.NewPCG(w.seed, 0x51))
	sc.honest = true
	sc.modes = [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC} // what the others promise has nothing to do with votes
	sc.witness = rng.IntN(2) == 0
	sc.count = 3
	if sc.witness {
		sc.count = 2
	}
	sc.quorum = replica.Quorum{Kind: replica.QuorumMajority}
	switch rng.IntN(8) {
	case 0:
		sc.quorum.Kind = replica.QuorumAll
	case 1:
		sc.quorum = replica.Quorum{Kind: replica.QuorumCount, Count: 2}
	}
	if rng.IntN(6) == 0 {
		sc.minRedundancy = replica.Quorum{Kind: replica.QuorumCount, Count: 2}
	}
	if rng.IntN(4) == 0 {
		sc.onNoQuorum = replica.NoQuorumError
	}
	sc.lease = []int64{second, 3 * second, 6 * second}[rng.IntN(3)]
}

// addWitness gives the cluster a node that holds no data.
func (w *World) addWitness() {
	if !w.sc.witness {
		return
	}
	x := w.newNode(len(w.nodes))
	x.witness = true
	w.voters = append(w.voters, x)
	for _, n := range w.nodes {
		n.peers = append(n.peers, x)
		x.peers = append(x.peers, n)
		w.links = append(w.links, &net{w: w, a: n, b: x})
	}
}

func (w *World) hasQuorum() bool { return w.sc.quorum.Kind != replica.QuorumOff }

// oneServes is C4 with a quorum: once a primary has answered a request, none that was
// promoted before it ever does again, not even one that had waited.
func (o *oracle) oneServes(p *process, c *clientOp) {
	if !o.w.strict() {
		return
	}
	if p.reign < o.served {
		o.w.fail("C4: %s, promotion %d, answers a %v although promotion %d has answered already", p.n.name, p.reign, c.r.Op, o.served)
	}
	if p.reign > o.served {
		o.w.count("reigns that served")
		for _, n := range o.w.nodes {
			if q := n.proc; q != nil && q != p && q.seen.branch != nil {
				o.w.count("served beside one that is out of reach")
				if q.paused {
					o.w.count("served beside one that is paused")
				}
			}
		}
	}
	o.served = p.reign
}

// strikeWitness makes one fault at a node without data.
func (w *World) strikeWitness() {
	n := w.voters[w.n(len(w.voters))]
	switch k := w.n(10); {
	case k < 3:
		n.crash(false, w.back())
	case k < 5:
		n.crash(true, w.back())
	case k < 7 && n.proc != nil && !n.proc.paused:
		w.count("pause")
		n.pause(w.between(10*milli, 8*second))
	case k == 7:
		w.restart(n)
	case n.proc != nil && !n.proc.paused && !n.proc.stopping:
		p, q := n.proc, w.n(len(n.peers))
		p.enter(func() {
			p.operate("disconnect "+n.peers[q].name, func(done func(error)) { p.m.Disconnect(p.now(), replica.PeerID(q)); done(nil) }, nil)
		})
		w.at(w.between(0, 5*second), func() { w.connectBoth(n, n.peers[q]) })
	}
}

// mendWitnesses starts and connects those that are down or stand alone.
func (w *World) mendWitnesses() {
	for _, n := range w.voters {
		n.meta.failSync = false
		if n.proc == nil {
			if !n.busy {
				n.start()
			}
			continue
		}
		if n.resume(n.proc); n.proc == nil {
			continue
		}
		if n.proc.m.View().Disk == protocol.Failed && !n.busy { // its metadata could not be written
			n.kill(false)
			n.start()
			continue
		}
		for i, q := range n.peers {
			if q.proc != nil && n.proc.m.View().Peers[i].Conn == protocol.Standalone || q.proc != nil && q.view(n).Conn == protocol.Standalone {
				w.connectBoth(n, q)
			}
		}
	}
}

// voteless says what is missing for a quorum at last.
func (w *World) voteless() string {
	if !w.hasQuorum() {
		return ""
	}
	for _, n := range append(append([]*node(nil), w.nodes...), w.voters...) {
		p := n.proc
		switch {
		case p == nil || p.stopping:
			return n.name + " is down"
		case !p.look().Quorate:
			return n.name + " has no quorum, " + p.m.Missing()
		case p.view.Role == protocol.Primary && !p.view.Serving:
			return n.name + " is primary and answers nothing"
		}
	}
	return ""
}

// giveWay demotes a primary that has no quorum although everybody is there: the others
// cannot join it, since nobody has all of the data any more.
func (w *World) giveWay() bool {
	for _, n := range w.nodes {
		if p := n.proc; w.hasQuorum() && p.look().Role == protocol.Primary && !p.view.Quorate {
			w.o.outlived(n)
			p.enter(func() { p.operate("demote", func(done func(error)) { p.m.Demote(p.now(), done) }, nil) })
			return true
		}
	}
	return false
}

// supplant pauses the primary, or cuts it off, and has operators promote others until
// one is, or it is back.
func (w *World) supplant() bool {
	old := w.primary()
	if old == nil || old.proc.paused || old.proc.stopping || old.busy {
		return false
	}
	w.count("supplanted")
	long := w.between(2*w.sc.lease, 4*w.sc.lease+6*second)
	if w.p(0.5) {
		w.log("FAULT pause %s for %d ms, and promote others", old.name, long/milli)
		old.pause(long)
		for range 8 { // what its clients have sent when it wakes
			old.proc.enter(old.proc.client)
		}
	} else {
		w.log("FAULT cut %s off for %d ms, and promote others", old.name, long/milli)
		for _, net := range w.links {
			if net.a != old && net.b != old {
				continue
			}
			net.setCut(true, true)
			gen := net.gen
			w.at(long, func() {
				if net.gen == gen {
					net.setCut(false, false)
				}
			})
		}
	}
	const tries = 12
	for i := range int64(tries) {
		w.at(long*i/tries, func() {
			n := w.nodes[w.n(len(w.nodes))]
			if n != old && !w.calm && !n.busy {
				n.promote(replica.PromoteOptions{})
			}
		})
	}
	return true
}
