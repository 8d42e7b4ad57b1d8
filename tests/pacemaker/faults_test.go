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

// faults are all that is tried, in order.
var faults = []fault{
	{"kill a node", func(s *site, primary, _ *machine) {
		s.must(primary.off())
		s.servedWithout(primary)
	}},
	{"kill the other node", func(s *site, _, other *machine) {
		s.must(other.off())
		s.work(20)
		time.Sleep(apart)
		s.work(20)
	}},
	{"power fails for a moment", func(s *site, primary, _ *machine) {
		s.must(primary.off()) // and is back before anybody has noticed
	}},
	{"cut the replication link", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, []*machine{other}, replication)
	}},
	{"cut the primary off the replication network", func(s *site, primary, other *machine) {
		s.cutFor(3*apart, primary, s.machines, replication)
	}},
	{"cut the cluster link", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, s.machines, clients)
	}},
	{"cut both links", func(s *site, primary, other *machine) {
		s.cutFor(apart, primary, s.machines, replication, clients)
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
	{"stonith lies", func(s *site, primary, other *machine) {
		if s.chapter == "alone" {
			return // two nodes have nothing else to go by
		}
		s.power.lie(true)
		primary.pause()
		s.servedWithout(primary)
		primary.resume() // and has its address, its mount and its database
		time.Sleep(apart / 2)
		s.power.lie(false)
		s.must(primary.off()) // an operator's part
	}},
	{"standby", func(s *site, primary, other *machine) {
		s.on(other, "crm node standby "+primary.name)
		s.servedWithout(primary)
		s.on(other, "crm node online "+primary.name)
	}},
	{"move the group", func(s *site, primary, other *machine) {
		s.on(primary, "crm resource move crm-service "+other.name+" force")
		s.servedBy(other)
		s.on(primary, "crm resource clear crm-service")
	}},
	{"restart Pacemaker", func(s *site, primary, other *machine) {
		s.on(primary, "cluster-stop")
		s.servedWithout(primary)
		s.on(primary, "cluster-start")
	}},
	{"restart the agent", func(s *site, primary, other *machine) {
		s.on(primary, "kill $(pgrep -f '^qrbd agent')")
		s.work(20)
	}},
	{"kill the agent", func(s *site, primary, other *machine) {
		s.on(primary, "kill -9 $(pgrep -f '^qrbd agent')")
		s.work(20)
	}},
	{"reboot all", func(s *site, primary, other *machine) {
		s.each("off", func(m *machine) error { return m.off() })
	}},
}

// TestFaults tries everything on every kind of cluster. It takes about an hour.
func TestFaults(t *testing.T) {
	if !slices.ContainsFunc(faults, func(f fault) bool { return wanted(f.name) }) {
		t.Skipf("%s=all tries every fault on every kind of cluster, %s=cut those with that word", allEnv, allEnv)
	}
	for _, chapter := range chapters {
		t.Run(chapter, func(t *testing.T) {
			s := newSite(t, chapter)
			for _, f := range faults {
				if wanted(f.name) {
					s.suffer(f)
				}
			}
		})
	}
}

// TestMedian kills the primary's machine ten times, for the figure.
func TestMedian(t *testing.T) {
	if !wanted("ten kills") {
		t.Skipf("%s=all kills the primary ten times on every kind of cluster", allEnv)
	}
	for _, chapter := range chapters {
		t.Run(chapter, func(t *testing.T) {
			s := newSite(t, chapter)
			s.median(10)
			s.check("ten kills")
		})
	}
}

var chapters = []string{"alone", "witness", "three"}

// suffer lets a fault happen under load, waits until all is well again, and looks.
func (s *site) suffer(f fault) {
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

// cutFor cuts a machine off others for a time; users still reach it.
func (s *site) cutFor(d time.Duration, m *machine, others []*machine, networks ...network) {
	s.t.Helper()
	for _, o := range others {
		if o != m {
			s.must(s.wires.cut(m.index, o.index, networks...))
		}
	}
	time.Sleep(d)
	for _, o := range others {
		if o != m {
			s.must(s.wires.heal(m.index, o.index, networks...))
		}
	}
}

// servedBy waits until the users work with one of the machines.
func (s *site) servedBy(machines ...*machine) {
	s.t.Helper()
	s.until("another machine serves", takeoverMax, func() (string, bool) {
		state := ""
		for _, m := range machines {
			v, err := s.ask(s.t.Context(), m.name)
			if err == nil && v.Serves() {
				return "", true
			}
			state += fmt.Sprint(v, err, "; ")
		}
		return state, false
	})
	s.work(20)
}

func (s *site) servedWithout(m *machine) {
	s.t.Helper()
	s.servedBy(slices.DeleteFunc(slices.Clone(s.replicas()), func(r *machine) bool { return r == m })...)
}
