package volume

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/protocol"
)

// contents reads a node's store past its volume.
func (c *cluster) contents(name string, off, n int64) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if err := c.nodes[name].store.ReadAt(b, off); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// TestForcedOverACopyThatHangs: a sync target is promoted by force while the store
// has not finished what the source sent. It must not land on what is written then.
func TestForcedOverACopyThatHangs(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	d := c.faulty("beta")
	t.Cleanup(func() { d.Set() })
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.part("alpha", "beta")
	c.write("alpha", 0, fill(1, 4096), 0)
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang, Count: 1})
	c.heal("alpha", "beta")
	c.await("beta", func(Status) bool { return d.Waiting() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := c.v("alpha").Demote(ctx); err != nil {
		t.Fatal(err)
	}
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Role == "secondary" })
	err := c.v("beta").Promote(ctx, PromoteOptions{Force: true, PeerFenced: true})
	if err == nil {
		t.Error("promoted while the store has not finished what the source sent")
		c.write("beta", 0, fill(2, 4096), 0)
	} else if !strings.Contains(err.Error(), "has not finished") {
		t.Error(err)
	}
	d.Set()
	if err != nil {
		c.promote("beta", PromoteOptions{Force: true, PeerFenced: true})
		c.write("beta", 0, fill(2, 4096), 0)
	}
	time.Sleep(50 * time.Millisecond)
	if !bytes.Equal(c.contents("beta", 0, 4096), fill(2, 4096)) {
		t.Error("the source's block landed on what was written after the promotion")
	}
}

// TestLateWriteOfALostPrimary: a write of a primary that died hangs in a secondary's
// store. It must not land on what the next primary sends.
func TestLateWriteOfALostPrimary(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta", "gamma")
	d := c.faulty("gamma")
	t.Cleanup(func() { d.Set() })
	c.promote("alpha", PromoteOptions{Force: true})
	for _, p := range [][2]string{{"alpha", "beta"}, {"alpha", "gamma"}, {"beta", "gamma"}} {
		c.synced(p[0], p[1])
	}
	c.randomWrites("alpha", 1, 20)
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang, Count: 1})
	buf := blockdev.NewBuffer(4096)
	copy(buf.Bytes(), fill(3, 4096))
	c.v("alpha").Submit(&blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: buf, Done: func(*blockdev.Request, error) {}}) // never answered
	c.await("gamma", func(Status) bool { return d.Waiting() == 1 })
	c.kill("alpha")
	c.promote("beta", PromoteOptions{PeerFenced: true})
	for range 200 { // it would settle if it could; it must not before the store is done
		if p := peerOf(c.v("beta").Status(), "gamma"); p.Replication == "established" && p.OutOfSync == 0 {
			t.Error("in sync over a write that hangs")
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.write("beta", 0, fill(7, 4096), 0)
	d.Set()
	c.synced("beta", "gamma")
	c.flush("beta")
	c.equal("beta", "gamma")
	if !bytes.Equal(c.contents("gamma", 0, 4096), fill(7, 4096)) {
		t.Error("the lost primary's write landed on its successor's")
	}
}

// TestReadAcrossADemotion: a read that hangs in the store while the role is given up
// is not answered with what is there by then.
func TestReadAcrossADemotion(t *testing.T) {
	c, d := faultyPair(t, "alpha")
	t.Cleanup(func() { d.Set() })
	d.Set(fault.Rule{Op: blockdev.OpRead, Action: fault.Hang, Count: 1})
	done := make(chan error, 1)
	go func() { done <- c.try("alpha", blockdev.OpRead, 0, 4096) }()
	c.await("alpha", func(Status) bool { return d.Waiting() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, to := range []string{"beta", "alpha"} { // and comes back: it is not the same
		if err := c.v(map[string]string{"alpha": "beta", "beta": "alpha"}[to]).Switchover(ctx, to); err != nil {
			t.Fatal(err)
		}
		c.synced("alpha", "beta")
		c.write(to, 0, fill(4, 4096), 0)
	}
	d.Set()
	if err := <-done; !errors.Is(err, blockdev.ErrShutdown) {
		t.Errorf("answered with %v", err)
	}
}
