package e2e

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// TestResyncMovesWhatChanged: 16 MiB written while apart on a 4 GiB volume cost
// at most 24 MiB of resync, however the peer had gone.
func TestResyncMovesWhatChanged(t *testing.T) {
	t.Parallel()
	for _, how := range []struct {
		name  string
		leave func(n *cluster.Node)
	}{
		{"stopped", (*cluster.Node).Stop},
		{"killed", (*cluster.Node).Kill},
	} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Size: "4GiB", Configure: quick})
			alpha := c.Up()
			beta := c.Nodes[1]
			write(t, alpha, "crm", pattern(1, 64*mib), 512*mib)
			how.leave(beta)
			alpha.WaitLost("crm", "beta", lostWithin)
			scatter(t, alpha, 16*mib, 64*kib, 4*gib)
			if got := alpha.Volume("crm").Peer("beta").OutOfSync; got < 15*mib || got > 24*mib {
				t.Errorf("out of sync: %d bytes", got)
			}
			beta.Start()
			c.WaitInSync("crm", syncWithin)
			p := alpha.Volume("crm").Peer("beta")
			t.Logf("written 16 MiB, resynced %.1f MiB by rule %s", float64(p.SyncSent)/mib, p.LastSync)
			if p.SyncSent < 15*mib || p.SyncSent > 24*mib {
				t.Errorf("resync sent %d bytes", p.SyncSent)
			}
			c.Equal("crm")
		})
	}
}

// scatter writes total bytes in pieces at distinct random places below size.
func scatter(t *testing.T, n *cluster.Node, total, piece int, size int64) {
	t.Helper()
	d := n.Dial("crm")
	defer d.Close()
	data := pattern(rand.Uint64(), piece)
	slots := size / int64(total/piece)
	for i := range total / piece {
		off := int64(i)*slots + rand.Int64N((slots-int64(piece))/4096)*4096
		if err := d.WriteAt(data, off, false); err != nil {
			t.Fatalf("%s: write at %d: %v", n.Name, off, err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}

const extent = 4 * mib // of the activity map

// TestResyncAfterPrimaryCrash: at most the activity map's extents are compared,
// and only blocks that differ are sent.
func TestResyncAfterPrimaryCrash(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Size: "4GiB", Program: cluster.CrashAgent, Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = "activity_idle = \"1s\"\n"
	}})
	alpha := c.Up()
	beta := c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 200*mib), 0)
	// The 50 extents of it go cold; then some are written again.
	alpha.Wait("crm", "no extent active", 20*time.Second, func(v cluster.Volume) bool { return v.ActiveExt == 0 })
	for i := range 6 {
		write(t, alpha, "crm", pattern(uint64(10+i), 64*kib), int64(i)*30*mib)
	}
	active := alpha.Volume("crm").ActiveExt
	if active < 1 || active > 12 {
		t.Errorf("%d extents are active after six writes", active)
	}
	alpha.Kill()
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	var compared int64
	for _, n := range c.Nodes {
		p := n.Volume("crm").Peers[0]
		t.Logf("%s: %d extents were active; compared %.1f MiB, sent %.1f MiB, rule %s", n.Name, active,
			float64(p.SyncCompared)/mib, float64(p.SyncSent)/mib, p.LastSync)
		compared += p.SyncCompared
		if p.SyncCompared > active*extent {
			t.Errorf("%s: %d bytes were compared, more than the active extents", n.Name, p.SyncCompared)
		}
		if p.SyncSent > mib {
			t.Errorf("%s: %d bytes were sent of data that was equal", n.Name, p.SyncSent)
		}
	}
	if compared == 0 {
		t.Error("nothing was compared after the crash of a primary with active extents")
	}
	c.Equal("crm")
}

// TestResyncResumes: an interrupted resync goes on where it was.
func TestResyncResumes(t *testing.T) {
	t.Parallel()
	const total = 256 * mib
	for _, how := range []struct {
		name      string
		links     bool
		interrupt func(c *cluster.Cluster)
		resume    func(c *cluster.Cluster)
		// The source writes its bits every five seconds: what it had cleared
		// since is copied again after its own crash.
		after time.Duration
		again int64 // bytes of what was done that may be copied again
	}{
		{"target killed", false,
			func(c *cluster.Cluster) { c.Node("beta").Kill() },
			func(c *cluster.Cluster) { c.Node("beta").Start() }, 0, 40 * mib}, // done counts what no flush has confirmed: a second's worth, 32 MiB
		{"source killed", false,
			func(c *cluster.Cluster) { c.Node("alpha").Kill() },
			func(c *cluster.Cluster) { c.Node("alpha").Start() }, 5500 * time.Millisecond, 192 * mib},
		{"link cut", true,
			func(c *cluster.Cluster) { c.CutBoth("alpha", "beta") },
			func(c *cluster.Cluster) { c.Heal("alpha", "beta") }, 0, 40 * mib},
	} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Size: "1GiB", Links: how.links, Configure: func(c *cluster.Config) {
				quick(c)
				c.Volume("crm").Extra = "resync_rate_max = \"32MiB\"\n"
			}})
			alpha, beta := c.Up(), c.Nodes[1]
			beta.Stop()
			alpha.WaitLost("crm", "beta", lostWithin)
			write(t, alpha, "crm", pattern(3, total), 64*mib)
			beta.Start()
			inSync := func(p cluster.Peer) bool { return p.Replication == "sync-source" && p.SyncDone >= 64*mib }
			alpha.WaitPeer("crm", "beta", "synced in part", syncWithin, inSync)
			time.Sleep(how.after)
			p := alpha.WaitPeer("crm", "beta", "still syncing", 0, inSync)
			how.interrupt(c)
			if beta.Running() {
				if v := beta.Volume("crm"); v.Disk != "inconsistent" {
					t.Errorf("half synced: %v", v)
				}
				beta.WaitLost("crm", "alpha", lostWithin)
				beta.Refused([]string{"inconsistent"}, "promote", "crm", "--peer-fenced")
			}
			if alpha.Running() {
				alpha.WaitLost("crm", "beta", lostWithin)
			}
			how.resume(c)
			c.WaitInSync("crm", syncWithin)
			sent := alpha.Volume("crm").Peer("beta").SyncSent
			t.Logf("%d MiB to do, %d done when interrupted, then %d sent", p.SyncTotal/mib, p.SyncDone/mib, sent/mib)
			if sent > total-p.SyncDone+how.again || sent >= total {
				t.Errorf("the second sync sent %d bytes of %d, of which %d were done", sent, total, p.SyncDone)
			}
			c.Equal("crm")
			if v := alpha.Volume("crm"); v.Role != "primary" {
				alpha.Must("promote", "crm")
			}
			if got := read(t, alpha, "crm", 64*mib, total); !bytes.Equal(got, pattern(3, total)) {
				t.Error("data changed")
			}
		})
	}
}

// TestWritesDuringResync: load on the very blocks that are being copied.
func TestWritesDuringResync(t *testing.T) {
	eachProtocol(t, func(t *testing.T, k crashCase) {
		c := cluster.New(t, cluster.Options{Protocol: k.protocol, Size: "256MiB", Configure: func(c *cluster.Config) {
			quick(c)
			c.Volume("crm").Extra = "resync_rate_max = \"12MiB\"\n"
		}})
		l := newLedger()
		alpha := c.Up()
		beta := c.Nodes[1]
		beta.Stop()
		r := startLoad(t, alpha, l)
		r.runFor(1500 * time.Millisecond)
		beta.Start()
		alpha.WaitPeer("crm", "beta", "syncing", syncWithin, func(p cluster.Peer) bool { return p.Replication == "sync-source" })
		for syncing := true; syncing; {
			r.runFor(200 * time.Millisecond)
			syncing = alpha.Volume("crm").Peer("beta").Replication != "established"
		}
		r.progress(cluster.Timeout)
		r.stop()
		c.WaitInSync("crm", syncWithin)
		judge(t, alpha, l, ledger.Acked)
		c.Equal("crm")
		alpha.Must("switchover", "crm", "--to", "beta")
		judge(t, beta, l, ledger.Acked)
	})
}

// TestInvalidate: a replica that is not trusted is copied anew.
func TestInvalidate(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha := c.Up()
	beta := c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	c.Equal("crm")
	alpha.Refused([]string{"primary"}, "invalidate", "crm")
	damage(t, beta, 3*mib, 64*kib)
	beta.Must("invalidate", "crm")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// flood writes 256 KiB at a time, 32 at once, to 256 MiB from off on, as fast as
// it goes.
func flood(t *testing.T, n *cluster.Node, off int64, d time.Duration) {
	t.Helper()
	disk := n.Dial("crm")
	defer disk.Close()
	data := pattern(1, 256*kib)
	var wg sync.WaitGroup
	var total atomic.Int64
	end := time.Now().Add(d)
	for range 32 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := disk.WriteAt(data, off+rand.Int64N(1024)*256*kib, false); err != nil {
					t.Error(err)
					return
				}
				total.Add(256 * kib)
			}
		})
	}
	wg.Wait()
	t.Logf("%d MiB/s", total.Load()/mib/int64(d.Seconds()))
}

// TestHugeVolume: an empty volume of 1 TiB is in sync within seconds, takes no
// space, starts at once, and needs little memory under load.
func TestHugeVolume(t *testing.T) {
	c := cluster.New(t, cluster.Options{Size: "1TiB"})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	c.Create("crm")
	c.Start()
	alpha.WaitConnected("crm", 10*time.Second)
	began := time.Now()
	alpha.Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)
	t.Logf("first sync of 1 TiB: %v", time.Since(began).Round(time.Millisecond))
	for _, n := range c.Nodes {
		used, err := cluster.Allocated(n.Backing("crm"))
		if err != nil || used > mib {
			t.Errorf("%s: an empty volume takes %d bytes (%v)", n.Name, used, err)
		}
	}
	l := ledger.New(701*gib, 256*mib) // between the places below
	r := startLoad(t, alpha, l)
	d := alpha.Dial("crm")
	for off := int64(0); off < 1024*gib; off += 4 * gib { // extents all over the disk
		if err := d.WriteAt(pattern(uint64(off), 4*kib), off, false); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	flood(t, alpha, 900*gib, 3*time.Second)
	r.stop()
	judge(t, alpha, l, ledger.Acked)
	for _, n := range c.Nodes {
		now, peak := n.Resident()
		t.Logf("%s: %d MiB resident, peak %d MiB", n.Name, now/mib, peak/mib)
		if peak > 200*mib {
			t.Errorf("%s: %d MiB resident under load, more than 200", n.Name, peak/mib)
		}
	}
	c.Equal("crm")
	for _, n := range []*cluster.Node{beta, alpha} {
		n.Kill()
		began := time.Now()
		n.Start()
		took := time.Since(began)
		t.Logf("%s: answers %v after its start", n.Name, took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("%s needs %v to start", n.Name, took)
		}
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
