package e2e

import (
	"encoding/json"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
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
	verify := func(want int) report {
		t.Helper()
		out, stderr, code := alpha.Run("verify", "crm", "beta", "--json")
		if code != want {
			t.Fatalf("verify: exit code %d, want %d\n%s%s", code, want, out, stderr)
		}
		var r []report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("verify: %v\n%s", err, out)
		}
		if len(r) != 1 || r[0].Peer != "beta" || r[0].Checked != 64*mib {
			t.Fatalf("verify: %s", out)
		}
		return r[0]
	}
	if r := verify(0); r.Bad != 0 || len(r.Ranges) != 0 {
		t.Fatalf("equal replicas: %+v", r)
	}
	damage(t, beta, 5*mib+100, 10)
	damage(t, beta, 40*mib, 8*kib)
	r := verify(1)
	t.Logf("%+v", r)
	if r.Bad != 12*kib || len(r.Ranges) != 2 || r.Ranges[0].Off != 5*mib || r.Ranges[0].Len != 4*kib ||
		r.Ranges[1].Off != 40*mib || r.Ranges[1].Len != 8*kib {
		t.Errorf("verify reports %+v", r)
	}
	if p := alpha.Volume("crm").Peer("beta"); p.OutOfSync != 12*kib {
		t.Errorf("after verify: %+v", p)
	}
	r1 := startLoad(t, alpha, ledger.New(48*mib, 8*mib))
	verify(1)
	r1.stop()
	alpha.Must("disconnect", "crm", "beta") // as verify says
	alpha.Must("connect", "crm", "beta")
	beta.Must("connect", "crm", "alpha")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
