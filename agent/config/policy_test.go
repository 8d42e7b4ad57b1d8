package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		text string
		want protocol.SplitPolicy
	}{
		{"", protocol.SplitPolicy{}},
		{"after_sb_0pri = \"discard-zero-changes\"\nafter_sb_1pri = \"consensus\"\nafter_sb_2pri = \"call-pri-lost-after-sb\"\n",
			protocol.SplitPolicy{Pri0: protocol.DiscardZeroChanges, Pri1: protocol.Consensus, Pri2: protocol.CallPriLost}},
		{"after_sb_0pri = \"discard-node-alpha\"\nafter_sb_1pri = \"discard-secondary\"\n",
			protocol.SplitPolicy{Pri0: protocol.DiscardNode, Pri1: protocol.DiscardSecondary, Node: "alpha"}},
	} {
		cfg, err := Parse("q.toml", []byte(hooksNode+hooksVolume+c.text))
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		if got := cfg.Volumes[0].AfterSB; got != c.want {
			t.Errorf("%s: %v", c.text, got)
		}
	}
}

func TestPolicyFaults(t *testing.T) {
	for _, c := range []struct{ text, key, want string }{
		{"after_sb_0pri = \"discard-remote\"\n", "volume.after_sb_0pri", "possible are disconnect, discard-younger-primary"},
		{"after_sb_0pri = 3\n", "volume.after_sb_0pri", "number 3"},
		{"after_sb_0pri = \"discard-node-gamma\"\n", "volume.after_sb_0pri", "neither this node nor a peer"},
		{"after_sb_1pri = \"violently-as0p\"\n", "volume.after_sb_1pri", "possible are disconnect, consensus"},
		{"after_sb_1pri = \"consensus\"\n", "volume.after_sb_1pri", "set it too"},
		{"after_sb_2pri = \"call-pri-lost-after-sb\"\n", "volume.after_sb_2pri", "set it too"},
		{"after_sb_2pri = \"discard-secondary\"\n", "volume.after_sb_2pri", "possible are disconnect, call-pri"},
	} {
		_, err := Parse("q.toml", []byte(hooksNode+hooksVolume+c.text))
		var e *Error
		if !errors.As(err, &e) || len(e.Faults) != 1 {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if f := e.Faults[0]; f.Line != 9 || f.Key != c.key || !strings.Contains(f.Text, c.want) {
			t.Errorf("%s: %v", c.text, e)
		}
	}
}
