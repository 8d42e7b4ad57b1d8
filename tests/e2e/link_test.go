package e2e

import (
	"math/rand/v2"
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

// TestFailOverAcrossACut: the old primary goes on alone for a while, is stopped,
// and its successor takes over: the operator vouched for a death that was one.
func TestFailOverAcrossACut(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true, Configure: quick})
	l := newLedger()
	alpha := c.Up()
	beta := c.Nodes[1]
	r := startLoad(t, alpha, l)
	r.runFor(time.Second)
	r.stop()
	c.CutBoth("alpha", "beta")
	alpha.Kill()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	settle(t, beta, l, ledger.Acked)
	drive(t, beta, l, time.Second)
	alpha.Start()
	if v := alpha.Volume("crm"); v.Role != "secondary" {
		t.Fatalf("a crashed primary came back as %v", v)
	}
	c.Heal("alpha", "beta")
	c.WaitInSync("crm", syncWithin)
	judge(t, beta, l, ledger.Acked)
	c.Equal("crm")
}
