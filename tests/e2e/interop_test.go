package e2e

import (
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/interop"
)

// TestForeignClients lets other people's NBD clients at a replicated volume, and
// compares what they left on both sides.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Size: "256MiB"})
	alpha := c.Up()
	interop.Run(t, interop.Target{Addr: alpha.Config.Volume("crm").Export, Export: "crm"})
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	if p := alpha.Volume("crm").Peer("beta"); p.SyncSent != 0 {
		t.Errorf("the peer was lost meanwhile: %+v", p)
	}
}
