package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

// streamLine is a line of `qrbd events --json`.
type streamLine struct {
	Event, Boot, Volume, Peer, Field, New, Reason string
	Seq                                           uint64
	From, To                                      *struct {
		Boot string
		Seq  uint64
	}
}

// TestEventsAcrossRestarts: one watcher sees an agent killed, started, stopped in order
// and started again, knows what it missed, and the states after that; every number is
// there once, in order.
func TestEventsAcrossRestarts(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha := c.Up()
	events := alpha.Follow("events", "--json", "--since", "0")
	var last streamLine
	until := func(what string, ok func(l streamLine) bool) {
		t.Helper()
		events.Until(cluster.Timeout, func(line string) bool {
			var l streamLine
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatalf("event %q: %v", line, err)
			}
			switch {
			case l.Event == "away" || l.Event == "back":
			case l.Event == "gap":
				if l.From.Boot != last.Boot || l.From.Seq != last.Seq+1 || l.To.Boot != l.Boot || l.To.Seq != l.Seq {
					t.Fatalf("gap %s after %s:%d", line, last.Boot, last.Seq)
				}
				last = l
			case last.Boot != "" && (l.Boot != last.Boot || l.Seq != last.Seq+1):
				t.Fatalf("waiting for %s: %s follows %s:%d", what, line, last.Boot, last.Seq)
			default:
				last = l
			}
			return ok(l)
		})
	}
	is := func(event, field, value string) func(streamLine) bool {
		return func(l streamLine) bool { return l.Event == event && l.Field == field && l.New == value }
	}
	until("promotion", is("change", "role", "primary"))

	alpha.Kill()
	until("the agent is gone", is("away", "", ""))
	alpha.Start()
	until("what is missing", is("gap", "", ""))
	until("the role now", is("state", "role", "secondary"))
	until("the connection", is("change", "connection", "connected"))
	c.WaitInSync("crm", cluster.Timeout)
	alpha.Must("promote", "crm")
	until("promotion", is("change", "role", "primary"))

	alpha.Stop() // its last words are told
	until("the stop", is("change", "agent", "stopping"))
	until("the demotion", is("change", "role", "secondary"))
	until("the agent is gone", is("away", "", ""))
	alpha.Start()
	until("what is missing", is("gap", "", ""))
	until("the disk now", func(l streamLine) bool { return l.Event == "state" && l.Field == "disk" })

	// A watcher that comes back later asks for what follows.
	out := alpha.Must("events", "--json", "--once", "--since", fmt.Sprintf("%s:%d", last.Boot, last.Seq-1))
	var next streamLine
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&next); err != nil || next.Boot != last.Boot || next.Seq != last.Seq {
		t.Errorf("after %s:%d comes %s (%v)", last.Boot, last.Seq-1, out, err)
	}

}
