package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/protocol"
)

// aheadFrom is the first of the seeds whose primaries go ahead of peers under protocol A
// that take less than clients write.
const aheadFrom = 11_000_000

// restsFrom is the first of those of them whose clients often rest while a peer that was
// gone ahead of has not confirmed what it was sent.
const restsFrom = 11_500_000

// chooseAhead makes links slow and buffers small. It draws from a source of its own, so
// that what else a seed does stays.
func (w *World) chooseAhead() {
	if w.seed < aheadFrom || w.seed >= switchoversFrom {
		return
	}
	sc, rng := &w.sc, rand.New(rand.NewPCG(w.seed, 0xa4ead))
	pick := func(v ...int64) int64 { return v[rng.IntN(len(v))] }
	sc.pullAhead = true
	sc.modes = [3]protocol.Mode{protocol.ModeA, protocol.ModeA, protocol.ModeA}
	if sc.count = 2 + rng.IntN(2); sc.count == 3 && rng.IntN(3) > 0 {
		// One link is another; modes are of alpha-beta, alpha-gamma, beta-gamma.
		sc.modes[rng.IntN(3)] = protocol.Mode(2 + rng.IntN(2))
	}
	sc.buffer = pick(16<<10, 64<<10, 1<<20)
	if rng.IntN(2) == 0 {
		sc.fill = sc.buffer / 2
	}
	sc.byteTime = pick(10, 100, 1000) // ns a byte: 100, 10, 1 MB/s
	sc.streamMax = int(pick(4, 16, 64))
	sc.think = pick(milli, milli, 5*milli)
	sc.clients = 2 + rng.IntN(4)
	sc.writeTimeout = pick(3*second, 10*second)
	sc.length = max(sc.length, 15*second)
	if w.seed >= restsFrom {
		sc.activityIdle, sc.pace, sc.length = 100*milli, 2*second, max(sc.length, 30*second)
		sc.writeTimeout = 10 * second
	}
	sc.badDisks = 0 // what becomes of those who lose every good copy is in other seeds
}

// restAhead has a peer of the primary be so slow that this goes ahead, and clients rest then.
func (w *World) restAhead() bool {
	n := w.primary()
	if w.seed < restsFrom || n == nil || w.p(0.5) {
		return false
	}
	q, long := n.peers[w.n(len(n.peers))], w.between(7*second, 9*second) // bits become durable within 5 s
	w.count("rest while ahead")
	w.log("FAULT the disk of %s is slow for %d ms, and clients rest", q.name, long/milli)
	q.disk.slow = long
	w.at(w.between(100*milli, 500*milli), func() { w.sc.rest = true })
	w.at(long, func() {
		q.disk.slow = 0
		w.sc.rest = w.calm && w.sc.rest
	})
	return true
}
