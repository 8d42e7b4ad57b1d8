package volume

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// add makes a third node, which was created, known to those that run.
func (c *cluster) add(name string) {
	c.t.Helper()
	for _, n := range c.names {
		if err := c.v(n).AddPeer(PeerConfig{Name: name, Mode: c.mode}); err != nil {
			c.t.Fatalf("%s: %v", n, err)
		}
	}
	c.names = append(c.names, name)
	c.start(name)
}

// TestAddPeer: a third replica joins a volume under load; nothing that clients asked
// for fails, and all three are equal in the end, also after the primary died.
func TestAddPeer(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.randomWrites("alpha", 1, 50)
	c.create("gamma")
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			for seed := int64(i); ; seed += 4 {
				select {
				case <-stop:
					return
				default:
					buf := blockdev.NewBuffer(8192)
					copy(buf.Bytes(), fill(seed, 8192))
					if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpWrite, Off: seed * 512 % (testSize - 8192), Len: 8192, Buf: buf}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	c.add("gamma")
	c.synced("alpha", "gamma")
	close(stop)
	load.Wait()
	c.flush("alpha")
	c.equal("alpha", "beta")
	c.equal("alpha", "gamma")
	c.synced("beta", "gamma")
	c.randomWrites("alpha", 7, 30)
	c.kill("alpha")
	c.await("gamma", func(s Status) bool {
		p := peerOf(s, "beta")
		return p.Replication == "established" && p.OutOfSync == 0 && s.Disk != "inconsistent"
	})
	c.promote("gamma", PromoteOptions{PeerFenced: true})
	c.flush("gamma")
	c.equal("beta", "gamma")
}

// TestAddPeerIsRemembered: the peer is in the metadata, every block out of sync toward
// it until a sync has said otherwise, also after a crash.
func TestAddPeerIsRemembered(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	if err := c.v("alpha").AddPeer(PeerConfig{Name: "gamma"}); err != nil {
		t.Fatal(err)
	}
	var refused *Error
	if err := c.v("alpha").AddPeer(PeerConfig{Name: "gamma"}); !errors.As(err, &refused) {
		t.Errorf("a second time: %v", err)
	}
	c.write("alpha", 0, fill(1, 4096), blockdev.FUA) // the generation begins without it
	c.kill("alpha")
	c.create("gamma")
	c.names = append(c.names, "gamma")
	c.start("alpha")
	if p := peerOf(c.v("alpha").Status(), "gamma"); p.OutOfSync != testSize {
		t.Errorf("after a crash %d bytes count as out of sync, want all %d", p.OutOfSync, testSize)
	}
	c.promote("alpha", PromoteOptions{PeerFenced: true})
	c.start("gamma")
	c.synced("alpha", "gamma")
	c.equal("alpha", "gamma")
}

// TestTune: other settings hold at once, for the sync that runs too.
func TestTune(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.part("alpha", "beta")
	for off := int64(0); off+1<<20 <= testSize; off += 1 << 20 {
		c.write("alpha", off, fill(off, 1<<20), 0)
	}
	slow := c.v("alpha").opt.Tuning()
	slow.SyncRate, slow.SyncFloor = 64<<10, 4<<10
	c.v("alpha").Tune(slow)
	c.heal("alpha", "beta")
	c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Replication == "sync-source" })
	if p := peerOf(c.await("alpha", func(s Status) bool { return peerOf(s, "beta").SyncTotal > 0 }), "beta"); p.SyncDone > p.SyncTotal/2 {
		t.Errorf("%d of %d bytes are copied at 64 KiB/s", p.SyncDone, p.SyncTotal)
	}
	fast := slow
	fast.SyncRate, fast.WriteTimeout = 0, 2*time.Second
	c.v("alpha").Tune(fast)
	c.synced("alpha", "beta")
	c.equal("alpha", "beta")
}
