package protocol

import (
	"strings"
	"testing"
)

func TestParseAfterSB(t *testing.T) {
	for _, c := range []struct {
		primaries int
		text      string
		want      AfterSB
		node      string
	}{
		{0, "disconnect", AfterSBDisconnect, ""},
		{0, "discard-younger-primary", DiscardYoungerPrimary, ""},
		{0, "discard-older-primary", DiscardOlderPrimary, ""},
		{0, "discard-zero-changes", DiscardZeroChanges, ""},
		{0, "discard-least-changes", DiscardLeastChanges, ""},
		{0, "discard-node-beta", DiscardNode, "beta"},
		{1, "disconnect", AfterSBDisconnect, ""},
		{1, "consensus", Consensus, ""},
		{1, "discard-secondary", DiscardSecondary, ""},
		{1, "call-pri-lost-after-sb", CallPriLost, ""},
		{2, "disconnect", AfterSBDisconnect, ""},
		{2, "call-pri-lost-after-sb", CallPriLost, ""},
	} {
		a, node, err := ParseAfterSB(c.primaries, c.text)
		if a != c.want || node != c.node || err != nil {
			t.Errorf("%d %s: %s, %q, %v", c.primaries, c.text, a, node, err)
		}
	}
	for _, c := range []struct {
		primaries int
		text      string
	}{{0, ""}, {0, "discard-node-"}, {0, "discard-node"}, {0, "consensus"}, {0, "discard-node-" + strings.Repeat("x", NameMax+1)}, {1, "discard-zero-changes"},
		{1, "violently-as0p"}, {2, "violently-as0p"}, {2, "discard-secondary"}} {
		if _, _, err := ParseAfterSB(c.primaries, c.text); err == nil || !strings.Contains(err.Error(), "possible are disconnect") {
			t.Errorf("%d %q: %v", c.primaries, c.text, err)
		}
	}
}
