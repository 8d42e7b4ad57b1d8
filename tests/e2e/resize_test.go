package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// sized puts a size into a node's configuration.
func sized(n *cluster.Node, size string) {
	n.Rewrite(func(c *cluster.Config) { c.Volume("crm").Size = size })
}

// TestResize: a volume gets larger, the secondary first and under load, then the primary.
// Nothing that was written is lost, what is new reads as zeroes everywhere, and it is in
// sync without a copy of it.
func TestResize(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	r := startLoad(t, alpha, l)

	alpha.Refused([]string{alpha.ConfigPath, "first"}, "resize", "crm", "96MiB")
	for _, n := range c.Nodes {
		sized(n, "96MiB")
	}
	alpha.Refused([]string{"last", "beta"}, "resize", "crm", "96MiB")
	if beta.Must("resize", "crm", "96MiB"); beta.Volume("crm").Size != 96*mib {
		t.Fatalf("beta: %v", beta.Volume("crm"))
	}
	r.progress(10 * time.Second)
	alpha.WaitPeer("crm", "beta", "waiting for alpha", 10*time.Second, func(p cluster.Peer) bool { return p.Connection == "standalone" })
	alpha.Refused([]string{"--force", "client"}, "resize", "crm", "96MiB")
	r.stop()
	alpha.Must("resize", "crm", "96MiB", "--force")
	v := alpha.Volume("crm")
	if v.Size != 96*mib || v.Role != "primary" {
		t.Fatalf("alpha: %v", v)
	}
	c.WaitInSync("crm", syncWithin)
	judge(t, alpha, l, ledger.Acked)
	if tail := read(t, alpha, "crm", 64*mib, 32*mib); !bytes.Equal(tail, make([]byte, 32*mib)) {
		t.Error("what is new does not read as zeroes")
	}
	c.Equal("crm")
	write(t, alpha, "crm", pattern(3, 8*mib), 80*mib)
	c.Equal("crm")

	t.Log("the size holds after deaths on both sides, and over a change of hands")
	alpha.Kill()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	if got := read(t, beta, "crm", 80*mib, 8*mib); !bytes.Equal(got, pattern(3, 8*mib)) {
		t.Error("beta lacks what was written behind the old end")
	}
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	alpha.Must("resize", "crm", "96MiB") // nothing to do
	for _, n := range c.Nodes {
		sized(n, "32MiB")
	}
	alpha.Refused([]string{"smaller"}, "resize", "crm", "32MiB")
	alpha.Refused([]string{"smaller"}, "resize", "crm", "32MiB", "--force")
}

// TestResizeCutShort: a node that died when only its store was longer says what to do,
// and is brought to the new size by that; one that died right after its metadata were
// is there.
func TestResizeCutShort(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 4*mib), 60*mib)
	beta.Kill()
	write(t, alpha, "crm", pattern(2, 4*mib), 0)
	for _, n := range c.Nodes {
		sized(n, "80MiB")
	}
	if err := os.Truncate(beta.Backing("crm"), 80*mib); err != nil {
		t.Fatal(err)
	}
	beta.Start()
	if v := beta.Volume("crm"); v.Disk != "diskless" || !strings.Contains(v.Reason, "qrbd resize crm") {
		t.Fatalf("%v", v)
	}
	beta.Must("resize", "crm", "80MiB")
	beta.Kill()
	beta.Start()
	alpha.WaitPeer("crm", "beta", "waiting for alpha", 10*time.Second, func(p cluster.Peer) bool { return p.Connection == "standalone" })
	alpha.Must("resize", "crm", "80MiB")
	c.WaitInSync("crm", syncWithin)
	if p := alpha.Volume("crm").Peer("beta"); p.SyncSent+p.SyncCompared > 16*mib {
		t.Errorf("4 MiB had changed, %d bytes were sent and %d compared", p.SyncSent, p.SyncCompared)
	}
	if got := read(t, alpha, "crm", 60*mib, 4*mib); !bytes.Equal(got, pattern(1, 4*mib)) {
		t.Error("data changed")
	}
	c.Equal("crm")
	if got := read(t, alpha, "crm", 64*mib, 16*mib); !bytes.Equal(got, make([]byte, 16*mib)) {
		t.Error("what is new does not read as zeroes")
	}
}

// TestResizeKilled: agents die somewhere in the middle of a resize, secondary and primary,
// again and again. Each comes back with the old size or the new one, is brought to the new
// one by the same command, and nothing that was written is lost.
func TestResizeKilled(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	rnd := rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano())))
	for i := range 4 {
		size := fmt.Sprintf("%dMiB", 65+i)
		end := int64(65+i) * mib
		for _, n := range c.Nodes {
			sized(n, size)
		}
		write(t, alpha, "crm", pattern(uint64(i), mib), int64(i)*8*mib)
		for _, n := range []*cluster.Node{beta, alpha} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				n.RunFor(30*time.Second, "resize", "crm", size)
			}()
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
			n.Kill()
			<-done
			n.Start()
			if v := n.Volume("crm"); v.Size != end && v.Size != end-mib && v.Disk != "diskless" {
				t.Fatalf("%s came back with %v", n.Name, v)
			}
			n.Must("resize", "crm", size)
		}
		alpha.WaitConnected("crm", syncWithin)
		alpha.Must("promote", "crm")
		c.WaitInSync("crm", syncWithin)
		for j := range i + 1 {
			if got := read(t, alpha, "crm", int64(j)*8*mib, mib); !bytes.Equal(got, pattern(uint64(j), mib)) {
				t.Fatalf("round %d: what was written in round %d is lost", i, j)
			}
		}
		if got := read(t, alpha, "crm", end-mib, mib); !bytes.Equal(got, make([]byte, mib)) {
			t.Fatalf("round %d: what is new does not read as zeroes", i)
		}
		c.Equal("crm")
	}
}
