package sim

import (
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// Some faults need three rare things at once. A theme is a range of seeds in which
// they are common. Seeds of the other ranges know nothing of it.

// themesFrom is the first of the seeds that have a theme; each has themeSeeds.
const (
	themesFrom = 7_000_000
	themeSeeds = 100_000
)

type theme uint8

const (
	noTheme theme = iota
	// fullStores: stores find no space in the middle of a slow sync.
	fullStores
	// refills: the disks of primaries fail and are replaced under clients.
	refills
	// carriers: primaries without a disk have peers that restart and are lost.
	carriers
	// splits: splits of brains, with policies that differ.
	splits
	// quickCuts: a killed process comes back, catches the others up, and loses power
	// while clients rest.
	quickCuts
	// shelves: archives cannot be written in the middle of a sync, nor ended, and the node
	// restarts before another begins.
	shelves
	// laggards: of three nodes one secondary gets nothing for a while, which the primary does
	// not notice, and then the primary is lost.
	laggards
	// blind: primaries whose metadata cannot be written go on through peers, and are killed.
	blind

	themes = iota - 1
)

func (w *World) chooseTheme() {
	if w.seed < themesFrom || w.seed >= themesFrom+themes*themeSeeds {
		return
	}
	sc := &w.sc
	sc.theme = theme(1 + (w.seed-themesFrom)/themeSeeds)
	sc.pace = 300 * milli
	sc.length = max(sc.length, 20*second)
	sc.metaFail = 0
	switch sc.theme {
	case fullStores:
		sc.sync.RateBytes = []int64{1 << 20, 4 << 20}[w.n(2)]
		sc.sync.FlushBytes = 64 << 20
		sc.think = milli
		sc.badDisks, sc.diskFail = 0, 0
	case refills, carriers:
		if sc.theme == carriers && w.p(0.5) {
			sc.count = 3
		}
		sc.think, sc.clients = milli, 4+w.n(4)
		sc.badDisks, sc.diskFail = 0.1, 1
		sc.metaTime = 20 * milli
		sc.modes = [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC}
	case splits:
		sc.honest = false
		for i := range sc.policies {
			sc.policies[i].Pri0 = protocol.AfterSB(w.n(6))
			sc.policies[i].Pri1 = []protocol.AfterSB{protocol.AfterSBDisconnect, protocol.Consensus, protocol.DiscardSecondary, protocol.CallPriLost}[w.n(4)]
			if sc.policies[i].Pri0 == protocol.DiscardNode {
				sc.policies[i].Node = names[w.n(sc.count)]
			}
		}
		if w.p(0.5) {
			sc.policies[1], sc.policies[2] = sc.policies[0], sc.policies[0]
		}
	case quickCuts:
		sc.activityIdle, sc.flushInterval = 100*milli, second
		if w.p(0.5) {
			m := protocol.Mode(1 + w.n(2)) // A or B: who was killed has more than the others
			sc.modes = [3]protocol.Mode{m, m, m}
		}
		sc.badDisks, sc.diskFail = 0, 0
	case shelves:
		sc.honest = false
		p := protocol.SplitPolicy{Pri0: []protocol.AfterSB{protocol.DiscardYoungerPrimary, protocol.DiscardOlderPrimary, protocol.DiscardLeastChanges}[w.n(3)],
			Pri1: protocol.DiscardSecondary}
		sc.policies = [3]protocol.SplitPolicy{p, p, p}
		sc.archiveLimit, sc.archiveAlways = 1<<40, true
		sc.silence, sc.length = 500*milli, max(sc.length, 30*second)
		// What was not written while the two were apart is what an archive takes in later.
		sc.think, sc.clients = []int64{100 * milli, 300 * milli}[w.n(2)], min(sc.clients, 2)
		sc.netMin, sc.diskTime = milli, min(sc.diskTime, 500*micro)
		sc.netMax = sc.netMin
		sc.sync.RateBytes = 1 << 20
		sc.badDisks, sc.diskFail = 0, 0
	case laggards:
		sc.count, sc.pace = 3, second
		if w.p(0.7) {
			sc.modes = [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC}
		}
		sc.silence, sc.writeTimeout = 6*second, 10*second
		sc.activityIdle, sc.flushInterval = 100*milli, 50*milli
		sc.think = []int64{milli, 30 * milli}[w.n(2)]
		sc.badDisks, sc.diskFail = 0, 0
	case blind:
		sc.think, sc.clients = []int64{milli, 30 * milli}[w.n(2)], 2+w.n(4)
		sc.activityIdle = 100 * milli
		sc.badDisks, sc.diskFail = 0, 0
		sc.noData = replica.NoDataSuspend
	case noTheme:
	}
}

// unsealed: an archive could not be ended.
func (n *node) unsealed() {
	n.shaky = true
	if w := n.w; w.sc.theme == shelves && !w.calm {
		w.at(w.between(100*milli, 2*second), func() {
			if !w.calm {
				n.crash(w.p(0.3), w.between(milli, 100*milli))
			}
		})
	}
}

// follower returns a node whose archive follows what is written there after its sync.
func (w *World) follower() *node {
	for _, n := range w.nodes {
		if p := n.proc; p != nil && p.archives.Live() && p.archives.Lost() == 0 {
			return n
		}
	}
	return nil
}

// flicker has a node lose one of its peers for a moment while the other is slow to answer.
func (w *World) flicker(n *node) {
	k := w.n(2)
	q, other := n.peers[k], n.peers[1-k]
	w.count("flicker")
	other.disk.slow = w.between(600*milli, 2*second)
	w.at(w.between(500*milli, 2*second), func() { other.disk.slow = 0 })
	w.log("FAULT the disk of %s is slow, and %s gets nothing of %s", other.name, q.name, n.name)
	net := w.net(n, q)
	net.setCut(net.a == n, net.b == n)
	gen := net.gen
	w.at(w.between(10*milli, 200*milli), func() {
		if net.gen != gen {
			return
		}
		if s := net.sess; s != nil {
			w.log("FAULT session %s-%s reset", n.name, q.name)
			s.drop(w.n(2), errReset)
		}
		net.setCut(false, false)
	})
}

// lag keeps what a primary sends from one of the others, and most often loses the primary
// before it has noticed.
func (w *World) lag(n *node) bool {
	q := n.peers[w.n(len(n.peers))]
	net := w.net(n, q)
	long := w.between(second, 4*second)
	w.log("FAULT %s gets nothing of %s for %d ms", q.name, n.name, long/milli)
	w.count("laggard")
	net.setCut(net.a == n, net.b == n)
	gen := net.gen
	w.at(long, func() {
		if net.gen == gen {
			net.setCut(false, false)
		}
	})
	if w.p(0.6) {
		w.at(long*9/10, func() {
			if w.calm {
				return
			}
			n.crash(w.p(0.5), w.between(second, 10*second))
			for _, x := range n.peers {
				if w.p(0.4) {
					x.crash(w.p(0.5), w.between(milli, 100*milli))
				}
			}
		})
	}
	return true
}

// themed strikes as the theme says; false: as in any other run.
func (w *World) themed() bool {
	n := w.any()
	if x := w.primary(); x != nil && w.p(0.7) {
		n = x
	}
	switch w.sc.theme {
	case noTheme:
		return false
	case fullStores:
		switch w.n(3) {
		case 0:
			n.disk.space = 1 + w.n(6)
		case 1:
			n.peers[w.n(len(n.peers))].crash(true, w.between(100*milli, second))
		default:
			return false
		}
	case refills:
		switch {
		case n.needsDisk():
			w.replace(n)
		case w.p(0.5):
			n.disk.failOp = 1 + w.n(20)
		default:
			return false
		}
	case carriers:
		if w.sc.count == 3 && w.p(0.5) && n.proc != nil && n.proc.look().Bare {
			w.flicker(n)
			return true
		}
		switch k := w.n(4); {
		case k == 0:
			n.disk.failOp = 1 + w.n(20)
		case k < 3:
			q, back := n.peers[w.n(len(n.peers))], w.between(10*milli, 300*milli)
			q.crash(w.p(0.7), back)
			if w.p(0.6) { // and is lost again soon after it is back
				w.at(back+w.between(50*milli, 400*milli), func() {
					if s := w.net(n, q).sess; s != nil && !w.calm && w.p(0.6) {
						s.drop(w.n(2), errReset)
					} else if !w.calm {
						q.crash(false, w.between(milli, 100*milli))
					}
				})
			}
		default:
			return false
		}
	case splits:
		if w.p(0.5) {
			return false
		}
		w.divide()
	case shelves:
		x := w.follower()
		switch {
		case w.p(0.3):
			return false
		case x != nil:
			w.count("archives not writable for long")
			x.shelf.bad = w.now + w.between(100*milli, 5*second)
		case w.nets[0].whole() && w.nets[len(w.nets)-1].whole():
			w.divide()
		}
	case blind:
		if n.proc == nil || w.p(0.5) {
			return false
		}
		n.proc.failCommit = true
		w.at(w.between(200*milli, 3*second), func() {
			if !w.calm {
				n.crash(w.p(0.3), w.between(10*milli, second))
			}
		})
	case laggards:
		if x := w.primary(); x == nil || w.p(0.5) || !w.lag(x) {
			return false
		}
	case quickCuts:
		switch w.n(3) {
		case 0:
			w.sc.rest = true
			w.at(w.between(500*milli, 4*second), func() { w.sc.rest = w.calm && w.sc.rest })
			n.crash(false, w.between(milli, 100*milli))
			if w.p(0.5) {
				for _, q := range n.peers {
					q.crash(false, w.between(milli, 100*milli))
				}
			}
			w.at(w.between(100*milli, 300*milli), func() { n.promote(replica.PromoteOptions{PeerFenced: !w.sc.honest}) })
			w.at(w.between(500*milli, 4*second), func() {
				if !w.calm {
					n.crash(true, w.back())
				}
			})
		default:
			return false
		}
	}
	return true
}
