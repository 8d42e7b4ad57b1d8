package agent

import (
	"slices"
	"testing"

	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/volume"
)

func TestHooksFor(t *testing.T) {
	good := []volume.PeerStatus{{Connection: "connected", Disk: "up-to-date"}}
	bad := []volume.PeerStatus{{Connection: "connecting", Disk: "up-to-date"}, {Connection: "connected", Disk: "inconsistent"}}
	for _, c := range []struct {
		name            string
		field, old, new string
		role, disk      string
		peers           []volume.PeerStatus
		want            []hook.Name
	}{
		{"split brain", "handshake", "", "split-brain", "primary", "up-to-date", nil, []hook.Name{hook.SplitBrain}},
		{"another handshake", "handshake", "", "unrelated", "primary", "up-to-date", nil, nil},
		{"detected", "split-brain", "", "detected", "primary", "up-to-date", nil, []hook.Name{hook.InitialSplitBrain}},
		{"primary would lose", "split-brain", "", "primary-lost", "primary", "up-to-date", nil, []hook.Name{hook.PriLostAfterSB}},
		{"a secondary's disk fails", "disk", "up-to-date", "failed", "secondary", "failed", bad, []hook.Name{hook.LocalIOError}},
		{"a primary's disk fails, a peer is good", "disk", "up-to-date", "failed", "primary", "failed", good, []hook.Name{hook.LocalIOError}},
		{"a primary's disk fails, none is good", "disk", "up-to-date", "failed", "primary", "failed", bad, []hook.Name{hook.LocalIOError, hook.PriOnInconDegr}},
		{"outdated is no failure", "disk", "up-to-date", "outdated", "secondary", "outdated", nil, nil},
		{"resync done", "replication", "sync-target", "established", "secondary", "up-to-date", nil, []hook.Name{hook.AfterResyncTarget}},
		{"resync broken off", "replication", "sync-target", "off", "secondary", "inconsistent", nil, nil},
		{"verify", "verify", "", "differs", "primary", "up-to-date", nil, []hook.Name{hook.OutOfSync}},
		{"peer lost", "connection", "connected", "connecting", "primary", "up-to-date", nil, []hook.Name{hook.PeerLost}},
		{"last good peer lost", "connection", "connected", "connecting", "primary", "failed", bad, []hook.Name{hook.PeerLost, hook.PriOnInconDegr}},
		{"peer back", "connection", "connecting", "connected", "primary", "up-to-date", nil, []hook.Name{hook.PeerConnected}},
		{"never was", "connection", "connecting", "standalone", "primary", "up-to-date", nil, nil},
	} {
		got := hooksFor(volume.Event{Field: c.field, Old: c.old, New: c.new}, volume.Status{Role: c.role, Disk: c.disk, Peers: c.peers})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
