package e2e

import (
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// failDisk has a node's disk fail under the load and waits until it is known.
func failDisk(n *cluster.Node, script string) {
	n.Faults("crm", script+"\n")
	n.Wait("crm", "failed", lostWithin, func(v cluster.Volume) bool { return v.Disk == "failed" })
}

// TestDiskReplacedUnderPrimary: the disk of a primary fails, is replaced and filled
// while clients go on; no request fails, and both copies are equal in the end.
func TestDiskReplacedUnderPrimary(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"C", "A"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: func(c *cluster.Config) {
				quick(c)
				c.Volume("crm").Protocol = mode
			}})
			alpha := c.Up()
			l := newLedger()
			r := startLoad(t, alpha, l)
			r.runFor(500 * time.Millisecond)
			alpha.Refused([]string{"not failed"}, "replace-disk", "crm")
			failDisk(alpha, "flush error")
			r.progress(lostWithin)
			alpha.Faults("crm", "")
			alpha.Must("replace-disk", "crm")
			c.WaitInSync("crm", syncWithin)
			r.progress(lostWithin)
			r.stop()
			c.WaitInSync("crm", syncWithin)
			judge(t, alpha, l, ledger.Acked)
			c.Equal("crm")
			// The new disk is a copy of its own.
			c.Nodes[1].Kill()
			drive(t, alpha, l, 500*time.Millisecond)
			judge(t, alpha, l, ledger.Acked)
			c.Nodes[1].Start()
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
		})
	}
}

// TestDiskReplacedOnSecondary: the agent goes on, and so do the primary's clients.
func TestDiskReplacedOnSecondary(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	failDisk(beta, "write error")
	alpha.WaitPeer("crm", "beta", "known to have a failed disk", lostWithin, func(p cluster.Peer) bool {
		return p.Connection == "connected" && p.Disk == "failed"
	})
	if p := beta.Volume("crm").Peer("alpha"); p.Connection != "connected" || p.Disk != "up-to-date" {
		t.Errorf("as the node with the failed disk sees the other: %+v", p)
	}
	beta.Faults("crm", "")
	beta.Must("replace-disk", "crm")
	c.WaitInSync("crm", syncWithin)
	r.progress(lostWithin)
	r.stop()
	judge(t, alpha, l, ledger.Acked)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestAllDisksFail: nothing is acknowledged any more, and clients are told so.
func TestAllDisksFail(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	failDisk(alpha, "write error")
	r.progress(lostWithin)
	failDisk(beta, "write error")
	r.broken()
	alpha.Wait("crm", "without data", lostWithin, func(v cluster.Volume) bool { return mentions(v.Reason, "No copy of the data") })
	alpha.Refused([]string{"nothing to fill"}, "replace-disk", "crm")
	if d, err := alpha.TryDial("crm"); err == nil {
		buf := make([]byte, 4096)
		if err := d.WriteAt(buf, 0, false); err == nil {
			t.Error("a write that nobody can hold was acknowledged")
		}
		if err := d.ReadAt(buf, 0); err == nil {
			t.Error("a read that nobody can answer was answered")
		}
		d.Close()
	}
	alpha.Must("demote", "crm", "--force")
	alpha.Refused([]string{}, "promote", "crm", "--force")
}

// TestSuspendedUntilPeerReturns: a primary without its disk loses its peer; clients
// wait, and go on when it is back.
func TestSuspendedUntilPeerReturns(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = "on_no_data = \"suspend-io\"\n"
	}})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	failDisk(alpha, "write error")
	r.progress(lostWithin)
	beta.Pause()
	alpha.Wait("crm", "without data", lostWithin, func(v cluster.Volume) bool { return mentions(v.Reason, "No copy of the data") })
	beta.Resume()
	alpha.Wait("crm", "with data again", lostWithin, func(v cluster.Volume) bool { return mentions(v.Reason, "go through beta") })
	r.progress(lostWithin)
	alpha.Faults("crm", "")
	alpha.Must("replace-disk", "crm")
	c.WaitInSync("crm", syncWithin)
	r.stop()
	judge(t, alpha, l, ledger.Acked)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestHangingPrimaryDisk: a disk that does not answer has failed after the disk
// timeout. Clients are disconnected, since the goroutine that reads a connection may
// itself be stuck, and go on when they are back.
func TestHangingPrimaryDisk(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"write hang", "flush hang", "read hang"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: func(c *cluster.Config) {
				quick(c)
				c.Volume("crm").Extra = "disk_timeout = \"2s\"\n"
			}})
			alpha, beta := c.Up(), c.Nodes[1]
			l := newLedger()
			r := startLoad(t, alpha, l)
			r.runFor(500 * time.Millisecond)
			failDisk(alpha, script)
			r.join() // its connection may be stuck in the disk: it is cut
			judge(t, alpha, l, ledger.Acked)
			settle(t, alpha, l, ledger.Acked)
			drive(t, alpha, l, 300*time.Millisecond)
			alpha.Refused([]string{"stuck"}, "replace-disk", "crm")
			alpha.Kill()
			beta.Must("promote", "crm", "--peer-fenced")
			alpha.Faults("crm", "")
			alpha.Start()
			judge(t, beta, l, ledger.Acked)
			alpha.Must("replace-disk", "crm")
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
		})
	}
}

// TestUnreadableBlock: what the primary's disk cannot read is read from the peer, and
// written anew; the disk is not given up for it.
func TestUnreadableBlock(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Program: cluster.FaultAgent, Configure: quick})
	alpha := c.Up()
	l := newLedger()
	drive(t, alpha, l, 300*time.Millisecond)
	alpha.Faults("crm", "read error p=0.3\n")
	r := startLoad(t, alpha, l)
	r.runFor(700 * time.Millisecond)
	r.stop()
	judge(t, alpha, l, ledger.Acked)
	alpha.Faults("crm", "")
	if v := alpha.Volume("crm"); v.Disk != "up-to-date" || v.Role != "primary" {
		t.Errorf("after read errors: %v", v)
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
