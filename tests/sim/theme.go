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
		sc.think, sc.clients = 10*milli, min(sc.clients, 3)
		sc.netMin, sc.diskTime = milli, min(sc.diskTime, 500*micro)
		sc.netMax = sc.netMin
		sc.sync.RateBytes = 1 << 20
		sc.badDisks, sc.diskFail = 0, 0
	case noTheme:
	}
}

// unsealed: an archive could not be ended.
func (n *node) unsealed() {
	if w := n.w; w.sc.theme == shelves && !w.calm {
		w.at(w.between(100*milli, 2*second), func() {
			if !w.calm {
				n.crash(w.p(0.3), w.between(milli, 100*milli))
			}
		})
	}
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
	case splits, shelves:
		if w.p(0.5) {
			return false
		}
		w.divide()
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
