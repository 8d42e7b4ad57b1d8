package replica

import (
	"testing"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// TestRecentWritesAreBounded: a primary that never says how far the others are does
// not make a witness grow; what it forgets is marked.
func TestRecentWritesAreBounded(t *testing.T) {
	w := newWorld(protocol.ModeC, []string{"alpha", "beta", "gamma"})
	m := w.nodes["beta"].m
	alpha, gamma := m.byName("alpha"), m.byName("gamma")
	alpha.linked, alpha.settled, alpha.role, alpha.repl = true, true, protocol.Primary, protocol.Established
	m.disk = protocol.UpToDate
	blocks := bitmap.Blocks(w.size)
	for i := range uint64(3 * recentMax) {
		d := &protocol.Data{Op: protocol.DataTrim, Seq: i + 1, Off: int64(i%uint64(blocks)) * bitmap.BlockSize, Len: bitmap.BlockSize}
		if _, err := m.PeerData(w.now, alpha.id, d); err != nil {
			t.Fatal(err)
		}
		if n := len(m.recent.list); n > recentMax {
			t.Fatalf("%d writes are remembered", n)
		}
		m.Effects()
	}
	if gamma.dirty.Count() != blocks {
		t.Errorf("%d of %d blocks are marked toward gamma", gamma.dirty.Count(), blocks)
	}
	say := func(durable uint64) {
		m.onStable(alpha, &protocol.Stable{Peers: []protocol.PeerStable{{Name: "gamma", Durable: durable, InSync: true, Settled: true}}})
	}
	say(recentMax)
	if gamma.dirty.Count() != blocks {
		t.Error("marks are gone before gamma has flushed what they stand for")
	}
	say(3 * recentMax)
	if gamma.dirty.Count() != 0 {
		t.Errorf("%d blocks are still marked", gamma.dirty.Count())
	}
}

// TestBehindSettlesNobody: a peer that its primary has gone ahead of is a state of the past.
// That another one has all that the primary has says nothing of how the two compare.
func TestBehindSettlesNobody(t *testing.T) {
	for repl, left := range map[protocol.Repl]int64{protocol.Established: 0, protocol.Behind: 1} {
		m := newWorld(protocol.ModeA, []string{"alpha", "beta", "gamma"}).nodes["beta"].m
		alpha, gamma := m.byName("alpha"), m.byName("gamma")
		alpha.linked, alpha.settled, alpha.role, alpha.repl = true, true, protocol.Primary, repl
		gamma.slot = 7
		gamma.dirty.Set(3, 4)
		m.onStable(alpha, &protocol.Stable{Peers: []protocol.PeerStable{{Name: "gamma", Durable: 9, InSync: true, Settled: true}}})
		if got := gamma.dirty.Count(); got != left || (gamma.slot == 0) != (left == 0) {
			t.Errorf("%s: %d blocks are marked toward gamma, its generation is %s", repl, got, gamma.slot)
		}
	}
}
