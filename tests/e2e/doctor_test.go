package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

// found are doctor's findings of one check, as "level text".
func found(t *testing.T, n *cluster.Node, check string) string {
	t.Helper()
	out, errs, _ := n.There("{qrbd}", "doctor", "--json", "--config", "{config}")
	var r struct {
		Findings []struct{ Level, Check, Text string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("doctor: %v\n%s%s", err, out, errs)
	}
	var all []string
	for _, f := range r.Findings {
		if f.Check == check {
			all = append(all, f.Level+" "+f.Text)
		}
	}
	return strings.Join(all, "\n")
}

// TestDoctor: a way to a peer that is sound, one through a tunnel, one that is cut,
// and a peer that is not running; with and without an agent here.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Links: true})
	alpha := c.Up()
	hold := func(when string, check string, parts ...string) {
		t.Helper()
		got := found(t, alpha, check)
		for _, part := range parts {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %s:\n%s\nwant %q", when, check, got, part)
			}
		}
	}
	hold("all is well", "peer beta", "ok 10.77.0.2:7790 answers after", "ok packets with 1452 bytes of payload pass", "ok there is a session over quic", "ok both speak version", "ok it reaches this node at 10.77.0.1:7790 after", "ok its agent is of this version too")
	hold("all is well", "agent", "ok it runs")
	hold("all is well", "identity key", "ok ")

	// Frames of beta's side carry 1400 bytes only.
	if _, errs, code := c.Node("beta").There("ip", "link", "set", "dev", "e0", "mtu", "1400"); code != 0 {
		t.Fatal(errs)
	}
	hold("a small MTU", "peer beta", "ok 10.77.0.2:7790 answers after", "note packets with 1452 bytes of payload do not get through, those with 1200 do")

	// Only what beta's agent sends on its own port passes: an answer, and no beginning.
	if _, errs, code := alpha.There("nft", "add rule inet cut in udp dport 7790 udp sport != 7790 drop"); code != 0 {
		t.Fatal(errs)
	}
	hold("a firewall", "peer beta", "ok there is a session", "change it does not reach this node at 10.77.0.1:7790: no answer")

	c.CutBoth("alpha", "beta")
	alpha.WaitLost("crm", "beta", cluster.Timeout)
	hold("the link is cut", "peer beta", "change 10.77.0.2:7790: no answer", "change the agent has no session with it")
	hold("the link is cut", "volume crm", "note beta is connecting")
	c.Heal("alpha", "beta")

	c.Node("beta").Stop()
	hold("beta is stopped", "peer beta", "change 10.77.0.2:7790: the host answers, and nobody listens on that port")
	alpha.Stop()
	hold("no agent here", "agent", "note the agent is not running")
	if _, errs, code := alpha.There("{qrbd}", "doctor", "--config", "{config}"); code != 1 || !strings.Contains(errs, "must be changed on this host") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
