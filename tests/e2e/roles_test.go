package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// TestConcurrentPromote: two operators at once never make two primaries.
func TestConcurrentPromote(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	c.Up().Must("demote", "crm")
	won := 0
	for round := range 8 {
		var wg sync.WaitGroup
		codes := make([]int, len(c.Nodes))
		for i, n := range c.Nodes {
			wg.Go(func() { _, _, codes[i] = n.Run("promote", "crm") })
		}
		wg.Wait()
		primaries := 0
		for i, n := range c.Nodes {
			v := n.Volume("crm")
			if (v.Role == "primary") != (codes[i] == 0) {
				t.Errorf("round %d: promote on %s ended with %d: %v", round, n.Name, codes[i], v)
			}
			if v.Role == "primary" {
				primaries++
			}
		}
		if primaries > 1 {
			t.Fatalf("round %d: %d primaries", round, primaries)
		}
		won += primaries
		for _, n := range c.Nodes {
			n.Must("demote", "crm") // on a secondary it changes nothing
		}
		c.WaitInSync("crm", syncWithin)
	}
	if won == 0 {
		t.Error("nobody was ever promoted")
	}
	c.Nodes[1].Must("promote", "crm")
}

// TestSwitchoverStorm: the role goes back and forth, with writes on each side,
// and never costs a resync.
func TestSwitchoverStorm(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	from, to := c.Up(), c.Nodes[1]
	l := newLedger()
	for range 8 {
		drive(t, from, l, 150*time.Millisecond)
		from.Must("switchover", "crm", "--to", to.Name)
		judge(t, to, l, ledger.Acked)
		from, to = to, from
	}
	for _, n := range c.Nodes {
		if p := n.Volume("crm").Peers[0]; p.Connection != "connected" || p.OutOfSync != 0 {
			t.Errorf("%s: %+v", n.Name, p)
		}
	}
	c.Equal("crm")
}

// TestSwitchoverWithClients is refused and changes nothing.
func TestSwitchoverWithClients(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha, beta := c.Up(), c.Nodes[1]
	r := startLoad(t, alpha, newLedger())
	r.runFor(200 * time.Millisecond)
	alpha.Refused([]string{"client"}, "switchover", "crm", "--to", "beta")
	beta.Refused([]string{}, "switchover", "crm", "--to", "alpha") // not the primary
	r.progress(cluster.Timeout)
	r.stop()
	if v := alpha.Volume("crm"); v.Role != "primary" {
		t.Errorf("alpha: %v", v)
	}
	c.Equal("crm")
}

// TestTargetIsNotPromoted: half of a copy is no volume.
func TestTargetIsNotPromoted(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Size: "256MiB", Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = "resync_rate_max = \"16MiB\"\n"
	}})
	alpha, beta := c.Up(), c.Nodes[1]
	beta.Stop()
	alpha.WaitLost("crm", "beta", lostWithin)
	write(t, alpha, "crm", pattern(1, 64*mib), 0)
	beta.Start()
	v := beta.Wait("crm", "being overwritten", syncWithin, func(v cluster.Volume) bool {
		return v.Peers[0].Replication == "sync-target" && v.Peers[0].SyncDone > 0
	})
	if p := v.Peers[0]; v.Disk != "inconsistent" || p.SyncPercent >= 100 || p.SyncTotal != 64*mib || p.OutOfSync == 0 {
		t.Errorf("a sync target: %v", v)
	}
	beta.Refused([]string{}, "promote", "crm")
	alpha.Refused([]string{}, "switchover", "crm", "--to", "beta")
	if v := alpha.Volume("crm"); v.Role != "primary" {
		t.Errorf("alpha after a refused switchover: %v", v)
	}
	c.WaitInSync("crm", syncWithin)
	alpha.Must("switchover", "crm", "--to", "beta")
	c.Equal("crm")
}

// TestTerminate: SIGTERM under load drains, and loses nothing; the peer knows
// that its primary left in order.
func TestTerminate(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(700 * time.Millisecond)
	alpha.Stop()
	r.broken()
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	for _, n := range c.Nodes {
		if p := n.Volume("crm").Peers[0]; p.SyncSent != 0 {
			t.Errorf("%s: an orderly end cost a resync: %+v", n.Name, p)
		}
	}
	beta.Must("promote", "crm")
	settle(t, beta, l, ledger.Acked)
	c.Equal("crm")
}

// TestLostPrimaryAfterNoWrites: nothing was written since both were in sync, so
// next to nothing is copied when the lost one returns.
func TestLostPrimaryAfterNoWrites(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 32*mib), 0)
	alpha.Kill()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	if p := beta.Volume("crm").Peer("alpha"); p.SyncSent > mib {
		t.Errorf("nothing changed and %d bytes were sent", p.SyncSent)
	}
	c.Equal("crm")
}
