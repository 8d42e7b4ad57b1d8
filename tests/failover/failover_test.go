package failover

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// wanted says what is to be run beside the short form: all, or what has a word in its name.
func wanted(name string) bool {
	word := os.Getenv("QRBD_FAILOVER")
	return word == "all" || word != "" && strings.Contains(name, word)
}

// soon is how long a database may be away, at most, on a busy machine.
const soon = 60 * time.Second

// TestDeathAndMove is the short form: a host dies under load, comes back, and the role is
// moved back by hand.
func TestDeathAndMove(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.load()
	s.commitsAfter(time.Now(), s.alpha, soon)
	at := time.Now()
	s.die(s.alpha)
	t.Logf("first commit on the survivor after %v", s.commitsAfter(at, s.beta, soon).Round(10*time.Millisecond))
	s.boot(s.alpha)
	s.inSync()
	at = time.Now()
	s.beta.MustFor(time.Minute, "switchover", volume, "--to", "alpha")
	t.Logf("moved: first commit after %v", s.commitsAfter(at, s.alpha, soon).Round(10*time.Millisecond))
	s.beta.Refused([]string{"pause"}, "demote", volume)
	s.verify()
}

// fault is one that falls on the site under load.
type fault struct {
	name string
	do   func(s *site, primary, other *cluster.Node)
}

var faults = []fault{
	{"kill a node", func(s *site, p, o *cluster.Node) {
		at := time.Now()
		s.die(p)
		s.commitsAfter(at, o, soon)
		s.boot(p)
	}},
	{"kill the secondary", func(s *site, p, o *cluster.Node) {
		at := time.Now()
		s.die(o)
		s.commitsAfter(at.Add(5*time.Second), p, soon)
		s.boot(o)
	}},
	{"cut the replication link", func(s *site, p, o *cluster.Node) {
		s.CutBoth(p.Name, o.Name)
		s.commitsAfter(time.Now().Add(5*time.Second), nil, soon)
		s.Heal(p.Name, o.Name)
	}},
	{"cut the witness's link", func(s *site, p, o *cluster.Node) {
		s.CutBoth(p.Name, "gamma")
		s.commitsAfter(time.Now().Add(5*time.Second), p, soon)
		s.Heal(p.Name, "gamma")
	}},
	{"cut both", func(s *site, p, o *cluster.Node) {
		at := time.Now()
		s.CutBoth(p.Name, "gamma")
		s.CutBoth(p.Name, o.Name)
		s.commitsAfter(at, o, soon)
		time.Sleep(2 * time.Second)
		s.Heal(p.Name, "gamma")
		s.Heal(p.Name, o.Name)
	}},
	{"pause a node for 30 s", func(s *site, p, o *cluster.Node) {
		at := time.Now()
		p.SignalAll(syscall.SIGSTOP)
		s.commitsAfter(at, o, soon)
		time.Sleep(time.Until(at.Add(30 * time.Second)))
		p.SignalAll(syscall.SIGCONT)
	}},
	{"a pause of failover, and a death in it", func(s *site, p, o *cluster.Node) {
		s.gamma.Run("status")
		o.Must("failover", "pause", volume)
		p.Wait(volume, "paused", 10*time.Second, func(v cluster.Volume) bool { return v.Failover.Paused })
		s.die(p)
		time.Sleep(8 * time.Second)
		if v := o.Volume(volume); v.Role == "primary" {
			s.t.Error("promoted in a pause")
		}
		at := time.Now()
		o.Must("failover", "resume", volume)
		s.commitsAfter(at, o, soon)
		s.boot(p)
	}},
	{"move", func(s *site, p, o *cluster.Node) {
		at := time.Now()
		p.MustFor(time.Minute, "switchover", volume, "--to", o.Name)
		s.commitsAfter(at, o, soon)
	}},
	{"restart of the agent", func(s *site, p, o *cluster.Node) {
		p.Stop()
		p.Start()
		s.commitsAfter(time.Now(), nil, soon)
	}},
	{"the agent is killed", func(s *site, p, o *cluster.Node) {
		p.Kill()
		p.Start()
		s.commitsAfter(time.Now(), nil, soon)
	}},
	{"reboot both", func(s *site, p, o *cluster.Node) {
		s.die(p)
		s.die(o)
		at := time.Now()
		s.boot(o)
		s.boot(p)
		s.commitsAfter(at, nil, soon)
	}},
}

// TestFaults lets every fault fall, one after the other, on whoever is primary then.
func TestFaults(t *testing.T) {
	chosen := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !wanted(f.name) })
	if len(chosen) == 0 {
		t.Skip("skipped: QRBD_FAILOVER=all runs every fault (some five minutes)")
	}
	s := newSite(t)
	for _, f := range chosen {
		s.suffer(t, f.name, f.do)
	}
}

// TestDeaths measures how long the database is away after the death of its host.
func TestDeaths(t *testing.T) {
	if !wanted("deaths") {
		t.Skip("skipped: QRBD_FAILOVER=all measures ten deaths")
	}
	s := newSite(t)
	var took []time.Duration
	for range 10 {
		s.load()
		p := s.primary()
		s.commitsAfter(time.Now(), p, soon)
		at := time.Now()
		s.die(p)
		took = append(took, s.commitsAfter(at, s.other(p), soon).Round(10*time.Millisecond))
		s.boot(p)
		s.verify()
	}
	slices.Sort(took)
	t.Logf("from the death to the first commit on the survivor: median %v of %v", (took[4]+took[5])/2, took)
}

// TestRehearsal is the monthly drill.
func TestRehearsal(t *testing.T) {
	if !wanted("rehearsal") {
		t.Skip("skipped: QRBD_FAILOVER=all runs it")
	}
	s := newSite(t)
	s.load()
	p := s.primary()
	t.Logf("\n%s", p.MustFor(2*time.Minute, "failover", "test", volume))
	if q := s.primary(); q != p {
		t.Errorf("the role is on %s afterwards, and was on %s", q.Name, p.Name)
	}
	s.verify()
}
