package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestStoppedAgent: a command to an agent that does not run ends by itself, says so,
// and the other node's commands are not held up by it.
func TestStoppedAgent(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	alpha.Pause()
	defer alpha.Resume()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Must("status", "crm")
	begun := time.Now()
	_, text, code := alpha.RunFor(90*time.Second, "status", "crm")
	if code != 1 || !strings.Contains(text, "did not answer") {
		t.Errorf("exit code %d, %q", code, text)
	}
	t.Log("ended after", time.Since(begun).Round(time.Second))
}

// TestTerminateWithStoppedPeer: an agent ends in order under load although its peer
// has stopped for good.
func TestTerminateWithStoppedPeer(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	r := startLoad(t, alpha, newLedger())
	r.runFor(300 * time.Millisecond)
	beta.Pause()
	defer beta.Resume()
	begun := time.Now()
	alpha.Stop()
	r.broken()
	t.Log("ended after", time.Since(begun).Round(time.Millisecond))
}
