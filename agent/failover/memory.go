package failover

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Memory is what a decision takes from earlier ones. The zero Memory is that of a
// supervisor that has just been started.
type Memory struct {
	FreeSince   time.Time // since when no primary is known; zero: there is one
	DueSince    time.Time // since when this node could take the role besides
	LostSince   time.Time // since when this primary does not serve; zero: it does
	BetterSince time.Time // since when a preferred node could have the role back
	RunningFrom time.Time // since when what is on top runs
	NextTry     time.Time // not before: of whatever failed last
	Tries       int       // that failed in a row, of anything
	Failures    int       // starts, and breakdowns, in a row
	Trouble     string    // what failed last, in words
	GivenUp     int       // how often, in a row
	BarredUntil time.Time // this node leaves the role to others
	BarredWhy   string
	MoveTo      string // an operator's, or another node's, wish; until it was tried
}

// Observe notes since when things are as they are.
func (m *Memory) Observe(v *View, s *Settings) {
	since(&m.FreeSince, v.Now, v.Open && !v.Primary && v.Leader == "" && !v.Paused)
	since(&m.DueSince, v.Now, !m.FreeSince.IsZero() && v.MayPromote == "")
	since(&m.LostSince, v.Now, v.Primary && !v.Serving)
	since(&m.BetterSince, v.Now, v.Primary && betterAble(v, s) != "")
	if !m.RunningFrom.IsZero() && !v.Paused && v.Primary && v.Serving && (v.Top == TopStopped || v.Top == TopBroken) {
		m.failed("what is on top broke down", v.Now, s) // nobody has stopped it here
	}
	since(&m.RunningFrom, v.Now, v.Primary && v.Top == TopRunning)
	if !m.RunningFrom.IsZero() && v.Now.Sub(m.RunningFrom) >= steadyAfter {
		m.Failures, m.Tries, m.GivenUp = 0, 0, 0
	}
	if !v.Primary {
		m.MoveTo = ""
	}
}

func since(at *time.Time, now time.Time, holds bool) {
	switch {
	case !holds:
		*at = time.Time{}
	case at.IsZero():
		*at = now
	}
}

// Done notes how an action ended; err nil: well.
func (m *Memory) Done(d Decision, err error, now time.Time, s *Settings) {
	if d.Action == HandOver {
		m.MoveTo = ""
	}
	if err == nil {
		m.Trouble, m.NextTry = "", time.Time{}
		switch d.Action {
		case Start:
			m.BarredUntil, m.BarredWhy = time.Time{}, ""
		case Stop:
			m.RunningFrom = time.Time{}
		case Promote, HandOver, Wait:
			m.Tries, m.RunningFrom = 0, time.Time{}
		}
		return
	}
	m.Trouble = err.Error()
	if d.Action == Start {
		m.failed("starting what belongs on top failed: "+m.Trouble, now, s)
		return
	}
	m.again(now)
}

// again puts the next try off, each time for twice as long.
func (m *Memory) again(now time.Time) {
	m.NextTry = now.Add(min(backoffFirst<<min(m.Tries, 10), backoffMax))
	m.Tries++
}

// failed notes that what belongs on top did not run, and gives this node up when that
// was once too often.
func (m *Memory) failed(why string, now time.Time, s *Settings) {
	m.Failures++
	m.Trouble = why
	m.again(now)
	if m.Failures >= s.StartAttempts && !now.Before(m.BarredUntil) {
		m.BarredUntil = now.Add(s.GiveUpFor << min(m.GivenUp, 6))
		m.BarredWhy = fmt.Sprintf("given up here until %s: %s", m.BarredUntil.Format(time.TimeOnly), why)
		m.GivenUp++
	}
}

// forgive lets this node be tried again at once: an operator has said so.
func (m *Memory) forgive() {
	m.BarredUntil, m.BarredWhy, m.NextTry, m.Trouble, m.Tries, m.Failures, m.GivenUp = time.Time{}, "", time.Time{}, "", 0, 0, 0
}

// Standing is what other nodes are told.
func Standing(v *View, m *Memory, s *Settings) (protocol.Standing, string) {
	switch {
	case !s.Enabled:
		return protocol.StandingOff, ""
	case !v.Primary && v.Unable != "":
		return protocol.StandingUnable, v.Unable
	case !v.Primary && v.Now.Before(m.BarredUntil):
		return protocol.StandingUnable, m.BarredWhy
	case !v.Primary && v.Top != TopStopped:
		return protocol.StandingStopping, ""
	case !v.Primary:
		return protocol.StandingReady, ""
	case v.Top == TopRunning:
		return protocol.StandingRunning, ""
	}
	return protocol.StandingStopped, orElse(v.Unable, m.Trouble)
}
