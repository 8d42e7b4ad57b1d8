package pacemaker

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// fault is something that happens to a cluster whose users are at work. It returns when it
// is over; what it leaves is for settle.
type fault struct {
	name string
	do   func(s *site, primary, other *machine)
}

// apart is how long a cut lasts: longer than it takes to be noticed, and acted on.
const apart = 25 * time.Second

// faults are all that is tried, in order. The names of those that the cluster has to
// answer with another primary are in moves.
var faults = []fault{
	{"kill a node", func(s *site, primary, _ *machine) {
		s.must(primary.off())
	}},
	{"cut the replication link", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, replication)
	}},
	{"cut the cluster link", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, clients)
	}},
	{"cut both links", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, replication, clients)
	}},
	{"pause the primary's node", func(s *site, primary, other *machine) {
		primary.pause()
		time.Sleep(30 * time.Second)
		primary.resume()
	}},
	{"pause the other node", func(s *site, primary, other *machine) {
		other.pause()
		time.Sleep(30 * time.Second)
		other.resume()
	}},
	{"standby", func(s *site, primary, other *machine) {
		s.on(other, "crm node standby "+primary.name)
		s.served(other)
		s.on(other, "crm node online "+primary.name)
	}},
	{"move the group", func(s *site, primary, other *machine) {
		s.on(primary, "crm resource move crm-service "+other.name+" force")
		s.served(other)
		s.on(primary, "crm resource clear crm-service")
	}},
	{"restart Pacemaker", func(s *site, primary, other *machine) {
		s.on(primary, "cluster-stop")
		s.served(other)
		s.on(primary, "cluster-start")
	}},
	{"restart the agent", func(s *site, primary, other *machine) {
		s.on(primary, "kill $(pidof qrbd | tr ' ' '\\n' | while read p; do tr '\\0' ' ' </proc/$p/cmdline | grep -q 'qrbd agent' && echo $p; done)")
		s.work(20)
	}},
	{"kill the agent", func(s *site, primary, other *machine) {
		s.on(primary, "kill -9 $(pidof qrbd | tr ' ' '\\n' | while read p; do tr '\\0' ' ' </proc/$p/cmdline | grep -q 'qrbd agent' && echo $p; done)")
		s.work(20)
	}},
	{"reboot all", func(s *site, primary, other *machine) {
		s.each("off", func(m *machine) error { return m.off() })
	}},
}

// TestFaults tries everything on every kind of cluster, and the kill ten times for its
// figure. It takes about an hour.
func TestFaults(t *testing.T) {
	if !all() {
		t.Skipf("%s=all tries every fault on every kind of cluster", allEnv)
	}
	for _, chapter := range []string{"witness", "three", "alone"} {
		t.Run(chapter, func(t *testing.T) {
			s := newSite(t, chapter)
			for _, f := range faults {
				s.try(f)
			}
			s.median(10)
			s.check("all of it")
		})
	}
}

// try lets a fault happen under load, waits until all is well again, and looks.
func (s *site) try(f fault) {
	s.t.Helper()
	s.work(20)
	primary, other := s.primary()
	began := time.Now()
	f.do(s, primary, other)
	s.settle()
	now, _ := s.primary()
	s.t.Logf("%s: primary was %s, is %s; well again after %v", f.name, primary.name, now.name, time.Since(began).Round(100*time.Millisecond))
	s.check(f.name)
	s.users.resume()
}

// median is how long the users wait when the primary's machine dies.
func (s *site) median(times int) {
	s.t.Helper()
	var took []time.Duration
	for range times {
		took = append(took, s.kill())
	}
	slices.Sort(took)
	text := ""
	for _, d := range took {
		text += fmt.Sprintf(" %.1f", d.Seconds())
	}
	s.t.Logf("%s: from the death to the first commit on the survivor, seconds: median %.1f of%s", s.chapter, took[len(took)/2].Seconds(), text)
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// cutFor cuts a machine off the others for a time; users still reach it.
func (s *site) cutFor(d time.Duration, m *machine, networks ...network) {
	s.t.Helper()
	for i := range s.machines {
		if s.machines[i] != m {
			s.must(s.wires.cut(m.index, i, networks...))
		}
	}
	time.Sleep(d)
	for i := range s.machines {
		if s.machines[i] != m {
			s.must(s.wires.heal(m.index, i, networks...))
		}
	}
}

// served waits until the users work with a machine.
func (s *site) served(m *machine) {
	s.t.Helper()
	s.until("the service runs on "+m.name, takeoverMax, func() (string, bool) {
		v, err := s.ask(s.t.Context(), m.name)
		return fmt.Sprint(v, err), err == nil && v.Serves()
	})
	s.work(20)
}
