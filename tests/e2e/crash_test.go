package e2e

import (
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// crashCase is a kind of agent under a replication protocol.
type crashCase struct {
	name     string
	program  cluster.Program
	protocol string
}

// A killed qrbd leaves its page cache behind; a killed CrashAgent loses what it
// had not flushed, in the stores and in the metadata.
var crashCases = []crashCase{
	{"kill/C", cluster.Qrbd, "C"},
	{"powercut/C", cluster.CrashAgent, "C"},
	{"powercut/B", cluster.CrashAgent, "B"},
	{"powercut/A", cluster.CrashAgent, "A"},
}

// survivor is the rule for the peer of a lost primary. Under B the peer has
// every acknowledged write in memory, but only C says so of the disk.
func (k crashCase) survivor() ledger.Rule {
	if k.protocol == "C" {
		return ledger.Acked
	}
	return ledger.Ordered
}

// restarted is the rule for a crashed node's own disk.
func (k crashCase) restarted() ledger.Rule {
	if k.program == cluster.CrashAgent {
		return ledger.Flushed
	}
	return ledger.Acked
}

// loaded returns a cluster in sync whose first node has been under load for a
// while, and still is.
func (k crashCase) loaded(t *testing.T) (*cluster.Cluster, *ledger.Ledger, *load) {
	t.Helper()
	c := cluster.New(t, cluster.Options{Protocol: k.protocol, Program: k.program, Configure: quick})
	l := newLedger()
	r := startLoad(t, c.Up(), l)
	r.runFor(1500 * time.Millisecond)
	return c, l, r
}

// eachCrashCase runs f for every kind of crash.
func eachCrashCase(t *testing.T, f func(t *testing.T, k crashCase)) {
	t.Parallel()
	for _, k := range crashCases {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			f(t, k)
		})
	}
}

// TestKillPrimaryAndFailOver: the peer takes over, the lost primary comes back
// as a secondary, and the copies are equal again.
func TestKillPrimaryAndFailOver(t *testing.T) {
	eachCrashCase(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		alpha.Kill()
		r.broken()
		beta.WaitLost("crm", "alpha", lostWithin)
		beta.Must("promote", "crm", "--peer-fenced")
		settle(t, beta, l, k.survivor())
		drive(t, beta, l, time.Second)
		alpha.Start()
		c.WaitInSync("crm", syncWithin)
		if v := alpha.Volume("crm"); v.Role != "secondary" {
			t.Errorf("the lost primary came back as %v", v)
		}
		judge(t, beta, l, ledger.Acked)
		c.Equal("crm")
		beta.Must("switchover", "crm", "--to", "alpha")
		judge(t, alpha, l, ledger.Acked)
	})
}

// TestKillPrimaryAndRestart: the lost primary comes back before anyone took over.
func TestKillPrimaryAndRestart(t *testing.T) {
	eachCrashCase(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		alpha.Kill()
		r.broken()
		if k.protocol != "C" { // the peer may lack flushed writes
			beta.WaitLost("crm", "alpha", lostWithin)
		}
		alpha.Start()
		c.WaitInSync("crm", syncWithin)
		// Under C the survivor has every acknowledged write; under A and B the
		// crashed primary has every flushed one.
		rule := ledger.Acked
		if k.protocol != "C" {
			rule = k.restarted()
		}
		alpha.Must("promote", "crm")
		settle(t, alpha, l, rule)
		c.Equal("crm")
		drive(t, alpha, l, time.Second)
		c.Equal("crm")
	})
}

// TestKillSecondary: the primary goes on, and the secondary catches up under
// load, with what it lost of its unflushed writes.
func TestKillSecondary(t *testing.T) {
	eachCrashCase(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		beta.Kill()
		r.progress(lostWithin)
		alpha.WaitLost("crm", "beta", lostWithin)
		r.runFor(500 * time.Millisecond)
		if v := alpha.Volume("crm"); v.Role != "primary" || v.Disk != "up-to-date" || v.Peer("beta").OutOfSync == 0 {
			t.Errorf("degraded: %v", v)
		}
		beta.Start()
		alpha.WaitConnected("crm", syncWithin)
		r.runFor(time.Second)
		r.progress(cluster.Timeout)
		c.WaitInSync("crm", syncWithin)
		r.stop()
		judge(t, alpha, l, ledger.Acked)
		c.Equal("crm")
		alpha.Must("switchover", "crm", "--to", "beta")
		judge(t, beta, l, ledger.Acked)
	})
}

// TestKillBoth: FLUSH means both sides. Each side alone has everything that was
// flushed, whichever is asked. The secondary's flushes are slow, so that one is
// always under way when both die.
func TestKillBoth(t *testing.T) {
	eachCrashCase(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		if k.program == cluster.CrashAgent {
			beta.Faults("crm", "flush delay 500ms\n")
			r.runFor(1500 * time.Millisecond)
		}
		// The primary first: it would notice the end of the other (over TCP at once), and
		// acknowledge writes without it.
		alpha.Kill()
		beta.Kill()
		r.broken()
		beta.Faults("crm", "")

		t.Log("the former secondary alone")
		beta.Start()
		secondary := k.restarted()
		if k.protocol != "C" {
			secondary = ledger.Ordered
		}
		beta.Must("promote", "crm", "--peer-fenced")
		judge(t, beta, l, secondary)
		beta.Must("demote", "crm")
		beta.Stop()

		t.Log("the former primary alone")
		alpha.Start()
		alpha.Must("promote", "crm", "--peer-fenced")
		settle(t, alpha, l, k.restarted())

		t.Log("together again")
		beta.Start()
		c.WaitInSync("crm", syncWithin)
		judge(t, alpha, l, ledger.Acked)
		drive(t, alpha, l, time.Second)
		c.Equal("crm")
	})
}

// TestKillAgain: the returning node dies during its resync, more than once, and
// then the source does.
func TestKillAgain(t *testing.T) {
	eachCrashCase(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		for range 3 {
			beta.Kill()
			r.progress(lostWithin)
			beta.Start()
			alpha.WaitConnected("crm", syncWithin)
			r.runFor(300 * time.Millisecond)
		}
		alpha.Kill()
		r.broken()
		alpha.Start()
		c.WaitInSync("crm", syncWithin)
		alpha.Must("promote", "crm")
		settle(t, alpha, l, k.restarted())
		c.Equal("crm")
	})
}

// pauseFor is how long a paused process stays so: longer than a peer's silence
// is borne, in any case.
func pauseFor() time.Duration {
	if long {
		return 20 * time.Second
	}
	return 6 * time.Second
}

// TestPauseSecondary: SIGSTOP is a peer that says nothing and still holds all
// its connections.
func TestPauseSecondary(t *testing.T) {
	eachProtocol(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		beta.Pause()
		began := time.Now()
		alpha.WaitLost("crm", "beta", lostWithin)
		r.progress(lostWithin)
		time.Sleep(max(0, pauseFor()-time.Since(began)))
		r.progress(lostWithin)
		beta.Resume()
		alpha.WaitConnected("crm", syncWithin)
		r.progress(cluster.Timeout)
		r.stop()
		c.WaitInSync("crm", syncWithin)
		judge(t, alpha, l, ledger.Acked)
		c.Equal("crm")
	})
}

// TestPausePrimary: clients wait and then go on; nothing is lost.
func TestPausePrimary(t *testing.T) {
	eachProtocol(t, func(t *testing.T, k crashCase) {
		c, l, r := k.loaded(t)
		alpha, beta := c.Nodes[0], c.Nodes[1]
		alpha.Pause()
		began := time.Now()
		beta.WaitLost("crm", "alpha", lostWithin)
		time.Sleep(max(0, pauseFor()-time.Since(began)))
		alpha.Resume()
		r.progress(lostWithin)
		alpha.WaitConnected("crm", syncWithin)
		r.progress(cluster.Timeout)
		r.stop()
		c.WaitInSync("crm", syncWithin)
		judge(t, alpha, l, ledger.Acked)
		c.Equal("crm")
	})
}

// eachProtocol runs f for C, B and A with plain agents.
func eachProtocol(t *testing.T, f func(t *testing.T, k crashCase)) {
	t.Parallel()
	for _, p := range []string{"C", "B", "A"} {
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			f(t, crashCase{p, cluster.Qrbd, p})
		})
	}
}
