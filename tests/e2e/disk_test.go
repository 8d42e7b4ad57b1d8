package e2e

import (
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// TestSecondaryDiskFails: a write or a flush that fails on the secondary fails
// that disk for good; the primary goes on and knows what the peer lacks.
func TestSecondaryDiskFails(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"write error", "flush error", "write nospace"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
			alpha, beta := c.Up(), c.Nodes[1]
			l := newLedger()
			r := startLoad(t, alpha, l)
			r.runFor(500 * time.Millisecond)
			beta.Faults("crm", script+"\n")
			beta.Wait("crm", "failed", lostWithin, func(v cluster.Volume) bool { return v.Disk == "failed" })
			r.progress(lostWithin)
			p := alpha.WaitPeer("crm", "beta", "known to have a failed disk", lostWithin, func(p cluster.Peer) bool {
				return (p.Disk == "failed" || mentions(p.Reason, "on beta has failed")) && p.OutOfSync > 0
			})
			if p.Replication == "established" {
				t.Errorf("alpha still replicates to a failed disk: %+v", p)
			}
			r.progress(cluster.Timeout)
			r.stop()
			judge(t, alpha, l, ledger.Acked)
			beta.Refused([]string{}, "promote", "crm", "--peer-fenced")
			if !mentions(beta.Log(), "failed", "error") {
				t.Error("the secondary's log does not mention it")
			}
			replaceDisk(t, beta)
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
		})
	}
}

// replaceDisk restarts a node whose disk failed. A disk that works again is not
// trusted for that: it is a new one when the operator says so.
func replaceDisk(t *testing.T, n *cluster.Node) {
	t.Helper()
	n.Kill()
	n.Faults("crm", "")
	n.Start()
	v := n.Volume("crm")
	if v.Disk != "failed" || !mentions(v.Reason, "qrbd replace-disk crm") {
		t.Errorf("a failed disk after a restart: %v", v)
	}
	time.Sleep(time.Second) // several attempts to connect
	if v := n.Volume("crm"); v.Disk != "failed" {
		t.Errorf("a failed disk was taken back: %v", v)
	}
	n.Stop()
	n.Must("create", "crm", "--force")
	n.Start()
}

// TestPrimaryDiskFails: a primary whose disk fails goes on from its peer; no client
// notices. The role can be handed over from there, and a new disk is filled.
func TestPrimaryDiskFails(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"write error", "flush error"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
			alpha, beta := c.Up(), c.Nodes[1]
			l := newLedger()
			r := startLoad(t, alpha, l)
			r.runFor(700 * time.Millisecond)
			alpha.Faults("crm", script+"\n")
			alpha.Wait("crm", "failed", lostWithin, func(v cluster.Volume) bool { return v.Disk == "failed" })
			r.progress(lostWithin)
			r.runFor(time.Second)
			r.progress(lostWithin)
			if v := alpha.Volume("crm"); v.Role != "primary" || !mentions(v.Reason, "go through beta", "replace-disk") {
				t.Errorf("a primary without its disk: %v", v)
			}
			r.stop()
			judge(t, alpha, l, ledger.Acked)
			alpha.Must("switchover", "crm", "--to", "beta")
			settle(t, beta, l, ledger.Acked)
			drive(t, beta, l, 500*time.Millisecond)
			replaceDisk(t, alpha)
			c.WaitInSync("crm", syncWithin)
			judge(t, beta, l, ledger.Acked)
			c.Equal("crm")
		})
	}
}

// TestPrimaryIsFull: a write that finds no space fails, and that is all: neither
// side keeps half of it for good, and the disk is not failed.
func TestPrimaryIsFull(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
	alpha := c.Up()
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	alpha.Faults("crm", "write nospace\n")
	r.broken()
	alpha.Faults("crm", "")
	if v := alpha.Volume("crm"); v.Role != "primary" || v.Disk != "up-to-date" {
		t.Fatalf("after a write without space: %v", v)
	}
	settle(t, alpha, l, ledger.Acked)
	drive(t, alpha, l, 500*time.Millisecond)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestSlowSecondaryDisk: slow is not failed; nothing is lost or cut off.
func TestSlowSecondaryDisk(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent})
	alpha, beta := c.Up(), c.Nodes[1]
	beta.Faults("crm", "write delay 20ms p=0.2\nflush delay 300ms\n")
	l := newLedger()
	drive(t, alpha, l, 2*time.Second)
	if p := alpha.Volume("crm").Peer("beta"); p.Connection != "connected" || p.OutOfSync != 0 {
		t.Errorf("a slow peer was lost: %+v", p)
	}
	beta.Faults("crm", "")
	c.Equal("crm")
}

// TestHangingSecondaryDisk: a disk that never answers is a lost peer, within a
// bounded time.
func TestHangingSecondaryDisk(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = "write_timeout = \"3s\"\n"
	}})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	beta.Faults("crm", "write hang\n")
	alpha.WaitLost("crm", "beta", 20*time.Second)
	r.progress(20 * time.Second)
	beta.Kill()
	beta.Faults("crm", "")
	beta.Start()
	c.WaitInSync("crm", syncWithin)
	r.progress(cluster.Timeout)
	r.stop()
	judge(t, alpha, l, ledger.Acked)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
