package linear

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// run is a cluster under load to which one thing after the other happens; each is
// mended before the next, so that no promise is void.
type run struct {
	t        *testing.T
	rnd      *rand.Rand
	c        *cluster.Cluster
	primary  *cluster.Node
	h        *History
	volatile bool
	base     int64
	terms    map[*cluster.Node]*atomic.Int64 // of its process, or since it was demoted
	stop     func()                          // ends the load
	total    Counts
}

const (
	lostWithin = 12 * time.Second
	syncWithin = 40 * time.Second
	// deadAfter is the peer_timeout of these clusters.
	deadAfter = time.Second
)

func configure(c *cluster.Config) {
	c.Extra = "heartbeat = \"200ms\"\npeer_timeout = \"1s\"\n"
	c.Volume("crm").Extra += "activity_idle = \"1s\"\n"
}

func newRun(t *testing.T, seed uint64, o cluster.Options) *run {
	t.Helper()
	o.Configure, o.Size = configure, "4GiB"
	x := &run{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), volatile: o.Program == cluster.CrashAgent,
		terms: map[*cluster.Node]*atomic.Int64{}, stop: func() {}}
	t.Cleanup(func() { x.stop() }) // after the cluster is gone: a client of a stopped node waits for it
	x.c = cluster.New(t, o)
	for _, n := range x.c.Nodes {
		x.terms[n] = new(atomic.Int64)
	}
	x.primary = x.c.Up()
	return x
}

// begin begins a history on blocks that were never written.
func (x *run) begin() {
	x.h = &History{Volatile: x.volatile}
	for _, n := range x.c.Nodes {
		x.newTerm(n)
	}
	x.start()
}

func (x *run) newTerm(n *cluster.Node) { x.terms[n].Store(int64(x.h.NewTerm())) }

func (x *run) endpoint(n *cluster.Node) Endpoint {
	term := x.terms[n]
	return Endpoint{Addr: n.Config.Volume("crm").Export, Term: func() Term { return Term(term.Load()) }}
}

func (x *run) load() *Load {
	l := &Load{History: x.h, Export: "crm", Base: x.base, Clients: 12, Readers: 4, Pause: 2 * time.Millisecond, Seed: x.rnd.Uint64()}
	for _, n := range x.c.Nodes {
		l.Endpoints = append(l.Endpoints, x.endpoint(n))
	}
	return l
}

func (x *run) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	l := x.load()
	go func() {
		defer close(ended)
		l.Run(ctx)
	}()
	x.stop = func() { cancel(); <-ended }
}

// judge ends the history, looks at every block and has it checked.
func (x *run) judge() {
	x.t.Helper()
	x.stop()
	x.c.WaitInSync("crm", syncWithin)
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Timeout)
	defer cancel()
	if err := x.load().Look(ctx, x.endpoint(x.primary)); err != nil {
		x.t.Fatal("last look:", err)
	}
	x.c.Equal("crm")
	n, began := x.h.Counts(), time.Now()
	if err := x.h.Check(os.TempDir()); err != nil {
		x.t.Fatalf("%+v: %v", n, err)
	}
	x.t.Logf("linear: %+v, checked in %v", n, time.Since(began).Round(time.Millisecond))
	x.total.Reads += n.Reads
	x.total.Writes += n.Writes
	x.total.Flushes += n.Flushes
	x.total.Unanswered += n.Unanswered
	x.total.Losses += n.Losses
	x.base += groupBlocks * blockSize
}

func (x *run) within(least, most time.Duration) {
	time.Sleep(least + time.Duration(x.rnd.Int64N(int64(most-least))))
}

// secondaries returns the nodes that are not primary, in random order.
func (x *run) secondaries() []*cluster.Node {
	var s []*cluster.Node
	for _, i := range x.rnd.Perm(len(x.c.Nodes)) {
		if n := x.c.Nodes[i]; n != x.primary {
			s = append(s, n)
		}
	}
	return s
}

// kill ends a node's process; what was sent to it and not answered cannot happen any
// more.
func (x *run) kill(n *cluster.Node) {
	n.Kill()
	x.h.End(Term(x.terms[n].Load()))
	x.newTerm(n)
}

// promote makes n primary; while others settle something it may have to be asked
// again.
func (x *run) promote(n *cluster.Node, args ...string) {
	x.t.Helper()
	var text string
	for end := time.Now().Add(lostWithin); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var code int
		if _, text, code = n.Run(append([]string{"promote", "crm"}, args...)...); code == 0 {
			x.primary = n
			return
		}
	}
	x.t.Fatalf("promote on %s: %s", n.Name, text)
}

// mended waits until everything is as it was, under load.
func (x *run) mended() {
	x.t.Helper()
	x.c.WaitInSync("crm", syncWithin)
	x.within(100*time.Millisecond, 400*time.Millisecond)
}

// losePrimary kills the primary, which may have done anything since mark, a length
// of its log. Its successor is the next node; or itself, if it had gone on alone: a
// slow machine makes peers look lost, and what it then acknowledged only it has.
func (x *run) losePrimary(next *cluster.Node, mark int) {
	x.t.Helper()
	old := x.primary
	x.kill(old)
	back := x.h.Lost(false)
	if next != old && strings.Contains(old.Log()[mark:], "field=generation") {
		x.t.Logf("%s had gone on alone", old.Name)
		next = old
	}
	if next == old {
		old.Start()
		x.c.WaitInSync("crm", syncWithin)
		x.promote(old)
		back()
		return
	}
	next.WaitLost("crm", old.Name, lostWithin)
	x.promote(next, "--peer-fenced")
	back()
	x.within(100*time.Millisecond, 700*time.Millisecond)
	old.Start()
}

func (x *run) failOver() {
	x.losePrimary(x.secondaries()[0], len(x.primary.Log()))
}

func (x *run) restartPrimary() {
	x.losePrimary(x.primary, 0)
}

// failOverFromPaused: the primary is stopped, and killed before anybody vouches for
// its death.
func (x *run) failOverFromPaused() {
	mark, next := len(x.primary.Log()), x.secondaries()[0]
	x.primary.Pause()
	x.within(0, 2*deadAfter)
	x.losePrimary(next, mark)
}

// failOverAcrossACut: the primary dies while nobody hears it, before it goes on
// alone.
func (x *run) failOverAcrossACut() {
	mark, old := len(x.primary.Log()), x.primary
	for _, n := range x.secondaries() {
		x.c.CutBoth(old.Name, n.Name)
	}
	x.within(0, deadAfter/2)
	x.losePrimary(x.secondaries()[0], mark)
	for _, n := range x.c.Nodes {
		if n != old {
			x.c.Heal(old.Name, n.Name)
		}
	}
}

func (x *run) killSecondary() {
	n := x.secondaries()[0]
	x.kill(n)
	x.within(0, 2*deadAfter)
	n.Start()
}

func (x *run) pausePrimary() {
	x.primary.Pause()
	x.within(50*time.Millisecond, 2*deadAfter)
	x.primary.Resume()
}

func (x *run) pauseSecondary() {
	n := x.secondaries()[0]
	n.Pause()
	x.within(50*time.Millisecond, 3*deadAfter)
	n.Resume()
}

// cut breaks a link one way or both, shorter or longer than is borne.
func (x *run) cut() {
	order := x.rnd.Perm(len(x.c.Nodes))
	a, b := x.c.Nodes[order[0]].Name, x.c.Nodes[order[1]].Name
	x.c.Cut(a, b)
	if x.rnd.IntN(2) == 0 {
		x.c.Cut(b, a)
	}
	x.within(50*time.Millisecond, 3*deadAfter)
	x.c.Heal(a, b)
}

// switchOver hands the role over; clients have to leave for it.
func (x *run) switchOver() {
	x.stop()
	x.c.WaitInSync("crm", syncWithin)
	old, next := x.primary, x.secondaries()[0]
	old.Must("switchover", "crm", "--to", next.Name)
	x.h.End(Term(x.terms[old].Load()))
	x.newTerm(old)
	x.primary = next
	x.start()
}

// demoteByForce cuts the clients off and promotes another.
func (x *run) demoteByForce() {
	old, next := x.primary, x.secondaries()[0]
	old.Must("demote", "crm", "--force")
	x.h.End(Term(x.terms[old].Load()))
	x.newTerm(old)
	x.promote(next)
}

// loseTwo: a secondary is stopped until the primary has gone on without it, then the
// primary dies. Only the third has everything.
func (x *run) loseTwo() {
	s, old := x.secondaries(), x.primary
	away, next := s[0], s[1]
	away.Pause()
	old.WaitLost("crm", away.Name, lostWithin)
	x.within(0, deadAfter)
	x.kill(old)
	back := x.h.Lost(false)
	away.Resume()
	next.WaitLost("crm", old.Name, lostWithin)
	x.promote(next, "--peer-fenced")
	back()
	old.Start()
}

// powerCut kills all nodes at once, and the last primary or another is promoted.
func (x *run) powerCut() {
	for _, i := range x.rnd.Perm(len(x.c.Nodes)) {
		x.kill(x.c.Nodes[i])
	}
	back := x.h.Lost(true)
	for _, i := range x.rnd.Perm(len(x.c.Nodes)) {
		x.c.Nodes[i].Start()
	}
	x.c.WaitInSync("crm", syncWithin)
	x.promote(x.c.Nodes[x.rnd.IntN(len(x.c.Nodes))])
	back()
}
