package e2e

import (
	"encoding/json"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestVerify finds a block that went bad in a secondary's store, says which, and
// marks it so that a reconnection repairs it.
func TestVerify(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 32*mib), 0)
	type report struct {
		Peer         string
		Checked, Bad int64
		Ranges       []struct{ Off, Len int64 }
	}
	verify := func() report {
		t.Helper()
		out := alpha.Must("verify", "crm", "beta", "--json")
		var r []report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			var wrapped struct{ Reports []report }
			if err := json.Unmarshal([]byte(out), &wrapped); err != nil {
				t.Fatalf("verify: %v\n%s", err, out)
			}
			r = wrapped.Reports
		}
		if len(r) != 1 || r[0].Peer != "beta" || r[0].Checked != 64*mib {
			t.Fatalf("verify: %s", out)
		}
		return r[0]
	}
	if r := verify(); r.Bad != 0 || len(r.Ranges) != 0 {
		t.Fatalf("equal replicas: %+v", r)
	}
	damage(t, beta, 5*mib+100, 10)
	damage(t, beta, 40*mib, 8*kib)
	r := verify()
	t.Logf("%+v", r)
	if r.Bad != 12*kib || len(r.Ranges) != 2 || r.Ranges[0].Off != 5*mib || r.Ranges[0].Len != 4*kib ||
		r.Ranges[1].Off != 40*mib || r.Ranges[1].Len != 8*kib {
		t.Errorf("verify reports %+v", r)
	}
	if p := alpha.Volume("crm").Peer("beta"); p.OutOfSync != 12*kib {
		t.Errorf("after verify: %+v", p)
	}
	r1 := startLoad(t, alpha, newLedger())
	verify()
	r1.stop()
	alpha.Must("disconnect", "crm", "beta")
	alpha.Must("connect", "crm", "beta")
	beta.Must("connect", "crm", "alpha")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
