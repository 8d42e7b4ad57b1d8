package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// apart returns two nodes that were both promoted while they could not see each
// other, and both wrote; connected again.
func apart(t *testing.T) (c *cluster.Cluster, alpha, beta *cluster.Node) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Links: true, Configure: quick})
	alpha = c.Up()
	beta = c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced") // a lie
	write(t, alpha, "crm", pattern(2, mib), 2*mib)
	write(t, beta, "crm", pattern(3, mib), 4*mib)
	c.Heal("alpha", "beta")
	return c, alpha, beta
}

// TestSplitBrain: two replicas that both took writes after parting are never
// joined without an operator's word, whoever is made the loser.
func TestSplitBrain(t *testing.T) {
	t.Parallel()
	for _, loserIsAlpha := range []bool{true, false} {
		t.Run(map[bool]string{true: "alpha loses", false: "beta loses"}[loserIsAlpha], func(t *testing.T) {
			t.Parallel()
			c, alpha, beta := apart(t)
			for _, n := range c.Nodes {
				p := n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
					return mentions(v.Peers[0].Reason, "split brain", "split-brain")
				}).Peers[0]
				if p.Connection == "connected" || !mentions(p.Reason, "--discard-my-data") {
					t.Errorf("%s: %+v", n.Name, p)
				}
				if !mentions(n.Must("explain", "crm"), "split brain", "split-brain") {
					t.Errorf("%s: explain does not mention it:\n%s", n.Name, n.Must("explain", "crm"))
				}
				if !mentions(n.Log(), "split brain", "split-brain") {
					t.Errorf("%s: the log does not mention it", n.Name)
				}
			}
			t.Log("both go on serving their own data, and reconnecting changes nothing")
			if !bytes.Equal(read(t, alpha, "crm", 2*mib, mib), pattern(2, mib)) || !bytes.Equal(read(t, beta, "crm", 4*mib, mib), pattern(3, mib)) {
				t.Error("a side lost its own writes")
			}
			_, _, _ = alpha.Run("connect", "crm", "beta") // refused or tried in vain
			_, _, _ = beta.Run("connect", "crm", "alpha")
			if v := alpha.Volume("crm"); v.Peers[0].Replication == "established" || v.Peers[0].OutOfSync == 0 {
				t.Errorf("joined without a word: %v", v)
			}

			loser, winner := beta, alpha
			if loserIsAlpha {
				loser, winner = alpha, beta
			}
			loser.Refused([]string{"demote"}, "connect", "crm", winner.Name, "--discard-my-data")
			loser.Must("demote", "crm")
			winner.Must("connect", "crm", loser.Name)
			loser.Must("connect", "crm", winner.Name, "--discard-my-data")
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
			want, lost := pattern(2, mib), int64(4*mib)
			at := int64(2 * mib)
			if loserIsAlpha {
				want, at, lost = pattern(3, mib), 4*mib, 2*mib
			}
			if !bytes.Equal(read(t, winner, "crm", at, mib), want) {
				t.Error("the winner's data is gone")
			}
			if !bytes.Equal(read(t, winner, "crm", lost, mib), pattern(1, 8*mib)[lost:lost+mib]) {
				t.Error("the loser's writes reached the winner")
			}
			if sent := winner.Volume("crm").Peers[0].SyncSent; sent > 4*mib {
				t.Errorf("healing 2 MiB sent %d bytes", sent)
			}
			write(t, winner, "crm", pattern(5, mib), 6*mib)
			c.Equal("crm")
		})
	}
}

// TestPromotedWithoutWriting is no split brain: nothing diverged.
func TestPromotedWithoutWriting(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true, Configure: quick})
	alpha := c.Up()
	beta := c.Nodes[1]
	write(t, alpha, "crm", pattern(1, mib), 0)
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	read(t, beta, "crm", 0, mib)
	beta.Must("demote", "crm")
	write(t, alpha, "crm", pattern(2, mib), 0)
	c.Heal("alpha", "beta")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestTwoPrimaries: both are primary when they meet, only one wrote. They must
// not replicate to each other; demoting the idle one heals it.
func TestTwoPrimaries(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true, Configure: quick})
	alpha := c.Up()
	beta := c.Nodes[1]
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	write(t, alpha, "crm", pattern(2, mib), 0)
	c.Heal("alpha", "beta")
	alpha.Wait("crm", "refusing a second primary", 20*time.Second, func(v cluster.Volume) bool { return v.Peers[0].Reason != "" && v.Peers[0].Connection != "connected" })
	time.Sleep(time.Second) // several attempts to reconnect
	for _, n := range c.Nodes {
		if p := n.Volume("crm").Peers[0]; p.Connection == "connected" {
			t.Errorf("%s: two primaries are connected: %+v", n.Name, p)
		}
	}
	beta.Must("demote", "crm")
	for _, n := range c.Nodes {
		n.Must("connect", "crm")
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestPausedPrimaryWakes after its successor was promoted and wrote. The ids
// tell, whatever the old primary still acknowledges.
func TestPausedPrimaryWakes(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	l := newLedger()
	alpha := c.Up()
	beta := c.Nodes[1]
	r := startLoad(t, alpha, l)
	r.runFor(time.Second)
	alpha.Pause()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	settle(t, beta, l, ledger.Acked)
	succession := ledger.New(40*mib, 8*mib)
	drive(t, beta, succession, time.Second)
	alpha.Resume()
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
			return mentions(v.Peers[0].Reason, "split", "primar")
		})
	}
	r.cancel()
	<-r.done // what the old primary acknowledged after it woke is lost by the operator's word
	alpha.Must("demote", "crm", "--force")
	beta.Must("connect", "crm", "alpha")
	alpha.Must("connect", "crm", "beta", "--discard-my-data")
	c.WaitInSync("crm", syncWithin)
	judge(t, beta, succession, ledger.Acked)
	c.Equal("crm")
}
