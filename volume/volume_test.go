package volume

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

const testSize = 64<<20 + 4096*3

func twoInSync(t *testing.T, mode protocol.Mode) *cluster {
	c := newCluster(t, testSize, mode, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	return c
}

func TestWriteReachesBoth(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeA, protocol.ModeB, protocol.ModeC} {
		t.Run(mode.String(), func(t *testing.T) {
			c := twoInSync(t, mode)
			c.randomWrites("alpha", 1, 200)
			c.write("alpha", 0, fill(2, 3<<20), blockdev.FUA)
			if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpZero, Off: 4096, Len: 8192}); err != nil {
				t.Fatal(err)
			}
			if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpTrim, Off: 1 << 20, Len: 100000}); err != nil {
				t.Fatal(err)
			}
			c.flush("alpha")
			c.await("alpha", func(s Status) bool { return peerOf(s, "beta").UnackedOps == 0 })
			c.equal("alpha", "beta")
		})
	}
}

func TestResyncAfterParting(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 100)
	c.part("alpha", "beta")
	c.randomWrites("alpha", 2, 100)
	if s := c.v("alpha").Status(); peerOf(s, "beta").OutOfSync == 0 {
		t.Fatalf("nothing is out of sync: %+v", s)
	}
	c.heal("alpha", "beta")
	c.synced("alpha", "beta")
	c.flush("alpha")
	c.equal("alpha", "beta")
}

func TestFailover(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 100)
	c.flush("alpha")
	c.kill("alpha")
	err := c.v("beta").Promote(context.Background(), PromoteOptions{})
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Text, "--peer-fenced") {
		t.Fatalf("promote without the peer: %v", err)
	}
	c.promote("beta", PromoteOptions{PeerFenced: true})
	c.equal("alpha", "beta")
	c.randomWrites("beta", 3, 100)
	c.start("alpha")
	c.synced("beta", "alpha")
	c.flush("beta")
	c.equal("alpha", "beta")
}

func TestSplitBrain(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 50)
	c.part("alpha", "beta")
	c.promote("beta", PromoteOptions{PeerFenced: true})
	c.randomWrites("alpha", 2, 50)
	c.randomWrites("beta", 3, 50)
	c.heal("alpha", "beta")
	for _, n := range []string{"alpha", "beta"} {
		other := map[string]string{"alpha": "beta", "beta": "alpha"}[n]
		c.await(n, func(s Status) bool {
			p := peerOf(s, other)
			return p.Connection == "standalone" && strings.Contains(p.Reason, "split brain") && strings.Contains(p.Reason, "--discard-my-data")
		})
	}
	ctx := context.Background()
	if err := c.v("beta").Connect(ctx, "", true); err == nil {
		t.Fatal("a primary discarded its data")
	}
	if err := c.v("beta").Demote(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.v("beta").Connect(ctx, "", true); err != nil {
		t.Fatal(err)
	}
	c.synced("alpha", "beta")
	c.flush("alpha")
	c.equal("alpha", "beta")
}

func TestSwitchover(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 50)
	for i := range 6 {
		from, to := "alpha", "beta"
		if i%2 == 1 {
			from, to = to, from
		}
		if err := c.v(from).Switchover(context.Background(), to); err != nil {
			t.Fatal(err)
		}
		c.await(to, func(s Status) bool { return s.Role == "primary" })
		c.randomWrites(to, int64(i+10), 30)
		c.flush(to)
		c.equal("alpha", "beta")
	}
}

func TestCleanRestart(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 50)
	if err := c.v("alpha").Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.nodes["alpha"].vol = nil
	c.mu.Unlock()
	c.start("alpha")
	c.synced("alpha", "beta")
	c.promote("alpha", PromoteOptions{})
	c.randomWrites("alpha", 2, 50)
	c.flush("alpha")
	c.equal("alpha", "beta")
}

func TestThreeNodes(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta", "gamma")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.synced("alpha", "gamma")
	c.synced("beta", "gamma")
	c.randomWrites("alpha", 1, 100)
	c.kill("alpha")
	c.promote("beta", PromoteOptions{PeerFenced: true})
	c.synced("beta", "gamma")
	c.randomWrites("beta", 2, 100)
	c.flush("beta")
	c.equal("beta", "gamma")
	c.start("alpha")
	c.synced("beta", "alpha")
	c.synced("gamma", "alpha")
	c.kill("gamma")
	c.randomWrites("beta", 3, 50)
	c.start("gamma")
	c.synced("beta", "gamma")
	c.flush("beta")
	c.equal("beta", "gamma")
	c.equal("beta", "alpha")
}

func TestVerifyFindsDifference(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 100)
	c.flush("alpha")
	if err := c.nodes["beta"].store.WriteAt(fill(9, 512), 5<<20+512, 0); err != nil {
		t.Fatal(err)
	}
	r, err := c.v("alpha").Verify(context.Background(), VerifyOptions{Peer: "beta"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Bad != 4096 || len(r.Ranges) != 1 || r.Ranges[0].Off != 5<<20 || r.Next != testSize {
		t.Fatalf("report %+v", r)
	}
	c.part("alpha", "beta")
	c.heal("alpha", "beta")
	c.synced("alpha", "beta")
	c.equal("alpha", "beta")
}

// TestPeerAddedAfterCrash: a node that lost power while it was primary comes back
// with a peer more in its configuration.
func TestPeerAddedAfterCrash(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.randomWrites("alpha", 1, 20)
	c.kill("alpha")
	c.names = append(c.names, "gamma")
	c.create("gamma")
	c.start("alpha")
	c.start("gamma")
	c.promote("alpha", PromoteOptions{PeerFenced: true})
	c.synced("alpha", "gamma")
	c.flush("alpha")
	c.equal("alpha", "gamma")
}
