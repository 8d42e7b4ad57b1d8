package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// A host that has just died still looks primary: whoever vouches for its death
// gets the role when its silence is noticed, and is refused when it answers.
func TestPromoteOfFencedPeerWaitsForItsSilence(t *testing.T) {
	cases := []struct {
		name    string
		fenced  bool
		silence time.Duration // after which the peer counts as lost; 0: never
		refused string
		takes   time.Duration // at most
	}{
		{"noticed in time", true, 2 * time.Second, "", 2*time.Second + fencedRetry},
		{"answers for ever", true, 0, "is not fenced", 4*time.Second + fencedRetry},
		{"nobody vouches", false, 2 * time.Second, "primary on beta", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &Agent{cfg: &config.Config{Node: config.Node{PeerTimeout: 3 * time.Second}}}
				start := time.Now()
				vol := newFakeVolume("crm")
				defer vol.Submitter.(interface{ Close() error }).Close()
				vol.changed = make(chan struct{}, 1000)
				vol.err = &volume.Error{Code: protocol.CodeTwoPrimaries, Text: "crm is primary on beta"}
				vol.during = func() {
					if c.silence > 0 && time.Since(start) >= c.silence {
						vol.mu.Lock()
						vol.err = nil
						vol.mu.Unlock()
					}
				}
				err := a.promote(t.Context(), vol, volume.PromoteOptions{PeerFenced: c.fenced})
				if took := time.Since(start); took > c.takes+fencedRetry {
					t.Errorf("took %v, want at most %v", took, c.takes)
				}
				if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
					t.Errorf("got %v, want …%s…", err, c.refused)
				}
			})
		})
	}
}
