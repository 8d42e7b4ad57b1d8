package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// withWitness makes a running cluster of two replicas and a witness, with a quorum;
// alpha is primary and both replicas are in sync.
func withWitness(t *testing.T) (c *cluster.Cluster, alpha, beta, gamma *cluster.Node) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Nodes: three, Links: true, Configure: func(c *cluster.Config) {
		quick(c)
		v := c.Volume("crm")
		v.Extra = "quorum = \"majority\"\nwitnesses = [\"gamma\"]\n"
		if c.Name == "gamma" {
			v.Backing, v.Export = "none", ""
		}
	}})
	alpha, beta, gamma = c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.Create("crm")
	c.Start()
	alpha.WaitConnected("crm", 10*time.Second)
	gamma.WaitConnected("crm", 10*time.Second)
	alpha.Must("promote", "crm", "--force")
	inSync(alpha, beta)
	return c, alpha, beta, gamma
}

// inSync waits until two replicas are, of which the first is primary.
func inSync(primary, other *cluster.Node) {
	for _, n := range []*cluster.Node{primary, other} {
		peer := other.Name
		if n == other {
			peer = primary.Name
		}
		n.Wait("crm", "in sync", syncWithin, func(v cluster.Volume) bool {
			p := v.Peer(peer)
			return v.Disk == "up-to-date" && p.Replication == "established" && p.Disk == "up-to-date" && p.OutOfSync == 0
		})
	}
}

// request does something to an open disk, and says how it ended.
func request(fn func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return done
}

// promoteSoon promotes a node as soon as the others have lost whom they followed.
func promoteSoon(t *testing.T, n *cluster.Node) {
	t.Helper()
	text := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		_, stderr, code := n.Run("promote", "crm")
		if code == 0 {
			return
		}
		text = stderr
	}
	t.Fatalf("%s is not promoted: %s", n.Name, text)
}

// TestWitness: the side of a cut with the witness goes on, the other one answers
// nothing, and gives way when it is back. A primary that was stopped, and wakes after
// its successor was promoted, answers nothing either, not even what waited for it.
func TestWitness(t *testing.T) {
	t.Parallel()
	c, alpha, beta, gamma := withWitness(t)
	if v := gamma.Volume("crm"); v.Disk != "diskless" || !mentions(gamma.Must("status", "crm", "--json"), `"witness": true`, `"witness":true`) {
		t.Errorf("the witness says of itself: %v", v)
	}
	gamma.Refused([]string{"witness"}, "promote", "crm", "--force")
	first, second, third := pattern(1, mib), pattern(2, mib), pattern(3, mib)
	write(t, alpha, "crm", first, 0)

	t.Log("beta is lost: alpha goes on with the witness")
	c.CutBoth("alpha", "beta")
	alpha.WaitLost("crm", "beta", lostWithin)
	write(t, alpha, "crm", second, 0)
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Refused([]string{"gamma refuses", "newer data"}, "promote", "crm")
	c.Heal("alpha", "beta")
	inSync(alpha, beta)

	t.Log("alpha is cut off: it answers nothing, and beta is promoted")
	disk := alpha.Dial("crm")
	defer disk.Abort()
	c.CutBoth("alpha", "beta")
	c.CutBoth("alpha", "gamma")
	alpha.WaitLost("crm", "beta", lostWithin)
	alpha.WaitLost("crm", "gamma", lostWithin)
	lost := request(func() error { return disk.WriteAt(third, 0, false) })
	stale := request(func() error { return disk.ReadAt(make([]byte, mib), mib) })
	promoteSoon(t, beta)
	if !bytes.Equal(read(t, beta, "crm", 0, mib), second) {
		t.Error("beta lacks what was acknowledged")
	}
	write(t, beta, "crm", first, 2*mib)
	select {
	case err := <-lost:
		t.Errorf("a write without a quorum ended: %v", err)
	case err := <-stale:
		t.Errorf("a read without a quorum ended: %v", err)
	case <-time.After(3 * time.Second):
	}
	c.Heal("alpha", "beta")
	c.Heal("alpha", "gamma")
	alpha.Wait("crm", "giving way", lostWithin, func(v cluster.Volume) bool { return v.Role == "secondary" })
	for name, done := range map[string]<-chan error{"write": lost, "read": stale} {
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("the %s of a primary that was superseded was answered", name)
			}
		case <-time.After(lostWithin):
			t.Errorf("the %s of a primary that was superseded does not end", name)
		}
	}
	inSync(beta, alpha)
	c.Equal("crm", "alpha", "beta")

	t.Log("beta is stopped, alpha promoted, and beta wakes")
	old := beta.Dial("crm")
	defer old.Abort()
	beta.Pause()
	waits := request(func() error { return old.ReadAt(make([]byte, mib), 0) })
	promoteSoon(t, alpha)
	write(t, alpha, "crm", third, 0)
	beta.Resume()
	beta.Wait("crm", "giving way", lostWithin, func(v cluster.Volume) bool { return v.Role == "secondary" })
	select {
	case err := <-waits:
		if err == nil {
			t.Error("a primary that slept over the promotion of another answers what waited for it")
		}
	case <-time.After(lostWithin):
		t.Error("what waited for a primary that slept does not end")
	}
	inSync(alpha, beta)
	c.Equal("crm", "alpha", "beta")
	if !bytes.Equal(read(t, alpha, "crm", 0, mib), third) {
		t.Error("alpha lacks what it has acknowledged")
	}

	t.Log("who leaves in order is not missed")
	gamma.Stop()
	beta.Stop()
	write(t, alpha, "crm", second, 4*mib)
	beta.Start()
	gamma.Start()
	inSync(alpha, beta)
}
