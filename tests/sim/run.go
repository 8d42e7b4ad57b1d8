package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/qrbd/qrbd/replica"
)

// Result is what a run has to say.
type Result struct {
	Seed   uint64
	Failed string // "": nothing was found
	Tail   string // of a traced run
	Time   int64  // simulated
	Events int
	Counts map[string]int
}

// Run makes the run of a seed. trace keeps the tail of its events.
func Run(seed uint64, trace bool) (res Result) {
	w := &World{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), aside: rand.New(rand.NewPCG(seed, 0xd1b54a32d192ed03)), aside2: rand.New(rand.NewPCG(seed, 0x8cb92ba72f3d8dd7)), looks: rand.New(rand.NewPCG(seed, 0x100c5)), trace: trace, counts: map[string]int{}, replies: map[*reply]bool{}}
	defer func() {
		if r := recover(); r != nil {
			if f, ok := r.(failure); ok {
				res.Failed = f.text
			} else {
				res.Failed = fmt.Sprintf("panic: %v\n%s", r, debug.Stack())
			}
		}
		res.Seed, res.Time, res.Events, res.Counts = seed, w.now, w.done, w.counts
		res.Tail = w.Tail(tailMax)
	}()
	w.play()
	return res
}

// play is the whole story: create, start, trouble, settle.
func (w *World) play() {
	w.choose()
	for i := range w.sc.count {
		w.nodes = append(w.nodes, w.newNode(i))
	}
	for i, a := range w.nodes {
		for j, b := range w.nodes {
			if i != j {
				a.peers = append(a.peers, b)
			}
			if i < j {
				w.nets = append(w.nets, &net{w: w, a: a, b: b})
			}
		}
	}
	w.links = w.nets
	w.addWitness()
	w.o = newOracle(w)
	w.log("seed %d: %+v", w.seed, w.sc)
	for _, n := range w.nodes {
		w.at(w.between(0, 200*milli), n.start)
	}
	for _, n := range w.voters {
		w.at(w.between(0, 200*milli), n.start)
	}
	for _, n := range w.links {
		w.at(w.between(0, 200*milli), n.tick)
	}
	w.at(w.between(0, second), w.first)
	w.at(0, w.compare)
	start := int64(0)
	if w.p(0.8) {
		start = 3 * second
	}
	w.at(start, w.trouble)
	w.runUntil(start + w.sc.length)
	w.settle()
	if w.p(0.3) {
		w.rot()
	}
}

// first starts the volume.
func (w *World) first() {
	n := w.any()
	if n.proc == nil || n.proc.m.View().Current != 0 {
		if w.primary() == nil {
			w.at(100*milli, w.first)
		}
		return
	}
	n.promote(replica.PromoteOptions{Force: true})
}
