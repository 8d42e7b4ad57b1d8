package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestCongestion: beta, under protocol A, stands still, and takes nothing of what clients
// write. With on_congestion = "pull-ahead" alpha goes on as fast as its disk, and beta
// catches up by itself; with "block" writes wait once send_buffer is full, and none is lost.
func TestCongestion(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"pull-ahead", "block"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Protocol: "A", Configure: func(c *cluster.Config) {
				c.Extra = "peer_timeout = \"30s\"\n" // it stands still, and is not lost
				c.Volume("crm").Extra = "send_buffer = \"1MiB\"\non_congestion = \"" + policy + "\"\nwrite_timeout = \"30s\"\n"
			}})
			alpha := c.Up()
			beta := c.Node("beta")
			d := alpha.Dial("crm")
			beta.Pause()
			const writes, size = 256, 64 * kib // 16 MiB
			done := make(chan error, 1)
			go func() {
				for i := range int64(writes) {
					if err := d.WriteAt(pattern(uint64(i), size), i*size, false); err != nil {
						done <- err
						return
					}
				}
				done <- d.Flush()
			}()
			if policy == "block" {
				alpha.Wait("crm", "congested", cluster.Timeout, func(v cluster.Volume) bool { return v.Congested })
				select {
				case err := <-done:
					t.Fatalf("16 MiB were written while the peer took at most 1 MiB: %v", err)
				case <-time.After(500 * time.Millisecond):
				}
				beta.Resume()
			}
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(cluster.Timeout):
				t.Fatal("writes still wait")
			}
			d.Close()
			if policy == "pull-ahead" {
				v := alpha.Volume("crm")
				if p := v.Peer("beta"); p.Replication != "ahead" || p.OutOfSync < writes*size-4*mib {
					t.Errorf("the peer stands still, and it is %+v", p)
				}
				alpha.Refused([]string{"ahead"}, "switchover", "crm", "--to", "beta")
				beta.Resume()
			}
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
			alpha.Must("switchover", "crm", "--to", "beta")
			got := read(t, beta, "crm", 0, writes*size)
			for i := range writes {
				if !bytes.Equal(got[i*size:][:size], pattern(uint64(i), size)) {
					t.Fatalf("write %d is not on beta", i)
				}
			}
		})
	}
}
