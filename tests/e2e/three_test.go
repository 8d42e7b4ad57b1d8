package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

var three = []string{"alpha", "beta", "gamma"}

// mixed makes beta a C peer of everyone and gamma an A peer.
func mixed(c *cluster.Config) {
	quick(c)
	for _, p := range c.Peers {
		mode := "C"
		if c.Name == "gamma" || p.Name == "gamma" {
			mode = "A"
		}
		if c.Volume("crm").Extra == "" {
			c.Volume("crm").Extra = "protocols = { "
		} else {
			c.Volume("crm").Extra += ", "
		}
		c.Volume("crm").Extra += fmt.Sprintf("%s = %q", p.Name, mode)
	}
	c.Volume("crm").Extra += " }\n"
}

// eachThree runs f with all in C, and with a far A peer; plain and losing what
// was not flushed.
func eachThree(t *testing.T, f func(t *testing.T, c *cluster.Cluster)) {
	t.Parallel()
	for _, k := range []struct {
		name      string
		program   cluster.Program
		configure func(*cluster.Config)
	}{
		{"kill/C", cluster.Qrbd, quick},
		{"powercut/mixed", cluster.CrashAgent, mixed},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			f(t, cluster.New(t, cluster.Options{Nodes: three, Program: k.program, Configure: k.configure}))
		})
	}
}

// TestThreeNodesFailOver: the primary dies, one secondary is promoted, the other
// follows it, and the dead one comes back.
func TestThreeNodesFailOver(t *testing.T) {
	eachThree(t, func(t *testing.T, c *cluster.Cluster) {
		alpha, beta, gamma := c.Up(), c.Nodes[1], c.Nodes[2]
		l := newLedger()
		r := startLoad(t, alpha, l)
		r.runFor(1500 * time.Millisecond)
		alpha.Kill()
		r.broken()
		beta.WaitLost("crm", "alpha", lostWithin)
		gamma.WaitLost("crm", "alpha", lostWithin)
		beta.Must("promote", "crm", "--peer-fenced")
		settle(t, beta, l, ledger.Acked) // beta is a C peer in both cases
		c.WaitInSync("crm", syncWithin)
		c.Equal("crm", "beta", "gamma")
		drive(t, beta, l, time.Second)
		c.Equal("crm", "beta", "gamma")
		alpha.Start()
		c.WaitInSync("crm", syncWithin)
		judge(t, beta, l, ledger.Acked)
		c.Equal("crm")
	})
}

// TestThreeNodesEachInTurn: every node dies once under load and comes back; the
// role goes round.
func TestThreeNodesEachInTurn(t *testing.T) {
	eachThree(t, func(t *testing.T, c *cluster.Cluster) {
		l := newLedger()
		primary := c.Up()
		r := startLoad(t, primary, l)
		for _, victim := range c.Nodes[1:] {
			t.Log("kill secondary", victim.Name)
			r.runFor(500 * time.Millisecond)
			victim.Kill()
			r.progress(lostWithin)
			primary.WaitLost("crm", victim.Name, lostWithin)
			r.runFor(500 * time.Millisecond)
			victim.Start()
			c.WaitInSync("crm", syncWithin)
		}
		r.stop()
		judge(t, primary, l, ledger.Acked)
		c.Equal("crm")
		for _, next := range []*cluster.Node{c.Nodes[1], c.Nodes[2], c.Nodes[0]} {
			t.Log("switch over to", next.Name)
			primary.Must("switchover", "crm", "--to", next.Name)
			c.WaitInSync("crm", syncWithin)
			drive(t, next, l, 500*time.Millisecond)
			primary = next
		}
		c.Equal("crm")
	})
}

// TestTwoSecondariesSettle: the primary dies for good; what only one secondary
// got of its last writes is settled between the two.
func TestTwoSecondariesSettle(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: three, Links: true, Configure: quick})
	alpha, beta, gamma := c.Up(), c.Nodes[1], c.Nodes[2]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(time.Second)
	c.CutBoth("alpha", "gamma") // from now on only beta gets the writes, unacknowledged at first
	r.runFor(700 * time.Millisecond)
	alpha.Kill()
	r.broken()
	for _, n := range []*cluster.Node{beta, gamma} {
		n.WaitLost("crm", "alpha", lostWithin)
	}
	gamma.Refused(nil, "promote", "crm") // alpha cannot be asked, or beta is overwriting it
	beta.Must("promote", "crm", "--peer-fenced")
	settle(t, beta, l, ledger.Acked)
	c.WaitInSync("crm", syncWithin)
	drive(t, beta, l, time.Second)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm", "beta", "gamma")
	beta.Must("switchover", "crm", "--to", "gamma")
	judge(t, gamma, l, ledger.Acked)
}

// TestLateThird: the third node was away while the role moved; it follows the
// new primary with what its bitmap says.
func TestLateThird(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: three, Size: "1GiB", Configure: quick})
	alpha, beta, gamma := c.Up(), c.Nodes[1], c.Nodes[2]
	write(t, alpha, "crm", pattern(1, 64*mib), 0)
	time.Sleep(time.Second) // the secondaries are told several times a second what all of them have
	gamma.Stop()
	alpha.WaitLost("crm", "gamma", lostWithin)
	write(t, alpha, "crm", pattern(2, mib), 100*mib)
	alpha.Must("switchover", "crm", "--to", "beta")
	write(t, beta, "crm", pattern(3, mib), 200*mib)
	gamma.Start()
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	if p := beta.Volume("crm").Peer("gamma"); p.SyncSent > 8*mib {
		t.Errorf("2 MiB changed and %d bytes were sent: %+v", p.SyncSent, p)
	}
}

// TestNoMerryGoRound: without a primary three replicas settle who copies from
// whom, once: each sync is reported by its source, and they come to an end.
func TestNoMerryGoRound(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"C", "A"} {
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Nodes: three, Protocol: p, Program: cluster.CrashAgent, Configure: quick})
			alpha, beta := c.Up(), c.Nodes[1]
			r := startLoad(t, alpha, newLedger())
			r.runFor(700 * time.Millisecond)
			beta.Kill()
			alpha.WaitLost("crm", "beta", lostWithin)
			beta.Start()
			r.runFor(50 * time.Millisecond) // in the middle of its resync
			syncs := func() (n int) {
				for _, node := range c.Nodes {
					n += strings.Count(node.Log(), "new=sync-source")
				}
				return n
			}
			alpha.Kill()
			r.broken()
			before := syncs()
			alpha.Start()
			c.WaitInSync("crm", syncWithin)
			time.Sleep(2 * time.Second)
			settled := syncs()
			c.WaitInSync("crm", syncWithin)
			time.Sleep(time.Second)
			t.Logf("%d syncs after the primary's return", settled-before)
			if after := syncs(); after != settled || settled-before > 6 {
				t.Errorf("%d syncs after the primary's return, then %d more", settled-before, after-settled)
			}
			c.Equal("crm")
		})
	}
}
