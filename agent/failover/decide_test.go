package failover

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func usual() *Settings {
	return &Settings{Enabled: true, Preferred: []string{"alpha", "beta"}, Delay: DefaultDelay, NoQuorumStop: DefaultNoQuorumStop, StartTimeout: DefaultStartTimeout,
		StopTimeout: DefaultStopTimeout, CheckTimeout: DefaultCheckTimeout, CheckEvery: DefaultCheckEvery, StartAttempts: DefaultStartAttempts, GiveUpFor: DefaultGiveUpFor}
}

// ready is a node that would take the role in order.
func ready(name string) Candidate {
	return Candidate{Name: name, Connected: true, InSync: true, Standing: protocol.StandingReady}
}

func TestDecide(t *testing.T) {
	primary := View{Now: t0, Self: "beta", Open: true, Primary: true, Serving: true, Top: TopRunning}
	secondary := View{Now: t0, Self: "beta", Open: true, Top: TopStopped}
	long := t0.Add(-time.Hour)
	type change func(*View, *Memory, *Settings)
	for _, c := range []struct {
		name   string
		from   View
		change change
		want   Action
		to     string
		until  time.Duration // from t0; 0: none
	}{
		{"all is well", primary, nil, Wait, "", 0},
		{"nothing runs on a primary", primary, func(v *View, _ *Memory, _ *Settings) { v.Top = TopStopped }, Start, "", 0},
		{"half of it runs", primary, func(v *View, _ *Memory, _ *Settings) { v.Top = TopBroken }, Stop, "", 0},
		{"not known what runs", primary, func(v *View, _ *Memory, _ *Settings) { v.Top = TopUnknown }, Wait, "", time.Second},
		{"a start failed a moment ago", primary, func(v *View, m *Memory, _ *Settings) {
			v.Top, m.NextTry = TopStopped, t0.Add(4*time.Second)
		}, Wait, "", 4 * time.Second},
		{"given up here, another can", primary, func(v *View, m *Memory, _ *Settings) {
			v.Top, m.BarredUntil, v.Peers = TopStopped, t0.Add(time.Minute), []Candidate{ready("alpha")}
		}, HandOver, "alpha", 0},
		{"given up here, nobody else can", primary, func(v *View, m *Memory, _ *Settings) {
			v.Top, m.BarredUntil = TopStopped, t0.Add(time.Minute)
		}, Start, "", 0},
		{"given up here, the other has too", primary, func(v *View, m *Memory, _ *Settings) {
			v.Top, m.BarredUntil, v.Peers = TopStopped, t0.Add(time.Minute), []Candidate{ready("alpha")}
			v.Peers[0].Standing = protocol.StandingUnable
		}, Start, "", 0},
		{"the unit is missing here", primary, func(v *View, _ *Memory, _ *Settings) {
			v.Top, v.Unable, v.Peers = TopStopped, "the unit is not there", []Candidate{ready("alpha")}
		}, HandOver, "alpha", 0},
		{"the unit is missing here, and nobody else can", primary, func(v *View, _ *Memory, _ *Settings) {
			v.Top, v.Unable = TopStopped, "the unit is not there"
		}, Wait, "", 0},
		{"no quorum for a moment", primary, func(v *View, m *Memory, _ *Settings) {
			v.Serving, m.LostSince = false, t0.Add(-20*time.Second)
		}, Wait, "", 40 * time.Second},
		{"no quorum for too long", primary, func(v *View, m *Memory, _ *Settings) { v.Serving, m.LostSince = false, t0.Add(-time.Minute) }, Stop, "", 0},
		{"no quorum, nothing runs", primary, func(v *View, m *Memory, _ *Settings) {
			v.Serving, m.LostSince, v.Top = false, long, TopStopped
		}, Wait, "", 0},
		{"asked to move", primary, func(_ *View, m *Memory, _ *Settings) { m.MoveTo = "alpha" }, HandOver, "alpha", 0},
		{"a better one is there, and stays", primary, func(v *View, m *Memory, _ *Settings) {
			v.Peers, m.BetterSince = []Candidate{ready("alpha")}, long
		}, Wait, "", 0},
		{"a better one gets it back", primary, func(v *View, m *Memory, s *Settings) {
			v.Peers, m.BetterSince, s.FailBack = []Candidate{ready("alpha")}, long, time.Minute
		}, HandOver, "alpha", 0},
		{"a better one gets it back later", primary, func(v *View, m *Memory, s *Settings) {
			v.Peers, m.BetterSince, s.FailBack = []Candidate{ready("alpha")}, t0, time.Minute
		}, Wait, "", time.Minute},
		{"paused primary", primary, func(v *View, m *Memory, _ *Settings) { v.Paused, v.Top, m.MoveTo = true, TopStopped, "alpha" }, Wait, "", 0},

		{"somebody else is primary", secondary, func(v *View, m *Memory, _ *Settings) { v.Leader, m.FreeSince = "alpha", time.Time{} }, Wait, "", 0},
		{"free for a moment", secondary, func(_ *View, m *Memory, _ *Settings) { m.FreeSince, m.DueSince = t0, t0 }, Wait, "", DefaultDelay},
		{"free for long", secondary, nil, Promote, "", 0},
		{"free, and a better one is there", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Peers, m.DueSince = []Candidate{ready("alpha")}, t0.Add(-DefaultDelay)
		}, Wait, "", preferWait},
		{"free, and a worse one is there", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Peers, m.DueSince = []Candidate{ready("gamma")}, t0.Add(-DefaultDelay)
		}, Promote, "", 0},
		{"free, and the better one does not take it", secondary, func(v *View, _ *Memory, _ *Settings) {
			v.Peers = []Candidate{ready("alpha")}
		}, Promote, "", 0},
		{"free, and this one's data are not good", secondary, func(v *View, _ *Memory, _ *Settings) { v.MayPromote = "outdated" }, Wait, "", 0},
		{"free, and given up here", secondary, func(_ *View, m *Memory, _ *Settings) { m.BarredUntil = t0.Add(time.Minute) }, Wait, "", time.Minute},
		{"free, and the unit is missing", secondary, func(v *View, _ *Memory, _ *Settings) { v.Unable = "no unit" }, Wait, "", 0},
		{"refused a moment ago", secondary, func(_ *View, m *Memory, _ *Settings) { m.NextTry = t0.Add(time.Second) }, Wait, "", time.Second},
		{"paused", secondary, func(v *View, _ *Memory, _ *Settings) { v.Paused, v.Top = true, TopRunning }, Wait, "", 0},
		{"closed", View{Now: t0}, nil, Wait, "", 0},
		{"something runs without the role", secondary, func(v *View, _ *Memory, _ *Settings) { v.Top = TopRunning }, Stop, "", 0},
		{"it does not stop", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Top, m.NextTry = TopBroken, t0.Add(time.Second)
		}, Wait, "", time.Second},
		{"a device waits, the role is free", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Top, v.Resuming, m.FreeSince, v.Peers = TopRunning, true, t0, []Candidate{ready("alpha")}
		}, Promote, "", 0},
		{"a device waits, there is no quorum yet", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Top, v.Resuming, v.MayPromote, m.FreeSince = TopBroken, true, "no quorum", t0
		}, Wait, "", DefaultNoQuorumStop},
		{"a device waits in vain", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Top, v.Resuming, v.MayPromote = TopBroken, true, "no quorum"
		}, Stop, "", 0},
		{"a device waits, and another is primary", secondary, func(v *View, m *Memory, _ *Settings) {
			v.Top, v.Resuming, v.Leader, m.FreeSince = TopBroken, true, "alpha", time.Time{}
		}, Stop, "", 0},
	} {
		v, m, s := c.from, Memory{FreeSince: long, DueSince: long, Trouble: "it failed", BarredWhy: "it failed too often"}, usual()
		if v.Primary {
			m.FreeSince = time.Time{}
		}
		if c.change != nil {
			c.change(&v, &m, s)
		}
		got := Decide(&v, &m, s)
		until := time.Duration(0)
		if !got.Until.IsZero() {
			until = got.Until.Sub(t0)
		}
		if got.Action != c.want || got.To != c.to || until != c.until || got.Why == "" {
			t.Errorf("%s: %+v, want %v to %q until %v", c.name, got, c.want, c.to, c.until)
		}
	}
}

// TestNeverFlaps: what never runs is tried ever more seldom, and a node that gave up
// stays so for ever longer.
func TestNeverFlaps(t *testing.T) {
	s, m, now := usual(), &Memory{}, t0
	starts, moves := 0, 0
	var last time.Duration
	for range 2000 {
		v := View{Now: now, Self: "alpha", Open: true, Primary: true, Serving: true, Top: TopStopped}
		m.Observe(&v, s)
		switch d := Decide(&v, m, s); d.Action {
		case Start:
			starts++
			m.Done(d, errors.New("no"), now, s)
		case Wait:
			last = d.Until.Sub(now)
			now = d.Until
		case HandOver:
			moves++
		case Promote, Stop:
			t.Fatalf("%+v", d)
		}
		if now.Sub(t0) > 24*time.Hour {
			break
		}
	}
	if last != backoffMax || starts > 24*60+20 || moves > 0 {
		t.Errorf("%d starts and %d moves in %v, the last wait %v", starts, moves, now.Sub(t0), last)
	}
	bars := []time.Duration{}
	m = &Memory{}
	for range 9 {
		for m.BarredUntil.IsZero() || !now.Before(m.BarredUntil) {
			m.failed("no", now, s)
		}
		bars = append(bars, m.BarredUntil.Sub(now))
		now = m.BarredUntil
	}
	if bars[0] != s.GiveUpFor || bars[1] != 2*s.GiveUpFor || bars[8] != 64*s.GiveUpFor {
		t.Errorf("given up for %v", bars)
	}
}

// TestBreakdowns: what stops by itself counts as a failure, what is stopped here, or in
// a pause, does not.
func TestBreakdowns(t *testing.T) {
	s := usual()
	v := View{Now: t0, Self: "alpha", Open: true, Primary: true, Serving: true, Top: TopRunning}
	gone := func(change func(v *View, m *Memory)) int {
		m, v := Memory{}, v
		m.Observe(&v, s)
		v.Now, v.Top = v.Now.Add(time.Second), TopStopped
		change(&v, &m)
		m.Observe(&v, s)
		return m.Failures
	}
	for name, c := range map[string]struct {
		change func(*View, *Memory)
		want   int
	}{
		"by itself":       {func(*View, *Memory) {}, 1},
		"half of it":      {func(v *View, _ *Memory) { v.Top = TopBroken }, 1},
		"stopped here":    {func(_ *View, m *Memory) { m.Done(Decision{Action: Stop}, nil, t0, s) }, 0},
		"in a pause":      {func(v *View, _ *Memory) { v.Paused = true }, 0},
		"without quorum":  {func(v *View, _ *Memory) { v.Serving = false }, 0},
		"as a secondary":  {func(v *View, _ *Memory) { v.Primary, v.Serving = false, false }, 0},
		"it runs":         {func(v *View, _ *Memory) { v.Top = TopRunning }, 0},
		"nobody knows it": {func(v *View, _ *Memory) { v.Top = TopUnknown }, 0},
	} {
		if got := gone(c.change); got != c.want {
			t.Errorf("%s: %d failures, want %d", name, got, c.want)
		}
	}
}

func TestPauseNewer(t *testing.T) {
	p := func(paused bool, change uint64) Pause { return Pause{Paused: paused, Change: change} }
	for _, c := range []struct {
		a, b Pause
		want bool
	}{
		{p(true, 1), p(false, 0), true}, {p(false, 2), p(true, 1), true}, {p(true, 1), p(false, 1), true},
		{p(false, 1), p(true, 1), false}, {p(true, 1), p(true, 1), false}, {p(true, 1), p(false, 2), false},
	} {
		if got := c.a.newer(c.b); got != c.want {
			t.Errorf("%+v over %+v: %v", c.a, c.b, got)
		}
	}
}
