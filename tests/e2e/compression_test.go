package e2e

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
	"github.com/qrbd/qrbd/tests/cluster"
)

// TestCompression: alpha is told to compress what it sends to beta while the agents run.
// Writes and a resync of what compresses take less on the wire by far, those of what does
// not are what they were, and the disks are equal; the other direction stays as it is.
func TestCompression(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Configure: quick, Transport: transport, Compression: "none"})
			alpha, beta := c.Up(), c.Nodes[1]
			sent := traffic(t, alpha, func() { write(t, alpha, "crm", compresstest.Pages(1, 8*mib), 0) })
			if sent.saved != 0 || sent.link < 8*mib {
				t.Errorf("without: %+v", sent)
			}
			alpha.Rewrite(func(f *cluster.Config) { f.Peer("beta").Compression = "zstd" })
			if out := alpha.Must("reload"); !strings.Contains(out, "compression") {
				t.Errorf("reload: %s", out)
			}
			sent = traffic(t, alpha, func() { write(t, alpha, "crm", compresstest.Pages(2, 8*mib), 8*mib) })
			if sent.saved < 4*mib || sent.link > 4*mib {
				t.Errorf("8 MiB of pages: %+v", sent)
			}
			sent = traffic(t, alpha, func() { write(t, alpha, "crm", pattern(3, 8*mib), 16*mib) })
			if sent.saved > mib/4 || sent.link < 8*mib {
				t.Errorf("8 MiB of noise: %+v", sent)
			}
			c.Equal("crm")

			beta.Kill()
			alpha.WaitLost("crm", "beta", lostWithin)
			write(t, alpha, "crm", compresstest.Pages(4, 8*mib), 4*mib)
			write(t, alpha, "crm", pattern(5, 4*mib), 24*mib)
			sent = traffic(t, alpha, func() {
				beta.Start()
				c.WaitInSync("crm", syncWithin)
			})
			if p := alpha.Volume("crm").Peer("beta"); p.SyncSent < 12*mib {
				t.Errorf("resync of %d bytes, by %s", p.SyncSent, p.LastSync)
			}
			if sent.saved < 4*mib {
				t.Errorf("resync: %+v", sent)
			}
			c.Equal("crm")
			if out := alpha.Must("status"); !strings.Contains(out, "sent compressed: beta") || !strings.Contains(out, "compressed to") {
				t.Errorf("status:\n%s", out)
			}

			alpha.Must("switchover", "crm", "--to", "beta")
			sent = traffic(t, beta, func() { write(t, beta, "crm", compresstest.Pages(6, 4*mib), 32*mib) })
			if sent.saved != 0 || sent.link < 4*mib {
				t.Errorf("beta, which was not told to: %+v", sent)
			}
			if !bytes.Equal(read(t, beta, "crm", 8*mib, 4*mib), compresstest.Pages(4, 8*mib)[4*mib:]) {
				t.Error("beta reads something else")
			}
			c.Equal("crm")
		})
	}
}

// sending is what went to a node's only peer.
type sending struct {
	link  uint64 // bytes of the session, with all that a transport adds
	saved uint64 // bytes that compression took off
}

// traffic returns what a node sends while do runs. A session that begins anew counts from
// zero.
func traffic(t *testing.T, n *cluster.Node, do func()) sending {
	t.Helper()
	counted := func() sending {
		var st control.NodeStatus
		if err := json.Unmarshal([]byte(n.Must("status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return sending{st.Links[0].BytesSent, st.Volumes[0].Peers[0].SentSaved}
	}
	before := counted()
	do()
	after := counted()
	if after.link < before.link {
		before.link = 0
	}
	return sending{after.link - before.link, after.saved - before.saved}
}
