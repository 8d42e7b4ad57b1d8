package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

type verifyReport struct {
	Peer                   string
	Off, Len, Next         int64
	Checked, Bad, Repaired int64
	Ranges                 []struct{ Off, Len int64 }
}

func verifyJSON(t *testing.T, n *cluster.Node, code int, args ...string) verifyReport {
	t.Helper()
	out, stderr, got := n.Run(append(append([]string{"verify", "crm", "beta"}, args...), "--json")...)
	var r []verifyReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r) != 1 || got != code {
		t.Fatalf("verify %v: exit code %d, want %d\n%s%s", args, got, code, out, stderr)
	}
	return r[0]
}

// TestVerifyRepairs: blocks that went bad on the secondary's disk are found in the
// range that was asked for, and --repair mends them under load.
func TestVerifyRepairs(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 32*mib), 0)
	damage(t, beta, 5*mib+100, 10)
	damage(t, beta, 20*mib, 8*kib)
	if r := verifyJSON(t, alpha, 0, "--range", "0:4MiB"); r.Bad != 0 || r.Checked != 4*mib {
		t.Errorf("a range without damage: %+v", r)
	}
	if r := verifyJSON(t, alpha, 1, "--range", "4MiB:4MiB"); r.Bad != 4*kib || r.Off != 4*mib || r.Next != 8*mib {
		t.Errorf("a range with damage: %+v", r)
	}
	l := startLoad(t, alpha, ledger.New(48*mib, 8*mib))
	r := verifyJSON(t, alpha, 0, "--repair")
	l.stop()
	if r.Bad != 12*kib || r.Repaired < 12*kib || len(r.Ranges) != 2 {
		t.Errorf("repair: %+v", r)
	}
	c.WaitInSync("crm", syncWithin)
	if r := verifyJSON(t, alpha, 0); r.Bad != 0 {
		t.Errorf("after the repair: %+v", r)
	}
	c.Equal("crm")
	if _, stderr, code := alpha.Run("verify", "crm", "beta", "--repair", "--from", "beta"); code != 1 || !strings.Contains(stderr, "switchover") {
		t.Errorf("a primary's data as the target: exit code %d, %s", code, stderr)
	}
}

// TestVerifyRepairsFrom: without a primary the operator says whose data is right.
func TestVerifyRepairsFrom(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	alpha.Must("demote", "crm")
	damage(t, alpha, 3*mib, 100)
	if _, stderr, code := alpha.Run("verify", "crm", "beta", "--repair"); code != 1 || !strings.Contains(stderr, "--from") {
		t.Errorf("nobody says whose data is right: exit code %d, %s", code, stderr)
	}
	if r := verifyJSON(t, alpha, 0, "--repair", "--from", "beta"); r.Bad != 4*kib || r.Repaired != 4*kib {
		t.Errorf("from beta: %+v", r)
	}
	c.Equal("crm")
	damage(t, beta, 5*mib, 100)
	if r := verifyJSON(t, alpha, 0, "--repair", "--from", "alpha"); r.Bad != 4*kib {
		t.Errorf("from alpha: %+v", r)
	}
	c.Equal("crm")
	alpha.Must("promote", "crm")
	d := alpha.Dial("crm")
	defer d.Close()
	got := make([]byte, 8*mib)
	for off := 0; off < len(got); off += mib {
		if err := d.ReadAt(got[off:off+mib], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if string(got) != string(pattern(1, 8*mib)) {
		t.Error("the wrong side was taken")
	}
}

// TestVerifyStoppedAndResumed: a slow verify is stopped, the agent starts anew, and
// it goes on where it was.
func TestVerifyStoppedAndResumed(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 64*mib), 0)
	damage(t, beta, 63*mib, 10)
	ended := make(chan string, 1)
	go func() {
		_, stderr, _ := alpha.Run("verify", "crm", "beta", "--rate", "8MiB")
		ended <- stderr
	}()
	for end := time.Now().Add(lostWithin); ; time.Sleep(100 * time.Millisecond) {
		if p := alpha.Volume("crm").Peer("beta"); p.Replication == "verify-source" && p.SyncDone >= 4*mib {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the verify does not get on")
		}
	}
	alpha.Must("verify", "crm", "--stop")
	if text := <-ended; !strings.Contains(text, "--resume") {
		t.Errorf("stopped: %s", text)
	}
	alpha.Must("demote", "crm")
	alpha.Stop()
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	alpha.Must("promote", "crm")
	c.WaitInSync("crm", syncWithin)
	began := time.Now()
	r := verifyJSON(t, alpha, 1, "--resume")
	t.Logf("%+v after %v", r, time.Since(began))
	if r.Checked != 64*mib || r.Bad != 4*kib || r.Next != 64*mib {
		t.Errorf("resumed: %+v", r)
	}
	if _, stderr, code := alpha.Run("verify", "crm", "beta", "--resume"); code != 1 || !strings.Contains(stderr, "interrupted") {
		t.Errorf("nothing to resume: exit code %d, %s", code, stderr)
	}
}

// TestVerifySchedule: the primary verifies by itself, and the status says so.
func TestVerifySchedule(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = "verify_every = \"1s\"\n"
	}})
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	damage(t, beta, 3*mib, 10)
	for end := time.Now().Add(lostWithin); ; time.Sleep(100 * time.Millisecond) {
		out, _, _ := alpha.Run("status", "crm", "--json")
		if strings.Contains(out, `"bad":4096`) && strings.Contains(out, `"scheduled":true`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no scheduled verify found the difference: %s", out)
		}
	}
	if p := alpha.Volume("crm").Peer("beta"); p.OutOfSync != 4*kib {
		t.Errorf("marked: %+v", p)
	}
	if r := verifyJSON(t, alpha, 0, "--repair"); r.Repaired != 4*kib {
		t.Errorf("repair: %+v", r)
	}
	c.Equal("crm")
}
