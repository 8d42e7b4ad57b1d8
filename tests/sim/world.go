package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/qrbd/qrbd/replica"
)

// Simulated time is in nanoseconds.
const (
	micro  = int64(1e3)
	milli  = int64(1e6)
	second = int64(1e9)
)

// What goes on without end has no time between its events, or no end in time. How many
// events a run has altogether says nothing: a load that goes on through one that lasts
// minutes makes millions. A busy minute has a fifth of what is bounded here, the longest
// runs last twenty minutes.
const (
	eventsMax = 5_000_000 // within eventsIn
	eventsIn  = 60 * second
	timeMax   = 3600 * second
)

// event is a function at a time; seq keeps events of one time in the order in
// which they were made. With a process it happens there, or never (enter).
type event struct {
	at  int64
	seq uint64
	p   *process
	fn  func()
}

// World is one run. It belongs to one goroutine.
type World struct {
	seed   uint64
	rng    *rand.Rand
	aside  *rand.Rand // what is drawn from it changes nothing that the others decide
	aside2 *rand.Rand // of archives, likewise
	looks  *rand.Rand // of the checks that look at some moments only (early.go)
	now    int64
	seq    uint64
	heap   []event
	done   int   // events executed
	before int   // up to since
	since  int64 // when the events began that eventsMax bounds

	sc     scenario
	nodes  []*node
	nets   []*net  // one per pair of replicas
	voters []*node // hold no data
	links  []*net  // nets, and those of voters
	o      *oracle
	calm   bool           // no more faults
	rotten map[int64]bool // sectors of blocks that went bad by themselves

	lied     bool // a hook has called a live node dead
	ambushes []ambush
	drilling bool                           // a drill of votes.go is under way
	minted   func(n *node)                  // a primary has begun a generation; nil: nobody waits for it
	said     func(m moment, from, to *node) // a message is sent; nil: nobody waits for it
	points   *crashPoints                   // nil: a run with faults by chance

	trace   bool
	lines   []string
	counts  map[string]int // faults, operations and outcomes by kind
	depth   int            // of calls of process.run
	effects [][]replica.Effect
	bytes   []byte          // scratch for payloads: zero but for the first 8 bytes of each sector
	replies map[*reply]bool // that have no answer yet
}

// failure is the panic of fail.
type failure struct{ text string }

// fail ends the run.
func (w *World) fail(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

// at calls fn d nanoseconds from now.
func (w *World) at(d int64, fn func()) { w.push(d, nil, fn) }

func (w *World) push(d int64, p *process, fn func()) {
	w.seq++
	e := event{w.now + max(d, 0), w.seq, p, fn}
	h := append(w.heap, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !less(&h[i], &h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	w.heap = h
}

func less(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// step executes the next event; false: there is none before the limit.
func (w *World) step(limit int64) bool {
	if len(w.heap) == 0 || w.heap[0].at > limit {
		return false
	}
	h := w.heap
	e := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && less(&h[c+1], &h[c]) {
			c++
		}
		if !less(&h[c], &h[i]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	w.heap = h
	w.now = e.at
	w.bound()
	if e.p != nil {
		e.p.enter(e.fn)
	} else {
		e.fn()
	}
	return true
}

// bound counts an event. C5: there is an end.
func (w *World) bound() {
	w.done++
	switch {
	case w.done-w.before > eventsMax:
		w.fail("C5: %d events in %d ms: something goes on without end", w.done-w.before, (w.now-w.since)/milli)
	case w.now > timeMax:
		w.fail("C5: %d s, and the run has not ended", w.now/second)
	case w.now-w.since > eventsIn:
		w.before, w.since = w.done, w.now
	}
}

// runUntil executes everything up to a time.
func (w *World) runUntil(t int64) {
	for w.step(t) {
	}
	w.now = t
}

// n returns a number in [0, k).
func (w *World) n(k int) int {
	if w.points != nil {
		return 0
	}
	return w.rng.IntN(k)
}

// p is true with the given probability.
func (w *World) p(chance float64) bool { return w.points == nil && w.rng.Float64() < chance }

// between returns a time in [a, b).
func (w *World) between(a, b int64) int64 {
	if b <= a || w.points != nil {
		return a
	}
	return a + w.rng.Int64N(b-a)
}

// id returns a random number other than zero.
func (w *World) id() uint64 {
	for {
		if v := w.rng.Uint64(); v != 0 {
			return v
		}
	}
}

func (w *World) count(what string) { w.counts[what]++ }

// tailMax is how many lines of a traced run are kept.
const tailMax = 1 << 17

// log adds a line to the tail of events. Untraced runs pay a branch.
func (w *World) log(format string, args ...any) {
	if !w.trace {
		return
	}
	if len(w.lines) >= 2*tailMax {
		w.lines = append(w.lines[:0], w.lines[len(w.lines)-tailMax:]...)
	}
	w.lines = append(w.lines, fmt.Sprintf("%10.4f ", float64(w.now)/1e9)+fmt.Sprintf(format, args...))
}

// Tail returns the last lines of a traced run.
func (w *World) Tail(n int) string {
	l := w.lines
	if len(l) > n {
		l = l[len(l)-n:]
	}
	return strings.Join(l, "\n")
}
