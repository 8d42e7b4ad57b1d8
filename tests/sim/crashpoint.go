package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/meta"
)

// A crash point lies before and after every write and sync, of metadata and of the
// store, that a short sequence of operations makes on either of two nodes. All of them
// are tried, each with every way to lose or keep what was not synced, followed by every
// way to go on; nothing in such a run is left to chance.

// step is an operation of a sequence.
type step uint8

// The steps, each at whichever nodes are primary.
const (
	stepWrite   step = iota // half of a block and half of the next one, always the same
	stepZero                // half of what stepWrite writes
	stepTrim                // the other half
	stepFlush               // of everything before
	stepFUA                 // a block of another extent
	stepCut                 // the link is lost, and nobody has noticed yet
	stepPromote             // of the secondary: by switchover, or because the peer is said to be dead
	stepDemote              // of a primary
	stepResync              // the link is back, or one side invalidated; until the resync has ended
	steps
)

var stepNames = [steps]string{"write", "write-zeroes", "trim", "flush", "FUA write", "disconnect", "promote", "demote", "resync"}

// String returns the step's name.
func (s step) String() string { return stepNames[s] }

// crashKind is what a crash does.
type crashKind struct {
	name      string
	both      bool // both nodes, at the same moment
	power     bool // what was not synced is gone, but for
	keepStore bool // what was in the cache of the store
	keepMeta  bool // what was written of the metadata
}

// crashKinds are all ways to crash. One that loses nothing that another one keeps is
// left out at points where that is so (crashKind.differs).
var crashKinds = []crashKind{
	{name: "killed"},
	{name: "power lost", power: true},
	{name: "power lost, the store's cache kept", power: true, keepStore: true},
	{name: "power lost, metadata kept", power: true, keepMeta: true},
	{name: "both killed", both: true},
	{name: "both lose power", both: true, power: true},
}

// sequel is how it goes on after a crash.
type sequel uint8

// The sequels.
const (
	comesBack sequel = iota // it starts, and they find each other
	failsOver               // the other one is promoted and written to before it starts
	sequels
)

var sequelNames = [sequels]string{"comes back", "fail over"}

// pointInfo is what is known of a point before a crash is tried there.
type pointInfo struct {
	what       string
	step       int // of the sequence
	node       int
	cached     bool // something is in the store's cache, or on its way there
	unsynced   bool // something of the metadata is
	anyCached  bool // the same of either node
	anyUnsaved bool
}

// crashPoints counts the points of a run, and has it crash at one.
type crashPoints struct {
	step int
	list []pointInfo
	at   int // index of the point to crash at, -1: none
	kind crashKind
	over bool // it has crashed, or there are to be no more points
	who  *node
}

// point passes a point, and reports whether the process crashed there.
func (p *process) point(what string) bool {
	c := p.w.points
	if c == nil || c.over {
		return false
	}
	info := pointInfo{what: what, step: c.step, node: p.n.index}
	for _, n := range p.w.nodes {
		cached, unsynced := len(n.disk.cache) > 0 || len(n.disk.order) > 0, len(n.meta.unsynced) > 0
		info.anyCached = info.anyCached || cached
		info.anyUnsaved = info.anyUnsaved || unsynced
		if n == p.n {
			info.cached, info.unsynced = cached, unsynced
		}
	}
	c.list = append(c.list, info)
	if len(c.list)-1 != c.at {
		return false
	}
	c.over, c.who = true, p.n
	for _, n := range p.w.nodes {
		if n == p.n || c.kind.both {
			p.w.log("CRASH of %s at %s: %s", n.name, what, c.kind.name)
			n.meta.log = nil
			n.kill(c.kind.power)
		}
	}
	return true
}

// playByPoint lets the staged steps of a commit happen, each of them a point.
func (p *process) playByPoint() bool {
	c, s := p.w.points, p.n.meta
	if c == nil || c.over {
		return false
	}
	for len(s.log) > 0 {
		what := "metadata sync"
		if s.log[0].write != nil {
			what = "metadata write"
		}
		if p.point(what) {
			return true
		}
		rest := s.log[1:]
		s.play(1)
		s.log = rest
	}
	return p.point("end of a commit")
}

// tries returns the kinds of crash that differ at a point.
func (i *pointInfo) tries() []crashKind {
	var out []crashKind
	for _, k := range crashKinds {
		cached, unsynced := i.cached, i.unsynced
		if k.both {
			cached, unsynced = i.anyCached, i.anyUnsaved
		}
		switch {
		case k.power && !cached && !unsynced: // killed is the same
		case k.keepStore && (!cached || !unsynced): // power lost, or killed, is
		case k.keepMeta && (!cached || !unsynced):
		default:
			out = append(out, k)
		}
	}
	return out
}

// volumeOf is a cluster in sync of which nothing was written yet.
func (w *World) volumeOf() {
	w.sc = scenario{size: bitmap.ExtentSize + 4*bitmap.BlockSize, count: 2, modes: [3]protocol.Mode{protocol.ModeC, protocol.ModeC, protocol.ModeC},
		honest: true, windows: [][2]int64{{0, 2}, {bitmap.BlocksPerExtent, bitmap.BlocksPerExtent + 1}},
		diskTime: 20 * micro, metaTime: 50 * micro, netMin: 100 * micro, netMax: 100 * micro, byteTime: 1, silence: 300 * milli, streamMax: 64,
		writeTimeout: 2 * second, flushInterval: 200 * milli, activityIdle: 100 * milli, flushBytes: 64 << 20, queueBytes: 32 << 20}
	for i := range 2 {
		w.nodes = append(w.nodes, w.newNode(i))
	}
	a, b := w.nodes[0], w.nodes[1]
	a.peers, b.peers = []*node{b}, []*node{a}
	w.nets = []*net{{w: w, a: a, b: b}}
	w.links = w.nets
	id, gen := protocol.VolumeID{1}, protocol.Generation(w.id())
	for _, n := range w.nodes {
		start, size, err := meta.Format(&meta.Super{Volume: id, Size: w.sc.size, Node: n.name, Name: "crm", Disk: protocol.UpToDate, Clean: true,
			Current: gen, Peers: []meta.PeerSlot{{Name: n.peers[0].name, Disk: protocol.UpToDate}}}, w.id())
		if err != nil {
			panic(err)
		}
		n.meta = newMetaStore(w, start, size)
	}
	w.o = newOracle(w)
}

// CrashRun is one run to a crash point and on.
type CrashRun struct {
	Steps  []step
	Point  int // index; -1: none, to learn which there are
	Kind   crashKind
	Sequel sequel
	Slow   bool // stores take longer than the network: what is said arrives before what it says is stable
}

// String describes the run.
func (r CrashRun) String() string {
	return fmt.Sprintf("%v, slow stores %v, point %d, %s, %s", r.Steps, r.Slow, r.Point, r.Kind.name, sequelNames[r.Sequel])
}

// Run makes the run. It returns the points that were passed, what a checker found,
// and, if asked to, the tail of its events.
func (r CrashRun) Run(trace bool) (points []pointInfo, failed, tail string) {
	c := &crashPoints{at: r.Point, kind: r.Kind, over: true}
	w := &World{rng: rand.New(rand.NewPCG(1, 2)), aside: rand.New(rand.NewPCG(3, 4)), aside2: rand.New(rand.NewPCG(5, 6)), looks: rand.New(rand.NewPCG(7, 8)), trace: trace, counts: map[string]int{}, replies: map[*reply]bool{}, points: c}
	defer func() {
		if x := recover(); x != nil {
			if f, ok := x.(failure); ok {
				failed = f.text
			} else {
				failed = fmt.Sprintf("panic: %v\n%s", x, debug.Stack())
			}
		}
		points, tail = c.list, w.Tail(tailMax)
	}()
	w.volumeOf()
	for _, n := range w.nodes {
		w.at(0, n.start)
	}
	w.at(0, w.nets[0].tick)
	w.until(10*second, "the cluster connects", func() bool { return w.nodes[0].proc != nil && w.nodes[0].view(w.nodes[1]).Repl == protocol.Established })
	w.nodes[0].promote(replica.PromoteOptions{})
	w.until(10*second, "a primary", func() bool { return w.nodes[0].proc.seen.branch != nil && len(w.replies) == 0 })
	w.runUntil(w.now + 10*milli)
	w.at(0, w.compare)
	if r.Slow {
		for _, n := range w.nodes {
			n.disk.slow = milli
		}
	}
	c.over = false
	for i, s := range r.Steps {
		c.step = i
		w.do(s)
		if c.over {
			break
		}
	}
	if !c.over { // what follows by itself: flushes, cold extents
		w.endAt(w.now + 1500*milli)
	}
	hit := c.over
	c.over = true
	if r.Point < 0 {
		return
	}
	if !hit {
		w.fail("the point was not reached: the run is not repeatable")
	}
	w.goOn(r.Sequel)
	return
}

// until runs until cond holds, or a crash.
func (w *World) until(limit int64, what string, cond func() bool) {
	end := w.now + limit
	stopped := w.points.over
	for !cond() {
		if !w.step(end) {
			w.fail("C5: waited for %s for %d ms\n%s", what, limit/milli, w.dump())
		}
		if w.points.over != stopped {
			return
		}
	}
}

// endAt runs until a time, or a crash.
func (w *World) endAt(t int64) {
	for !w.points.over && w.step(t) {
	}
}
