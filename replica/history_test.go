package replica

import (
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// TestLongAbsence: gamma is away while the others part, write and change places more
// often than the history is long. What they know of gamma passes between them, so
// that it is brought up to date by bitmap by whoever is left.
func TestLongAbsence(t *testing.T) {
	w := newWorld(protocol.ModeC, []string{"alpha", "beta", "gamma"})
	do := func(lines ...[]string) {
		for _, f := range lines {
			if err := w.command(f); err != nil {
				t.Fatal(err)
			}
			w.run()
		}
	}
	for _, n := range w.names {
		do([]string{"ids", n, "100", "disk:6"})
	}
	do([]string{"link", "alpha", "beta"}, []string{"link", "alpha", "gamma"}, []string{"promote", "alpha"}, []string{"crash", "gamma"},
		[]string{"write", "alpha", "0", "4096"})
	from, to := "alpha", "beta"
	for range 2 * protocol.HistoryMax {
		do([]string{"cut", from, to}, []string{"write", from, "4096", "4096"}, []string{"link", from, to}, []string{"switchover", from, to})
		from, to = to, from
	}
	alpha := w.nodes["alpha"].m
	if len(alpha.history) != protocol.HistoryMax || alpha.history[protocol.HistoryMax-1] != 100 {
		t.Fatalf("the history is %v: it should be full, gamma's generation still in it", alpha.history)
	}
	do([]string{"crash", to}, []string{"boot", "gamma"}, []string{"link", from, "gamma"})
	x := w.nodes[from].m
	p := x.peers[w.nodes[from].peer("gamma")]
	if p.lastWhy != RuleBitmapSelf || p.repl != protocol.Established {
		w.status()
		t.Fatalf("%s and gamma: rule %s, %s\n%s", from, p.lastWhy, p.repl, w.out.String())
	}
}

// TestForgottenGeneration: where the generation at which a replica stayed behind, or
// that two sides had in common, has fallen out of the history, nothing is copied in any
// direction.
func TestForgottenGeneration(t *testing.T) {
	long := make([]protocol.Generation, protocol.HistoryMax)
	for i := range long {
		long[i] = protocol.Generation(1000 + i)
	}
	for _, old := range []protocol.Hello{
		{Current: 5, Disk: protocol.Consistent},
		{Current: 5, Disk: protocol.Consistent, History: []protocol.Generation{4, 3}},
		{Current: 5, Disk: protocol.Consistent, Slots: []protocol.PeerSlot{{Name: "alpha", Bitmap: 4, Dirty: 9}}},
	} {
		now := protocol.Hello{Current: 2000, Disk: protocol.UpToDate, Role: protocol.Primary, History: long}
		d := Compare(Side{Name: "alpha", Hello: &now}, Side{Name: "beta", Hello: &old})
		m := Compare(Side{Name: "beta", Hello: &old}, Side{Name: "alpha", Hello: &now})
		if d.Strategy != protocol.Unrelated || m.Strategy != protocol.Unrelated {
			t.Errorf("%+v: %s by %s, and %s by %s", old, d.Strategy, d.Rule, m.Strategy, m.Rule)
		}
	}
}
