package e2e

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// TestCutLink cuts the link under load: the one way, the other way, both. A
// link that carries only one way is a broken link for both.
func TestCutLink(t *testing.T) {
	eachProtocol(t, func(t *testing.T, k crashCase) {
		c := cluster.New(t, cluster.Options{Protocol: k.protocol, Links: true, Configure: quick})
		l := newLedger()
		alpha := c.Up()
		beta := c.Nodes[1]
		r := startLoad(t, alpha, l)
		for _, cut := range []struct {
			name string
			do   func()
		}{
			{"alpha to beta", func() { c.Cut("alpha", "beta") }},
			{"beta to alpha", func() { c.Cut("beta", "alpha") }},
			{"both ways", func() { c.CutBoth("alpha", "beta") }},
		} {
			t.Log("cut", cut.name)
			r.runFor(500 * time.Millisecond)
			cut.do()
			alpha.WaitLost("crm", "beta", lostWithin)
			beta.WaitLost("crm", "alpha", lostWithin)
			r.progress(lostWithin)
			if v := beta.Volume("crm"); v.Role != "secondary" {
				t.Errorf("beta, cut off: %v", v)
			}
			c.Heal("alpha", "beta")
			alpha.WaitConnected("crm", syncWithin)
			r.progress(cluster.Timeout)
			c.WaitInSync("crm", syncWithin)
		}
		r.stop()
		judge(t, alpha, l, ledger.Acked)
		c.Equal("crm")
		alpha.Must("switchover", "crm", "--to", "beta")
		judge(t, beta, l, ledger.Acked)
	})
}

// TestShortCut: a cut shorter than the silence that is borne is not noticed by
// clients and costs no resync.
func TestShortCut(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true})
	l := newLedger()
	alpha := c.Up()
	r := startLoad(t, alpha, l)
	for range 3 {
		r.runFor(500 * time.Millisecond)
		c.CutBoth("alpha", "beta")
		time.Sleep(500 * time.Millisecond)
		c.Heal("alpha", "beta")
		r.progress(cluster.Timeout)
	}
	r.stop()
	if p := alpha.Volume("crm").Peer("beta"); p.Connection != "connected" || p.OutOfSync != 0 {
		t.Errorf("after cuts of half a second: %+v", p)
	}
	judge(t, alpha, l, ledger.Acked)
	c.Equal("crm")
}

// TestFlappingLink: a link that breaks and heals at any moment of a handshake, a
// resync or a write.
func TestFlappingLink(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true, Configure: func(c *cluster.Config) {
		c.Extra = "heartbeat = \"100ms\"\npeer_timeout = \"500ms\"\n"
	}})
	l := newLedger()
	alpha := c.Up()
	r := startLoad(t, alpha, l)
	rnd := rand.New(rand.NewPCG(1, 2))
	cut := []func(){
		func() { c.Cut("alpha", "beta") },
		func() { c.Cut("beta", "alpha") },
		func() { c.CutBoth("alpha", "beta") },
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		cut[rnd.IntN(len(cut))]()
		r.runFor(time.Duration(rnd.IntN(1200)) * time.Millisecond)
		c.Heal("alpha", "beta")
		r.runFor(time.Duration(rnd.IntN(1200)) * time.Millisecond)
	}
	c.WaitInSync("crm", syncWithin)
	r.progress(cluster.Timeout)
	r.stop()
	c.WaitInSync("crm", syncWithin)
	judge(t, alpha, l, ledger.Acked)
	c.Equal("crm")
	alpha.Must("switchover", "crm", "--to", "beta")
	judge(t, c.Nodes[1], l, ledger.Acked)
}

// TestFailOverAcrossACut: the link breaks under load, and the primary dies
// before it knows. Whatever it acknowledged in between, under C and B, is at the
// peer; it may hold what nobody acknowledged, and gives it up when it returns.
func TestFailOverAcrossACut(t *testing.T) {
	eachProtocol(t, func(t *testing.T, k crashCase) {
		c := cluster.New(t, cluster.Options{Protocol: k.protocol, Links: true, Configure: quick})
		l := newLedger()
		alpha := c.Up()
		beta := c.Nodes[1]
		r := startLoad(t, alpha, l)
		r.runFor(700 * time.Millisecond)
		c.CutBoth("alpha", "beta")
		r.runFor(500 * time.Millisecond)
		alpha.Kill()
		r.broken()
		beta.WaitLost("crm", "alpha", lostWithin)
		beta.Must("promote", "crm", "--peer-fenced")
		rule := ledger.Acked
		if k.protocol == "A" {
			rule = ledger.Ordered
		}
		settle(t, beta, l, rule)
		drive(t, beta, l, 500*time.Millisecond)
		alpha.Start()
		if v := alpha.Volume("crm"); v.Role != "secondary" {
			t.Fatalf("a crashed primary came back as %v", v)
		}
		c.Heal("alpha", "beta")
		c.WaitInSync("crm", syncWithin)
		judge(t, beta, l, ledger.Acked)
		c.Equal("crm")
	})
}

// TestWritesToColdExtents: the primary dies with writes on its disk that the
// peer never got, in extents that nobody had written, and with every write to its
// metadata lost that was not synced, which takes long here. The activity map must
// have had those extents first.
func TestWritesToColdExtents(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Size: "4GiB", Links: true, Program: cluster.MetaCrashAgent, Configure: quick})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	alpha.Env = []string{"QRBD_META_SYNC=250ms"}
	c.Up()
	const writers = 32
	for round, alive := range []time.Duration{120 * time.Millisecond, 320 * time.Millisecond, 600 * time.Millisecond} {
		d := alpha.Dial("crm")
		c.CutBoth("alpha", "beta")
		var wg sync.WaitGroup
		for w := range int64(writers) {
			wg.Go(func() {
				// Waits for the peer until the node is gone.
				_ = d.WriteAt(pattern(uint64(w), 4*kib), (int64(round)*writers+w)*extent, false)
			})
		}
		time.Sleep(alive)
		alpha.Kill()
		wg.Wait()
		d.Abort()
		beta.WaitLost("crm", "alpha", lostWithin)
		beta.Must("promote", "crm", "--peer-fenced")
		write(t, beta, "crm", pattern(1, mib), 4090*mib)
		alpha.Start()
		c.Heal("alpha", "beta")
		c.WaitInSync("crm", syncWithin)
		c.Equal("crm")
		beta.Must("switchover", "crm", "--to", "alpha")
	}
}
