package pacemaker

import (
	"context"
	"testing"
	"time"
)

// TestKill: the machine with the database loses its power under load. Stonith makes sure
// of it, the other takes over, and the first comes back as a replica.
func TestKill(t *testing.T) {
	t.Parallel()
	s := newSite(t, "alone")
	took := s.kill()
	t.Logf("first commit on the survivor after %v", took.Round(10*time.Millisecond))
	s.check("kill a node")
}

// kill has the primary's machine lose its power, and returns how long the users waited.
func (s *site) kill() time.Duration {
	s.t.Helper()
	s.work(50)
	primary, _ := s.primary()
	died := time.Now()
	if err := primary.off(); err != nil {
		s.t.Fatal(err)
	}
	took := s.firstAfter(died)
	s.settle()
	return took
}

// takeoverMax bounds the time without a database, on a busy host.
const takeoverMax = 2 * time.Minute

func (s *site) firstAfter(moment time.Time) time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), takeoverMax)
	defer cancel()
	took, err := s.users.firstAfter(ctx, moment)
	if err != nil {
		s.t.Fatal(err)
	}
	return took
}

// work has the users make some commits.
func (s *site) work(commits int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), takeoverMax)
	defer cancel()
	if err := s.users.progress(ctx, commits); err != nil {
		s.t.Fatal(err)
	}
}

// settle waits until every machine is on, in the cluster and in sync, and the users work.
func (s *site) settle() {
	s.t.Helper()
	s.each("boot", func(m *machine) error { return m.boot() })
	tended := time.Now()
	s.until("all in the cluster", 2*time.Minute, func() (string, bool) {
		state, ok := s.complete()
		if !ok && time.Since(tended) > 10*time.Second {
			tended = time.Now()
			s.tend()
		}
		return state, ok
	})
	s.until("all in sync", 2*time.Minute, s.inSync)
	s.work(20)
}

// tend does what is an operator's: Pacemaker ends by itself on a host that hears of its own
// fencing, because it was cut off until after it was started again.
func (s *site) tend() {
	s.t.Helper()
	for _, m := range s.machines {
		if s.on(m, "pidof pacemakerd || true") == "" {
			s.t.Logf("Pacemaker is started again on %s", m.name)
			s.on(m, "cluster-stop; cluster-start")
		}
	}
}

// check audits the database and compares the replicas. The users work on afterwards.
func (s *site) check(what string) {
	s.t.Helper()
	if faults := s.watch.Faults(); len(faults) > 0 {
		s.t.Errorf("%s: %d times two machines served at once: %q", what, len(faults), faults[0])
	}
	s.t.Logf("%s: %v; stonith: %q", what, s.watch, s.power.shot())
	s.users.rest()
	ctx, cancel := context.WithTimeout(s.t.Context(), stepMax)
	defer cancel()
	a, err := s.users.audit(ctx)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	s.t.Logf("%s: %d commits acknowledged, %d found, %d lost", what, a.Acknowledged, a.Found, a.Lost)
	if !a.Good() || a.Acknowledged == 0 {
		s.t.Errorf("%s: %+v", what, a)
	}
	s.equal(what)
}
