package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// undisturbed runs f with load on alpha, which must not notice: no request may
// take longer than limit, and gamma must stay in sync.
func undisturbed(t *testing.T, alpha *cluster.Node, f func()) {
	t.Helper()
	r := startLoad(t, alpha, newLedger())
	r.runFor(300 * time.Millisecond)
	f()
	r.progress(cluster.Timeout)
	r.stop()
	if r.stats.Slowest > time.Second {
		t.Errorf("a request took %v while a stranger was refused", r.stats.Slowest)
	}
	if p := alpha.Volume("crm").Peer("gamma"); p.Connection != "connected" || p.OutOfSync != 0 {
		t.Errorf("gamma: %+v", p)
	}
}

// refusing waits until the node says of the peer that it is not connected for a
// reason that contains one of the words, in its status and in its log.
func refusing(t *testing.T, n *cluster.Node, peer string, words ...string) {
	t.Helper()
	p := n.WaitPeer("crm", peer, "refused for "+words[0], 20*time.Second, func(p cluster.Peer) bool {
		return p.Connection != "connected" && mentions(p.Reason, words...)
	})
	t.Logf("%s of %s: %s", n.Name, peer, p.Reason)
	if !mentions(n.Log(), words...) {
		t.Errorf("%s: the log does not name the cause", n.Name)
	}
}

// trio returns alpha and gamma in sync, and beta not yet started.
func trio(t *testing.T) (c *cluster.Cluster, alpha, beta, gamma *cluster.Node) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Nodes: three, Configure: quick})
	alpha, beta, gamma = c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.Create("crm")
	alpha.Start()
	gamma.Start()
	alpha.WaitPeer("crm", "gamma", "connected", 10*time.Second, func(p cluster.Peer) bool { return p.Connection == "connected" })
	alpha.Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)
	return c, alpha, beta, gamma
}

// TestWrongKey: beta comes with a key that alpha does not know.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	c, alpha, beta, _ := trio(t)
	if err := os.Rename(beta.Config.State, beta.Config.State+".old"); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(beta.Dir, "fresh.toml")
	beta.MustWith(fresh, "init", "--name", "beta", "--listen", beta.Config.Listen, "--state", beta.Config.State)
	beta.Must("create", "crm", "--force")
	undisturbed(t, alpha, func() {
		beta.Start()
		refusing(t, alpha, "beta", "key")
		refusing(t, beta, "alpha", "key")
	})
	t.Log("the right key is let in")
	beta.Stop()
	if err := os.RemoveAll(beta.Config.State); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(beta.Config.State+".old", beta.Config.State); err != nil {
		t.Fatal(err)
	}
	beta.Start()
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestOneSideDistrusts: alpha has the wrong key for beta, beta the right one for
// alpha.
func TestOneSideDistrusts(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: three, Configure: quick})
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	alpha.Rewrite(func(cfg *cluster.Config) {
		cfg.Peer("beta").Key = gamma.Key
		cfg.Peers = cfg.Peers[:1] // gamma's key is gamma's own
	})
	c.Create("crm")
	alpha.Start()
	beta.Start()
	refusing(t, alpha, "beta", "key")
	refusing(t, beta, "alpha", "key", "certificate")
}

// TestAnotherVolumesID: a replica of another volume that has the same name.
func TestAnotherVolumesID(t *testing.T) {
	t.Parallel()
	_, alpha, beta, _ := trio(t)
	alpha.Rewrite(func(*cluster.Config) {})
	others := beta.Config.Peers
	beta.Rewrite(func(cfg *cluster.Config) { cfg.Peers = nil })
	beta.Start()
	beta.Must("promote", "crm", "--force")
	write(t, beta, "crm", pattern(7, mib), 0)
	beta.Must("demote", "crm")
	beta.Stop()
	beta.Rewrite(func(cfg *cluster.Config) { cfg.Peers = others })
	undisturbed(t, alpha, func() {
		beta.Start()
		refusing(t, alpha, "beta", "another volume", "volume id", "unrelated")
		refusing(t, beta, "alpha", "another volume", "volume id", "unrelated")
	})
	beta.Must("promote", "crm", "--peer-fenced") // its own data is still its own
	if got := read(t, beta, "crm", 0, mib); string(got) != string(pattern(7, mib)) {
		t.Error("beta's data was overwritten")
	}
}

// TestAnotherSize: the same volume configured with different sizes.
func TestAnotherSize(t *testing.T) {
	t.Parallel()
	_, alpha, beta, _ := trio(t)
	beta.Rewrite(func(cfg *cluster.Config) { cfg.Volume("crm").Size = "96MiB" })
	beta.Must("create", "crm", "--force")
	undisturbed(t, alpha, func() {
		beta.Start()
		refusing(t, alpha, "beta", "size")
		refusing(t, beta, "alpha", "size")
	})
}

// TestAnotherProtocol: A on one side and C on the other.
func TestAnotherProtocol(t *testing.T) {
	t.Parallel()
	_, alpha, beta, _ := trio(t)
	beta.Rewrite(func(cfg *cluster.Config) { cfg.Volume("crm").Protocol = "A" })
	undisturbed(t, alpha, func() {
		beta.Start()
		refusing(t, alpha, "beta", "protocol")
		refusing(t, beta, "alpha", "protocol")
	})
}

// TestUnknownVolume: the peer does not have the volume, or has not created it.
func TestUnknownVolume(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: func(c *cluster.Config) {
		quick(c)
		crm := *c.Volume("crm")
		crm.Name, crm.Backing, crm.Export = "erp", c.State+".erp.img", crm.Export+"2"
		c.Volumes = append(c.Volumes, crm)
	}})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	c.Create("crm")
	alpha.Must("create", "erp")
	c.Start()
	alpha.WaitConnected("crm", 10*time.Second)
	alpha.WaitPeer("erp", "beta", "refused", 20*time.Second, func(p cluster.Peer) bool {
		return p.Connection != "connected" && mentions(p.Reason, "create")
	})
	alpha.Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)

	t.Log("created while the agents run")
	beta.Must("create", "erp")
	alpha.WaitConnected("erp", syncWithin)
	alpha.Must("promote", "erp", "--force")
	c.WaitInSync("erp", 20*time.Second)
}
