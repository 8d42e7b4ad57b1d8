package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// sizeMin is the smallest volume, in sectors.
const sizeMin = 64

// chooseGrowth draws from a source of its own, so that what else a seed does stays.
func (w *World) chooseGrowth() {
	if w.seed < growsFrom || w.seed >= aheadFrom {
		return
	}
	sc, rng := &w.sc, rand.New(rand.NewPCG(w.seed, 0x6709))
	sc.count = 2 + rng.IntN(2)
	for range 1 + rng.IntN(3) {
		from := sectorSize * (sizeMin + rng.Int64N(sc.size/sectorSize-sizeMin))
		if l := len(sc.sizes); l > 0 && from < sc.sizes[l-1] {
			from = sc.sizes[l-1]
		}
		sc.sizes = append(sc.sizes, from)
	}
	sc.sizes = append(sc.sizes, sc.size)
	for _, s := range sc.sizes { // clients write where it ends, and grows
		sc.windows = append(sc.windows, [2]int64{bitmap.Blocks(s) - 3, min(bitmap.Blocks(s)+3, bitmap.Blocks(sc.size))})
	}
}

// windowsOf returns where clients of a volume of that size write.
func (w *World) windowsOf(size int64) [][2]int64 {
	if size == w.sc.size {
		return w.sc.windows
	}
	var list [][2]int64
	for _, win := range w.sc.windows {
		if win[0]*bitmap.BlockSize < size {
			list = append(list, win)
		}
	}
	return list
}

// firstSize is that of new replicas.
func (w *World) firstSize() int64 {
	if len(w.sc.sizes) > 0 {
		return w.sc.sizes[0]
	}
	return w.sc.size
}

// nextSize returns what a replica grows to, 0: it is as large as it gets.
func (n *node) nextSize() int64 {
	for _, s := range n.w.sc.sizes {
		if s > n.size {
			return s
		}
	}
	return 0
}

// grow makes a node's replica larger, if its agent lets the operator; true: it has begun.
func (w *World) grow(n *node) bool {
	size := n.nextSize()
	for _, x := range w.nodes {
		if x.size > n.size { // they are to be of one size again
			size = min(size, x.size)
		}
	}
	return w.growTo(n, size)
}

// growTo is agent.Resize: the volume is closed, its metadata are made larger, and it is opened
// again; a primary takes its role back. true: it has begun.
func (w *World) growTo(n *node, size int64) bool {
	p := n.proc
	switch {
	case n.busy || size <= n.size || n.disk.failed:
		return false
	case p == nil: // it died, and is not open yet
		w.log("operator: %s, which is down, grows from %d to %d bytes", n.name, n.size, size)
		n.growClosed(size)
		return true
	case p.paused || p.stopping || n.needsDisk() || p.look().LacksBytes > 0 && p.look().Disk != protocol.UpToDate:
		return false
	}
	primary := p.look().Role == protocol.Primary
	for _, x := range n.peers {
		if primary && x.size != size {
			w.count("growth refused: the primary is the last")
			return false
		}
	}
	w.log("operator: %s grows from %d to %d bytes", n.name, n.size, size)
	n.busy = true
	p.enter(func() {
		p.shutdown(func() {
			n.growClosed(size)
			w.at(w.between(milli, 100*milli), func() {
				n.busy = false
				n.start()
				if primary {
					w.at(w.between(0, second), func() { w.takeBack(n, 40) })
				}
			})
		})
	})
	return true
}

// growClosed makes the metadata of a volume that is not open larger.
func (n *node) growClosed(size int64) {
	w := n.w
	if n.disk.failed || n.archives() {
		w.count("growth refused when closed")
		return
	}
	w.count("growth")
	if err := archive.SealAll(n.shelf, time.Unix(0, w.now), "the volume was resized"); err != nil {
		w.fail("%s: sealing the archive of a volume that grows: %v", n.name, err)
	}
	n.lost = nil
	n.growMeta(size)
}

// archives is agent.keepsArchive: a sync that has not ended has what it overwrites archived.
func (n *node) archives() bool {
	st, err := meta.Recover(image{n.meta.visible, n.meta.size}, n.meta.size)
	if err != nil {
		n.w.fail("P7: %s: %v", n.name, err)
	}
	return st.Super.Lost != 0 && st.Super.Archive != 0
}

// growMeta is meta.Grow, which may be cut off anywhere.
func (n *node) growMeta(size int64) {
	w := n.w
	if !w.calm && w.p(0.4) {
		n.meta.budget = 1 + w.n(8)
	}
	err := meta.GrowStorage(n.meta, size)
	n.meta.budget = 0
	switch {
	case errors.Is(err, errCrash):
		w.count("crash in growth")
		n.fell(w.p(0.6))
		w.log("%s dies while it grows", n.name)
	case err != nil:
		w.fail("P7: %s: growing: %v", n.name, err)
	}
}

// takeBack is the agent, which makes what was the primary one again when its peers are there.
func (w *World) takeBack(n *node, tries int) {
	p := n.proc
	if p == nil || p.paused || p.stopping || n.busy || tries == 0 || w.primary() != nil {
		return
	}
	p.enter(func() {
		p.operate("promote", func(done func(error)) { p.m.Promote(p.now(), replica.PromoteOptions{}, done) }, func(err error) {
			if err != nil {
				w.at(500*milli, func() { w.takeBack(n, tries-1) })
			}
		})
	})
}

// mendSizes has all replicas grow to the size of the largest, the primary last. One that was
// being overwritten by a replica which has grown since cannot go on: it is made anew.
func (w *World) mendSizes(tries int) bool {
	size := int64(0)
	for _, n := range w.nodes {
		size = max(size, n.size)
	}
	for _, n := range w.nodes {
		switch {
		case n.size == size || !n.archives():
		case tries > 20:
			n.size = size
			w.recreate(n)
			return true
		default:
			return false // it may end yet
		}
	}
	for _, pass := range []bool{false, true} {
		for _, n := range w.nodes {
			if n.size < size && (n.proc.seen.branch != nil) == pass && w.growTo(n, size) {
				return true
			}
		}
	}
	return false
}
