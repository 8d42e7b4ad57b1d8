package e2e

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestLifecycle walks two nodes through what an operator does on the first day.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	c.Create("crm")
	c.Start()
	alpha.WaitConnected("crm", 10*time.Second)
	beta.WaitConnected("crm", 10*time.Second)

	t.Log("a brand-new volume has no data to serve until someone says so")
	if v := alpha.Volume("crm"); v.Role != "secondary" || v.Disk != "inconsistent" || v.Size != 64*mib {
		t.Fatalf("brand-new: %v", v)
	}
	alpha.Refused([]string{"--force"}, "promote", "crm")
	alpha.Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)
	write(t, alpha, "crm", pattern(1, 4*mib), 12345*512)

	t.Log("status on both")
	v := alpha.Volume("crm")
	p := v.Peer("beta")
	if v.Role != "primary" || v.Disk != "up-to-date" || v.Generation == "" || len(v.Peers) != 1 ||
		p.Role != "secondary" || p.Disk != "up-to-date" || p.Protocol != "C" || p.SyncPercent != 100 {
		t.Errorf("alpha: %v", v)
	}
	w := beta.Volume("crm")
	if w.Role != "secondary" || w.Disk != "up-to-date" || w.Peer("alpha").Role != "primary" || w.Generation != v.Generation {
		t.Errorf("beta: %v", w)
	}
	for _, n := range c.Nodes {
		people := n.Must("status", "crm")
		if !mentions(people, "crm") || !mentions(people, "up-to-date") || strings.Contains(people, "\x1b[") {
			t.Errorf("status for people on %s, in a pipe:\n%s", n.Name, people)
		}
	}

	t.Log("only one primary, and a secondary's export says where it is")
	beta.Refused([]string{"alpha", "primary"}, "promote", "crm")
	beta.Refused([]string{"alpha", "primary"}, "promote", "crm", "--force")
	if _, err := beta.TryDial("crm"); err == nil || !mentions(err.Error(), "alpha") {
		t.Errorf("export of a secondary: %v, want a policy error that names alpha", err)
	}

	t.Log("demote with clients")
	d := alpha.Dial("crm")
	alpha.Wait("crm", "one client", 5*time.Second, func(v cluster.Volume) bool { return v.Clients == 1 })
	alpha.Refused([]string{"client"}, "demote", "crm")
	if err := d.Flush(); err != nil {
		t.Errorf("a refused demote disturbed the client: %v", err)
	}
	alpha.Must("demote", "crm", "--force")
	if err := d.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("the client of a demoted volume still reads")
	}
	d.Close()
	alpha.Must("promote", "crm")

	t.Log("switchover there and back, each without a resync")
	generation := alpha.Volume("crm").Generation
	alpha.Must("switchover", "crm", "--to", "beta")
	if a, b := alpha.Volume("crm"), beta.Volume("crm"); a.Role != "secondary" || b.Role != "primary" {
		t.Fatalf("after switchover: %v\n%v", a, b)
	}
	if got := read(t, beta, "crm", 12345*512, 4*mib); !bytes.Equal(got, pattern(1, 4*mib)) {
		t.Fatal("beta does not read what was written on alpha")
	}
	write(t, beta, "crm", pattern(2, mib), 0)
	beta.Must("switchover", "crm", "--to", "alpha")
	c.WaitInSync("crm", 10*time.Second)
	if got := read(t, alpha, "crm", 0, mib); !bytes.Equal(got, pattern(2, mib)) {
		t.Fatal("alpha does not read what was written on beta")
	}
	if v := alpha.Volume("crm"); v.Peer("beta").OutOfSync != 0 {
		t.Errorf("generation was %s: %v", generation, v)
	}
	c.Equal("crm")

	t.Log("orderly end and return")
	alpha.Must("demote", "crm")
	alpha.Stop()
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	beta.Must("promote", "crm")
	if got := read(t, beta, "crm", 0, mib); !bytes.Equal(got, pattern(2, mib)) {
		t.Fatal("data changed over a restart")
	}
}

// TestPromoteWithoutPeer: a peer that cannot be asked may be primary.
func TestPromoteWithoutPeer(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, mib), 0)
	alpha.Kill()
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.Refused([]string{"alpha", "--peer-fenced"}, "promote", "crm")
	explain := beta.Must("explain", "crm")
	if !mentions(explain, "--peer-fenced") {
		t.Errorf("explain does not say how to promote:\n%s", explain)
	}
	beta.Must("promote", "crm", "--peer-fenced")
	if got := read(t, beta, "crm", 0, mib); !bytes.Equal(got, pattern(1, mib)) {
		t.Fatal("beta lacks what alpha acknowledged")
	}
	write(t, beta, "crm", pattern(2, mib), mib)

	t.Log("after a cold start of the survivor alone, too")
	beta.Kill()
	beta.Start()
	beta.Refused([]string{"--peer-fenced"}, "promote", "crm")
	beta.Must("promote", "crm", "--peer-fenced")

	t.Log("alpha comes back as the outdated side and cannot be promoted")
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	alpha.Refused([]string{"beta"}, "promote", "crm")
	c.Equal("crm")
}

// TestOutdatedIsNotPromoted: a replica that knows it is older is not served.
func TestOutdatedIsNotPromoted(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, mib), 0)
	alpha.Must("disconnect", "crm", "beta")
	write(t, alpha, "crm", pattern(2, mib), 0)
	v := beta.Wait("crm", "outdated", 10*time.Second, func(v cluster.Volume) bool { return v.Disk == "outdated" })
	if v.Peer("alpha").Connection == "connected" {
		t.Errorf("beta: %v", v)
	}
	beta.Refused([]string{"outdated"}, "promote", "crm", "--peer-fenced")
	alpha.Must("connect", "crm", "beta")
	beta.Must("connect", "crm")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}

// TestCommandLine holds the command line to what scripts rely on.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha := c.Nodes[0]
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, code := alpha.Run(args...)
		if code != want {
			t.Errorf("qrbd %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, stdout, stderr)
		}
		return stdout, stderr
	}
	t.Log("no agent")
	if _, stderr := run(1, "status"); !mentions(stderr, "agent") || strings.Count(strings.TrimSpace(stderr), "\n") != 0 {
		t.Errorf("status without an agent: %q", stderr)
	}
	run(1, "promote", "crm")
	t.Log("wrong usage")
	run(2, "promote")
	run(2, "no-such-command")
	run(2, "status", "--no-such-flag")
	run(2, "switchover", "crm")
	run(2, "wait", "crm", "--for", "christmas")
	t.Log("refused: init does not overwrite")
	run(1, "init", "--name", "alpha", "--listen", "127.0.0.1:1", "--state", alpha.Config.State)

	c.Create("crm")
	c.Start()
	alpha.WaitConnected("crm", 10*time.Second)
	run(1, "status", "no-such-volume")
	run(0, "promote", "--force", "crm") // flags before arguments
	run(0, "wait", "crm", "--for", "primary", "--timeout", "10s")
	run(0, "wait", "--for", "up-to-date", "--timeout", "20s", "crm")
	run(0, "wait", "crm", "--for", "connected", "--timeout", "10s")
	run(0, "promote", "crm") // once more changes nothing
	run(1, "switchover", "crm", "--to", "nobody")
	for _, args := range [][]string{{"status", "--json"}, {"status", "crm", "--json"}, {"explain", "crm", "--json"}, {"identity", "--json"}} {
		stdout, _ := run(0, args...)
		if !json.Valid([]byte(stdout)) {
			t.Errorf("qrbd %v: not JSON: %s", args, stdout)
		}
	}
	c.Nodes[1].Stop()
	started := time.Now()
	run(1, "wait", "crm", "--for", "connected", "--timeout", "500ms")
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("wait --timeout 500ms took %v", took)
	}
	alpha.Stop()
}

// TestEvents: a line for each change of state, in order.
func TestEvents(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	c.Create("crm")
	c.Start()
	alpha := c.Nodes[0]
	alpha.WaitConnected("crm", 10*time.Second)
	events := alpha.Follow("events", "--json", "--since", "0")
	alpha.Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)
	alpha.Must("demote", "crm")
	var roles []string
	events.Until(10*time.Second, func(line string) bool {
		var e struct{ Event, Volume, Field, Old, New string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("event %q: %v", line, err)
		}
		if e.Event == "change" && e.Field == "role" {
			roles = append(roles, e.New)
		}
		return strings.Join(roles, " ") == "primary secondary"
	})
}
