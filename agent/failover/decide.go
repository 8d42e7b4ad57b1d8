package failover

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Top is what runs on top of a volume on this node, as it was found.
type Top uint8

// The states.
const (
	TopUnknown Top = iota // not asked yet, or changing by itself
	TopStopped            // nothing of it is there
	TopRunning
	TopBroken // some of it is there, or it runs and does not work
)

// String returns the word in logs.
func (t Top) String() string {
	switch t {
	case TopUnknown:
		return "unknown"
	case TopStopped:
		return "stopped"
	case TopRunning:
		return "running"
	case TopBroken:
		return "broken"
	}
	return fmt.Sprintf("top(%d)", uint8(t))
}

// View is what is known of a volume at one moment: a decision is made from nothing else
// but that and a Memory.
type View struct {
	Now  time.Time
	Self string
	// Open: the volume runs on this node. The rest is empty otherwise.
	Open       bool
	Paused     bool
	Primary    bool
	Serving    bool   // primary, and requests are answered
	MayPromote string // why a promotion would not even be tried; "": it would
	Leader     string // who is primary, where that is another node
	Resuming   bool   // an attached device waits until this node is primary again
	Top        Top
	Unable     string // why what belongs on top cannot run on this node; "": nothing known
	Peers      []Candidate
}

// Candidate is another node that may have the role.
type Candidate struct {
	Name      string
	Connected bool
	InSync    bool // its replica is as good as this one
	Standing  protocol.Standing
}

// able reports whether the node would take the role over in order.
func (c *Candidate) able() bool {
	return c.Connected && c.InSync && c.Standing == protocol.StandingReady
}

// Action is what is to be done.
type Action uint8

// The actions.
const (
	Wait     Action = iota
	Promote         // become primary
	Start           // start what belongs on top
	Stop            // stop it
	HandOver        // stop it, and switch the role over to Decision.To
)

// String returns the word in logs.
func (a Action) String() string {
	switch a {
	case Wait:
		return "wait"
	case Promote:
		return "promote"
	case Start:
		return "start"
	case Stop:
		return "stop"
	case HandOver:
		return "hand over"
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Decision is what a View comes to.
type Decision struct {
	Action Action
	To     string    // HandOver: the node
	Until  time.Time // Wait: when time alone changes it; zero: never
	Why    string    // in words
	// Trouble: somebody should look, since nothing will come right by itself.
	Trouble bool
}

// Times of decisions.
const (
	backoffFirst = time.Second
	backoffMax   = time.Minute
	// preferWait is how much longer a node leaves a free role to a better one that is there.
	preferWait = 3 * time.Second
	// steadyAfter is how long something runs before earlier failures are forgotten.
	steadyAfter = 5 * time.Minute
)

// Decide says what to do. REQUIRES: m.Observe(v) was called.
func Decide(v *View, m *Memory, s *Settings) Decision {
	switch {
	case !v.Open:
		return Decision{Why: "the volume is not running here"}
	case v.Paused:
		return Decision{Why: "paused", Trouble: true}
	case v.Primary:
		return m.asPrimary(v, s)
	}
	return m.asSecondary(v, s)
}

func (m *Memory) asSecondary(v *View, s *Settings) Decision {
	switch {
	case v.Top == TopUnknown:
		return wait(v.Now.Add(time.Second), "what runs on top is not known")
	case v.Top != TopStopped && v.Resuming && v.Leader == "":
		return m.resume(v, s)
	case v.Top != TopStopped:
		if v.Now.Before(m.NextTry) {
			return Decision{Until: m.NextTry, Why: "what is on top without the primary role could not be stopped: " + m.Trouble, Trouble: true}
		}
		return Decision{Action: Stop, Why: "this node is not primary"}
	case v.Leader != "":
		return Decision{Why: v.Leader + " is primary"}
	case v.Unable != "":
		return Decision{Why: v.Unable, Trouble: true}
	case v.Now.Before(m.BarredUntil):
		return Decision{Until: m.BarredUntil, Why: m.BarredWhy, Trouble: true}
	case v.MayPromote != "":
		return Decision{Why: v.MayPromote}
	}
	due := m.DueSince.Add(s.Delay)
	if better(v, s) != "" {
		due = due.Add(preferWait)
	}
	if m.NextTry.After(due) {
		due = m.NextTry
	}
	if v.Now.Before(due) {
		return wait(due, "the role is free")
	}
	return Decision{Action: Promote, Why: "nobody is primary"}
}

// resume is for what ran on top of an attached device when the last agent ended: the
// device waits, and so does nobody else for the delay.
func (m *Memory) resume(v *View, s *Settings) Decision {
	switch giveUp := m.FreeSince.Add(s.NoQuorumStop); {
	case v.MayPromote == "" && !v.Now.Before(m.NextTry):
		return Decision{Action: Promote, Why: "an attached device waits for this node to be primary again"}
	case v.MayPromote == "":
		return wait(m.NextTry, "an attached device waits")
	case v.Now.Before(giveUp):
		return wait(giveUp, "an attached device waits: "+v.MayPromote)
	case v.Now.Before(m.NextTry):
		return Decision{Until: m.NextTry, Why: m.Trouble, Trouble: true}
	}
	return Decision{Action: Stop, Why: fmt.Sprintf("this node could not become primary again for %s: %s", s.NoQuorumStop, v.MayPromote)}
}

func (m *Memory) asPrimary(v *View, s *Settings) Decision {
	if m.MoveTo != "" {
		return Decision{Action: HandOver, To: m.MoveTo, Why: "it was asked for"}
	}
	if !v.Serving {
		return m.withoutQuorum(v, s)
	}
	switch {
	case v.Top == TopUnknown:
		return wait(v.Now.Add(time.Second), "what runs on top is not known")
	case v.Top != TopRunning && (v.Unable != "" || v.Now.Before(m.BarredUntil)):
		if to := other(v, s); to != "" && !v.Now.Before(m.NextTry) {
			return Decision{Action: HandOver, To: to, Why: orElse(v.Unable, m.BarredWhy)}
		}
	}
	switch {
	case v.Top == TopRunning:
		return m.running(v, s)
	case v.Now.Before(m.NextTry):
		return Decision{Until: m.NextTry, Why: m.Trouble, Trouble: true}
	case v.Top == TopBroken:
		return Decision{Action: Stop, Why: "what is on top does not work"}
	case v.Unable != "":
		return Decision{Why: v.Unable, Trouble: true}
	}
	return Decision{Action: Start, Why: "this node is primary"}
}

// withoutQuorum is for a primary that answers no request.
func (m *Memory) withoutQuorum(v *View, s *Settings) Decision {
	due := m.LostSince.Add(s.NoQuorumStop)
	if m.NextTry.After(due) {
		due = m.NextTry
	}
	const why = "requests are not answered: too few nodes follow this primary"
	switch {
	case v.Top == TopStopped:
		return Decision{Why: why, Trouble: true}
	case v.Now.Before(due):
		return Decision{Until: due, Why: why, Trouble: true}
	}
	return Decision{Action: Stop, Why: fmt.Sprintf("requests were not answered for %s", s.NoQuorumStop)}
}

func (m *Memory) running(v *View, s *Settings) Decision {
	if s.FailBack == 0 || m.BetterSince.IsZero() {
		return Decision{Why: "running"}
	}
	due := m.BetterSince.Add(s.FailBack)
	if m.NextTry.After(due) {
		due = m.NextTry
	}
	if v.Now.Before(due) {
		return wait(due, "running; "+betterAble(v, s)+" gets the role back")
	}
	return Decision{Action: HandOver, To: betterAble(v, s), Why: "it is preferred"}
}

// better returns a node that is there, may take the role, and is preferred to this one.
func better(v *View, s *Settings) string {
	for i := range v.Peers {
		if p := &v.Peers[i]; p.Connected && p.Standing == protocol.StandingReady && s.rank(p.Name) < s.rank(v.Self) {
			return p.Name
		}
	}
	return ""
}

// betterAble returns the most preferred node that is preferred to this one, and is in sync.
func betterAble(v *View, s *Settings) string {
	if to := other(v, s); to != "" && s.rank(to) < s.rank(v.Self) {
		return to
	}
	return ""
}

// other returns the most preferred of the nodes that would take the role over.
func other(v *View, s *Settings) string {
	best := ""
	for i := range v.Peers {
		if p := &v.Peers[i]; p.able() && (best == "" || s.rank(p.Name) < s.rank(best)) {
			best = p.Name
		}
	}
	return best
}

func wait(until time.Time, why string) Decision { return Decision{Until: until, Why: why} }

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
