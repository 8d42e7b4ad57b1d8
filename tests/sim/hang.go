package sim

import (
	"math/rand/v2"

	"github.com/qrbd/qrbd/replica"
)

// chooseHangs has clusters give a disk up on which nothing ends. It draws from a
// source of its own, so that what else a seed does stays as it was.
func (w *World) chooseHangs() {
	rng := rand.New(rand.NewPCG(w.seed, 0x4a))
	if w.seed >= hangsFrom && w.seed < restoresFrom {
		w.sc.diskTimeout = 2*second + rng.Int64N(8*second)
	}
}

// hang has the disk take, now and then, longer over r than the disk timeout. What it
// was given up with may land then, while clients have long gone on through a peer. The
// function that it returns ends it for what comes after r.
func (p *process) hang(d *disk, r *replica.Request) func() {
	w := p.w
	if w.sc.diskTimeout == 0 || w.calm || w.aside.Float64() >= 0.003 {
		return func() {}
	}
	w.count("hung in the disk")
	w.log("FAULT the disk of %s hangs over %s %d+%d", p.n.name, r.Op, r.Off, r.Len)
	long := w.aside.Int64N(6 * w.sc.diskTimeout)
	d.hangs = max(d.hangs, w.now+long+second)
	d.slow += long
	return func() { d.slow -= long }
}
