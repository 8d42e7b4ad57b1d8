package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/reach"
	"github.com/qrbd/qrbd/volume"
)

// Level says how serious a finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Note    Level = "note"    // somebody should know
	Change  Level = "change"  // something must be changed
	Unknown Level = "unknown" // it could not be checked
)

// Finding is what a check came to.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`         // what was looked at
	Text  string `json:"text"`          // what there is
	Fix   string `json:"fix,omitempty"` // what to change
}

// Options say what is examined. All may be missing but Host.
type Options struct {
	Host   Host
	Config *config.Config // nil: it could not be read
	Fault  error          // why not, or what is wrong with it
	// Status is the running agent's, nil without one; StatusFault says why.
	Status      *control.NodeStatus
	StatusFault error
	Reach       []control.PeerReach // of the peers, as the agent was told
	Version     string              // of this command
}

// Report is everything that was found, in the order of the checks.
type Report struct {
	Node     string    `json:"node,omitempty"`
	Healthy  bool      `json:"healthy"` // nothing must be changed
	Findings []Finding `json:"findings"`
}

// Changes counts what must be changed.
func (r *Report) Changes() int {
	n := 0
	for _, f := range r.Findings {
		if f.Level == Change {
			n++
		}
	}
	return n
}

// Examine runs all checks. It takes some seconds where peers do not answer, and ends
// early with ctx.
func Examine(ctx context.Context, o Options) Report {
	e := &exam{o: o, probe: reach.Patient}
	e.configuration()
	e.host()
	if o.Config != nil {
		e.files()
	}
	e.agent()
	if o.Config != nil {
		e.peers(ctx)
	}
	r := Report{Findings: e.found}
	if o.Config != nil {
		r.Node = o.Config.Node.Name
	}
	r.Healthy = r.Changes() == 0
	return r
}

// exam is an Examine under way.
type exam struct {
	o     Options
	probe reach.Probe
	found []Finding
}

func (e *exam) add(f ...Finding) { e.found = append(e.found, f...) }

func ok(check, format string, args ...any) Finding {
	return Finding{Level: OK, Check: check, Text: fmt.Sprintf(format, args...)}
}

func unknown(check string, err error) Finding {
	return Finding{Level: Unknown, Check: check, Text: err.Error()}
}

// agent compares the running agent with this command, and takes over what it says is
// wrong with its volumes.
func (e *exam) agent() {
	const check = "agent"
	st := e.o.Status
	if st == nil {
		f := Finding{Level: Note, Check: check, Text: "the agent is not running: links and volumes cannot be looked at", Fix: "start it with qrbd agent, or systemctl start qrbd"}
		if e.o.StatusFault != nil {
			f.Text = e.o.StatusFault.Error()
		}
		e.add(f)
		return
	}
	if st.Version != e.o.Version {
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("the agent that runs is %s, this command is %s", st.Version, e.o.Version), Fix: "restart the agent after an upgrade"})
	} else {
		e.add(ok(check, "it runs, version %s", st.Version))
	}
	for _, c := range st.Certificates {
		if c.Use != "peers" { // which is renewed at each start, and pinned by its key
			e.add(certificate("certificate of "+c.Use, time.Until(c.Ends)))
		}
	}
	for i := range st.Volumes {
		e.failover(&st.Volumes[i])
	}
	for _, c := range st.Health().Causes {
		e.add(Finding{Level: Note, Check: "volume " + c.Volume, Text: c.Text, Fix: fmt.Sprintf("qrbd status %s, qrbd explain %s", c.Volume, c.Volume)})
	}
}

// failover looks at a volume's failover as the agent sees it.
func (e *exam) failover(v *volume.Status) {
	f, check := v.Failover, "failover of volume "+v.Name
	switch {
	case f == nil || !f.Enabled:
	case f.Paused:
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("it was paused on %s at %s: nobody takes over", f.PausedBy, f.PausedSince.Local().Format(time.DateTime)), Fix: "qrbd failover resume " + v.Name})
	case f.Trouble, !f.GivenUpUntil.IsZero():
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s: %s", f.Standing, f.Reason), Fix: "qrbd failover status " + v.Name + ", and the file " + v.Name + ".failover.log in the state directory"})
	default:
		e.add(ok(check, "%s (%s)", f.Standing, f.Reason))
	}
}

// certificateNote is how long before its end a certificate is mentioned.
const certificateNote = 30 * 24 * time.Hour

// certificate looks at how long an export's certificate is still good for.
func certificate(check string, left time.Duration) Finding {
	const fix = "put a new one in its place: the agent reads it by itself"
	switch days := int(left.Hours() / 24); {
	case left <= 0:
		return Finding{Level: Change, Check: check, Text: fmt.Sprintf("it expired %d days ago: clients refuse it", -days), Fix: fix}
	case left < certificateNote:
		return Finding{Level: Note, Check: check, Text: fmt.Sprintf("it expires in %d days", days), Fix: fix}
	default:
		return ok(check, "good for %d days", days)
	}
}

// peers examines every peer at the same time.
func (e *exam) peers(ctx context.Context) {
	list := e.o.Config.Peers
	found := make([][]Finding, len(list))
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() { found[i] = e.peer(ctx, &list[i]) })
	}
	wg.Wait()
	for _, f := range found {
		e.add(f...)
	}
}
