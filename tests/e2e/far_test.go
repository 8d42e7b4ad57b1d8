package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// farDelay is one way to gamma: the far end of a continent.
const farDelay = 30 * time.Millisecond

// farGamma is alpha and beta in one place (C), gamma far away (A).
func farGamma(t *testing.T, program cluster.Program) *cluster.Cluster {
	if os.Getenv(cluster.TransportEnv) == "tcp" {
		t.Skip("the relay that makes a node far passes UDP only")
	}
	return cluster.New(t, cluster.Options{Nodes: three, Program: program, Configure: func(c *cluster.Config) {
		mixed(c)
		for i := range c.Peers {
			if p := &c.Peers[i]; c.Name == "gamma" || p.Name == "gamma" {
				p.Address = cluster.Relay(t, p.Address, farDelay)
			}
		}
	}})
}

// TestFarThird: writes do not wait for gamma, and gamma follows. Each node is lost
// and returns, and each is promoted.
func TestFarThird(t *testing.T) {
	t.Parallel()
	c := farGamma(t, cluster.Qrbd)
	l := newLedger()
	alpha := c.Up()
	beta, gamma := c.Node("beta"), c.Node("gamma")
	d := alpha.Dial("crm")
	began := time.Now()
	const writes = 50
	for i := range int64(writes) {
		if err := d.WriteAt(pattern(uint64(i), 4*kib), 40*mib+i*4*kib, false); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	if took := time.Since(began) / writes; took > farDelay {
		t.Errorf("a write takes %v: it waits for gamma, which is %v away", took, 2*farDelay)
	}
	r := startLoad(t, alpha, l)
	for _, victim := range []*cluster.Node{gamma, beta} {
		r.runFor(500 * time.Millisecond)
		victim.Kill()
		r.progress(lostWithin)
		alpha.WaitLost("crm", victim.Name, lostWithin)
		r.runFor(300 * time.Millisecond)
		victim.Start()
		c.WaitInSync("crm", syncWithin)
	}
	r.stop()
	c.Equal("crm")
	primary := alpha
	for _, next := range []*cluster.Node{beta, gamma, alpha} {
		primary.Must("switchover", "crm", "--to", next.Name)
		c.WaitInSync("crm", syncWithin)
		judge(t, next, l, ledger.Acked)
		drive(t, next, l, 500*time.Millisecond)
		primary = next
	}
	c.Equal("crm")
}

// TestSiteLost: alpha and beta go down together, under load, with writes that gamma
// has not got yet. Whoever of the site returns has them, and is not overwritten by
// gamma: neither when the primary is the first to return, nor when it never does.
func TestSiteLost(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name   string
		first  string
		second string
	}{{"secondary returns", "beta", "alpha"}, {"primary returns", "alpha", "beta"}} {
		for _, program := range []struct {
			name    string
			program cluster.Program
			rule    ledger.Rule
		}{{"kill", cluster.Qrbd, ledger.Acked}, {"powercut", cluster.CrashAgent, ledger.Flushed}} {
			t.Run(k.name+"/"+program.name, func(t *testing.T) {
				t.Parallel()
				c := farGamma(t, program.program)
				l := newLedger()
				alpha := c.Up()
				beta := c.Node("beta")
				r := startLoad(t, alpha, l)
				r.runFor(1500 * time.Millisecond)
				alpha.Kill()
				beta.Kill()
				r.broken()
				first, second := c.Node(k.first), c.Node(k.second)
				first.Start()
				first.WaitPeer("crm", "gamma", "in sync", syncWithin, func(p cluster.Peer) bool {
					return p.Replication == "established" && p.OutOfSync == 0
				})
				c.Equal("crm", first.Name, "gamma")
				first.Must("promote", "crm", "--peer-fenced")
				settle(t, first, l, program.rule)
				drive(t, first, l, 500*time.Millisecond)
				second.Start()
				c.WaitInSync("crm", syncWithin)
				judge(t, first, l, ledger.Acked)
				c.Equal("crm")
			})
		}
	}
}

// TestSiteGone: the site is lost, gamma goes on with what it has, and the site comes
// back to follow it.
func TestSiteGone(t *testing.T) {
	t.Parallel()
	c := farGamma(t, cluster.Qrbd)
	l := newLedger()
	alpha := c.Up()
	beta, gamma := c.Node("beta"), c.Node("gamma")
	r := startLoad(t, alpha, l)
	r.runFor(time.Second)
	alpha.Kill()
	beta.Kill()
	r.broken()
	gamma.WaitLost("crm", "alpha", lostWithin)
	gamma.WaitLost("crm", "beta", lostWithin)
	gamma.Must("promote", "crm", "--peer-fenced")
	d := gamma.Dial("crm")
	if err := l.Rebase(d); err != nil { // A: the last writes may be missing
		t.Fatal(err)
	}
	d.Close()
	drive(t, gamma, l, 500*time.Millisecond)
	beta.Start()
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	judge(t, gamma, l, ledger.Acked)
	c.Equal("crm")
	gamma.Must("switchover", "crm", "--to", "alpha")
	judge(t, alpha, l, ledger.Acked)
}
