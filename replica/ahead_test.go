package replica

import (
	"slices"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// TestAheadKeepsExtentsActive: what a peer that was gone ahead of has not confirmed is
// marked nowhere. So its extents stay on the activity map, also on a node that is not
// primary any more: else nothing would tell of them after a crash.
func TestAheadKeepsExtentsActive(t *testing.T) {
	w := newWorld(protocol.ModeA, []string{"alpha", "beta"})
	do := func(lines string) {
		t.Helper()
		for _, line := range strings.Split(lines, ";") {
			if err := w.command(strings.Fields(line)); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	do("pullahead alpha 65536; link alpha beta; promote alpha force; run; link alpha beta; run")
	m := w.nodes["alpha"].m
	m.cfg.ActivityIdle, m.cfg.WriteTimeout = 1e9, 60e9
	active := func() (list []int64) {
		m.activity.Active(func(e int64) { list = append(list, e) })
		return list
	}
	do("mute alpha beta; write alpha 0 65536; run; write alpha 16777216 4096; run; tick 8")
	if p := m.peers[0]; p.repl != protocol.Ahead || p.ring.len() == 0 {
		t.Fatalf("%s, %d operations on their way", p.repl, p.ring.len())
	}
	if list := active(); !slices.Contains(list, 0) {
		t.Errorf("active as primary: %v, without the extent of what was sent", list)
	}
	do("demote alpha; run; tick 8")
	if list := active(); m.role != protocol.Secondary || !slices.Contains(list, 0) {
		t.Errorf("active as %s: %v", m.role, list)
	}
	do("unmute alpha beta; run; tick 1; link alpha beta; run; tick 8")
	if list := active(); len(list) != 0 || m.peers[0].repl != protocol.Established {
		t.Errorf("active when beta has caught up (%s): %v", m.peers[0].repl, list)
	}
}
