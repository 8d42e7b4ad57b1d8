package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// chaos is three nodes under load to which things happen one after the other,
// without waiting for the last one to be mended: power cuts, pauses, broken
// links, operators. Now and then everything is healed and compared.
type chaos struct {
	t       *testing.T
	rnd     *rand.Rand
	c       *cluster.Cluster
	primary *cluster.Node
	ledger  *ledger.Ledger
	load    *load
}

// TestChaos runs for 20 s each with three C peers, and with a far node in A;
// QRBD_E2E_CHAOS=10m makes it longer. A failure prints the seed of what happened;
// QRBD_E2E_SEED repeats it, as far as processes do.
func TestChaos(t *testing.T) {
	t.Parallel()
	t.Run("C", func(t *testing.T) { runChaos(t, func(*cluster.Config) {}) })
	t.Run("mixed", func(t *testing.T) { runChaos(t, mixed) })
}

func runChaos(t *testing.T, protocols func(*cluster.Config)) {
	t.Parallel()
	length := 20 * time.Second
	if s := os.Getenv("QRBD_E2E_CHAOS"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		check(t, err)
	}
	seed := rand.Uint64()
	if s := os.Getenv("QRBD_E2E_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		check(t, err)
	}
	t.Log("seed", seed)
	x := &chaos{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), ledger: newLedger(),
		c: cluster.New(t, cluster.Options{Nodes: three, Links: true, Program: cluster.CrashAgent, Configure: func(c *cluster.Config) {
			protocols(c)
			c.Extra = "heartbeat = \"200ms\"\npeer_timeout = \"1s\"\n"
			c.Volume("crm").Extra += "activity_idle = \"1s\"\n"
		}})}
	x.primary = x.c.Up()
	x.load = startLoad(t, x.primary, x.ledger)
	events := []func(){x.killSecondaries, x.killSecondaries, x.cutLink, x.cutLink, x.pause, x.disconnect, x.losePrimary, x.losePrimary, x.switchover}
	for end := time.Now().Add(length); time.Now().Before(end); {
		x.load.runFor(x.within(1200))
		events[x.rnd.IntN(len(events))]()
		if x.rnd.IntN(3) == 0 {
			x.compare()
		}
	}
	x.compare()
	x.load.stop()
}

func (x *chaos) within(ms int) time.Duration { return time.Duration(x.rnd.IntN(ms)) * time.Millisecond }

// secondaries returns the nodes that are not primary, in random order.
func (x *chaos) secondaries() []*cluster.Node {
	var s []*cluster.Node
	for _, i := range x.rnd.Perm(len(x.c.Nodes)) {
		if n := x.c.Nodes[i]; n != x.primary {
			s = append(s, n)
		}
	}
	return s
}

func (x *chaos) killSecondaries() {
	victims := x.secondaries()[:1+x.rnd.IntN(2)]
	for _, n := range victims {
		x.t.Log("kill", n.Name)
		n.Kill()
	}
	x.load.runFor(x.within(2500))
	for _, n := range victims {
		n.Start()
	}
}

func (x *chaos) cutLink() {
	order := x.rnd.Perm(len(three))
	from, to := three[order[0]], three[order[1]]
	x.t.Log("cut", from, "to", to)
	x.c.Cut(from, to)
	if x.rnd.IntN(2) == 0 {
		x.c.Cut(to, from)
	}
	x.load.runFor(x.within(2500))
	x.c.Heal(from, to)
}

func (x *chaos) pause() {
	n := x.secondaries()[0]
	x.t.Log("pause", n.Name)
	n.Pause()
	x.load.runFor(x.within(2500))
	n.Resume()
}

func (x *chaos) disconnect() {
	n := x.secondaries()[0]
	x.t.Log("disconnect", n.Name)
	x.primary.Must("disconnect", "crm", n.Name)
	x.load.runFor(x.within(1500))
	x.primary.Must("connect", "crm", n.Name)
	n.Must("connect", "crm", x.primary.Name)
}

// losePrimary kills the primary, and either a peer that was in sync with it takes
// over, or it comes back and is promoted again.
func (x *chaos) losePrimary() {
	var good []*cluster.Node
	v := x.primary.Volume("crm")
	for _, n := range x.secondaries() {
		if p := v.Peer(n.Name); p.Protocol == "C" && p.Replication == "established" && p.Disk == "up-to-date" && p.OutOfSync == 0 {
			good = append(good, n)
		}
	}
	old := x.primary
	x.t.Logf("kill the primary %s, with %d good peers", old.Name, len(good))
	old.Kill()
	x.load.broken()
	rule := ledger.Acked
	if len(good) == 0 {
		rule = ledger.Flushed
	}
	if len(good) > 0 && x.rnd.IntN(3) > 0 {
		x.primary = good[0]
		x.primary.WaitLost("crm", old.Name, lostWithin)
		x.t.Log("fail over to", x.primary.Name)
		x.promote("--peer-fenced")
		x.resume(rule)
		x.load.runFor(x.within(1000))
		old.Start()
		return
	}
	old.Start()
	x.c.WaitInSync("crm", syncWithin)
	x.promote()
	x.resume(rule)
}

// promote makes x.primary primary; while others settle something it may have to
// be asked again.
func (x *chaos) promote(args ...string) {
	x.t.Helper()
	var text string
	for end := time.Now().Add(lostWithin); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var code int
		if _, text, code = x.primary.Run(append([]string{"promote", "crm"}, args...)...); code == 0 {
			return
		}
	}
	x.t.Fatalf("promote on %s: %s", x.primary.Name, text)
}

// resume checks what the new primary has, and puts it under load.
func (x *chaos) resume(rule ledger.Rule) {
	x.t.Helper()
	settle(x.t, x.primary, x.ledger, rule)
	x.load = startLoad(x.t, x.primary, x.ledger)
}

func (x *chaos) switchover() {
	to := x.secondaries()[0]
	x.load.stop()
	x.c.WaitInSync("crm", syncWithin)
	x.t.Log("switch over to", to.Name)
	x.primary.Must("switchover", "crm", "--to", to.Name)
	x.primary = to
	x.resume(ledger.Acked)
}

// compare stops the load, and everything must be as if nothing had happened.
func (x *chaos) compare() {
	x.t.Helper()
	x.load.progress(cluster.Timeout)
	x.load.stop()
	x.c.WaitInSync("crm", syncWithin)
	judge(x.t, x.primary, x.ledger, ledger.Acked)
	x.c.Equal("crm")
	if err := x.rebase(); err != nil { // keeps the ledger small
		x.t.Fatal(err)
	}
	x.load = startLoad(x.t, x.primary, x.ledger)
}

func (x *chaos) rebase() error {
	d := x.primary.Dial("crm")
	defer d.Close()
	return x.ledger.Rebase(d)
}
