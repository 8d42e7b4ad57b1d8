package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Node is the agent as a supervisor sees it. Safe for concurrent use.
type Node interface {
	// View says what is known of the volume, all but Now, Paused, Top and Unable. It does
	// not block.
	View() View
	// Promote and Switchover change the role, as an operator's command does.
	Promote(ctx context.Context) error
	Switchover(ctx context.Context, to string) error
	// AskMove asks a node that is primary to hand the role over to this one.
	AskMove(from string) error
	// SavePause makes a pause, or its end, durable.
	SavePause(p Pause) error
	// Changed tells of another Status. It must not block.
	Changed(was, is Status)
}

// Stack is what belongs on top of the volume. One call at a time; each ends with ctx.
type Stack interface {
	// Unable says why it can never run here, as far as that can be known; "": it may.
	Unable(ctx context.Context) string
	State(ctx context.Context) Top
	Start(ctx context.Context) error
	// Stop takes everything away. force: what cannot be stopped in order is cut off from
	// the volume; for where the role is gone.
	Stop(ctx context.Context, force bool) error
}

// Pause is whether failover is paused, and who has said so: of two, the one with the
// higher Change holds, of equal ones the paused one.
type Pause struct {
	Paused bool      `json:"paused"`
	Change uint64    `json:"change"`
	By     string    `json:"by,omitempty"` // node
	Since  time.Time `json:"since,omitzero"`
}

// newer reports whether p replaces q.
func (p Pause) newer(q Pause) bool {
	return p.Change > q.Change || p.Change == q.Change && p.Paused && !q.Paused
}

// Status is what people and other nodes are shown.
type Status struct {
	Enabled  bool
	Standing protocol.Standing
	Doing    Action // Wait: nothing
	Why      string
	Trouble  bool
	Until    time.Time // when something is tried again; zero: not known
	Top      Top
	Barred   time.Time // this node leaves the role to others until then; zero: it does not
	Pause    Pause
}

// Options are what a supervisor runs with; all are required.
type Options struct {
	Node Node
	// Settings returns those that hold now; nil: there are none.
	Settings func() *Settings
	Stack    func(*Settings) Stack
	Pause    Pause // as it was saved
	Log      *slog.Logger
}

// Supervisor keeps one volume's service on the right node. Its methods are safe for
// concurrent use.
type Supervisor struct {
	o    Options
	wake chan struct{} // capacity 1

	mu sync.Mutex
	// Guarded by mu.
	pause     Pause
	status    Status
	interrupt context.CancelFunc // ends what is under way, if the role is gone; nil: nothing
	order     *order             // nil: none
	forgive   bool
	news      chan struct{} // closed and replaced at each new status

	// Owner: Run.
	memory Memory
	top    Top
	unable string
	asked  time.Time // when top and unable were
}

// order is a move that was asked for.
type order struct {
	to   string
	done chan error // capacity 1
	step func(what string)
}

// New returns a supervisor; Run runs it.
func New(o Options) *Supervisor {
	return &Supervisor{o: o, wake: make(chan struct{}, 1), pause: o.Pause, status: Status{Pause: o.Pause}, news: make(chan struct{})}
}

// Run supervises until ctx ends. What runs on top then goes on.
func (s *Supervisor) Run(ctx context.Context) {
	for ctx.Err() == nil {
		settings := s.o.Settings()
		if settings == nil || !settings.Enabled {
			s.publish(Status{})
			s.refuseOrder(errors.New("failover is not enabled for this volume"))
			s.sleep(ctx, time.Time{})
			continue
		}
		stack := s.o.Stack(settings)
		v := s.look(ctx, stack, settings)
		if ctx.Err() != nil {
			return
		}
		s.memory.Observe(&v, settings)
		s.takeOrder(&v)
		d := Decide(&v, &s.memory, settings)
		s.tell(&v, d, settings)
		if d.Action == Wait {
			s.sleep(ctx, s.nextLook(&v, d, settings))
			continue
		}
		s.o.Log.Info("failover", "action", d.Action.String(), "to", d.To, "reason", d.Why)
		begun := time.Now()
		err := s.act(ctx, stack, d, settings)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.o.Log.Warn("failover: "+d.Action.String()+" failed", "took", time.Since(begun).Round(time.Millisecond), "err", err)
		} else {
			s.o.Log.Info("failover: done", "action", d.Action.String(), "took", time.Since(begun).Round(time.Millisecond))
		}
		s.memory.Done(d, err, time.Now(), settings)
		s.asked = time.Time{}
		if d.Action == HandOver {
			s.refuseOrder(err)
		}
	}
}

// look asks what there is.
func (s *Supervisor) look(ctx context.Context, stack Stack, settings *Settings) View {
	v := s.o.Node.View()
	s.mu.Lock()
	v.Paused = s.pause.Paused
	if s.forgive {
		s.forgive = false
		s.memory.forgive()
	}
	s.mu.Unlock()
	stale := s.asked.IsZero() || time.Since(s.asked) >= settings.CheckEvery || s.top == TopUnknown
	blind := v.Primary && !v.Serving && !s.asked.IsZero() // whoever asks would wait as the requests do
	if v.Open && stale && !blind {
		s.ask(ctx, stack, settings)
		was := v
		v = s.o.Node.View() // that may have taken long
		v.Paused = was.Paused
	}
	v.Now, v.Top, v.Unable = time.Now(), s.top, s.unable
	return v
}

// ask asks what runs on top. What ran and does not any more is asked once again.
func (s *Supervisor) ask(ctx context.Context, stack Stack, settings *Settings) {
	ctx, done := s.interruptible(ctx)
	defer done()
	was := s.top
	s.unable = stack.Unable(ctx)
	s.top = stack.State(ctx)
	if was == TopRunning && s.top != TopRunning && ctx.Err() == nil {
		s.top = stack.State(ctx)
	}
	if ctx.Err() != nil {
		s.top = TopUnknown
	}
	s.asked = time.Now()
}

// act does what was decided.
func (s *Supervisor) act(ctx context.Context, stack Stack, d Decision, settings *Settings) error {
	switch d.Action {
	case Promote:
		return s.o.Node.Promote(ctx)
	case Start:
		ctx, done := s.interruptible(ctx)
		defer done()
		if v := s.o.Node.View(); !v.Primary {
			return errors.New("the role is gone")
		}
		return stack.Start(ctx)
	case Stop:
		v := s.o.Node.View()
		if !v.Open {
			return errors.New("the volume is being closed")
		}
		return stack.Stop(ctx, !v.Primary || !v.Serving)
	case HandOver:
		return s.handOver(ctx, stack, d.To)
	case Wait:
	}
	return nil
}

// handOver stops what is on top and gives the role to another node.
func (s *Supervisor) handOver(ctx context.Context, stack Stack, to string) error {
	s.mu.Lock()
	step := func(string) {}
	if s.order != nil && s.order.step != nil {
		step = s.order.step
	}
	s.mu.Unlock()
	if err := stack.Stop(ctx, false); err != nil {
		return fmt.Errorf("what is on top does not stop: %w", err)
	}
	step("stopped")
	if err := s.o.Node.Switchover(ctx, to); err != nil {
		return err
	}
	step("handed over")
	return nil
}

// interruptible makes a context that Poke(true) ends.
func (s *Supervisor) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.interrupt = cancel
	s.mu.Unlock()
	return ctx, func() {
		s.mu.Lock()
		s.interrupt = nil
		s.mu.Unlock()
		cancel()
	}
}

// Poke has the supervisor look again. lost: the primary role has just been lost; what is
// being started, or asked, is not waited for.
func (s *Supervisor) Poke(lost bool) {
	s.mu.Lock()
	if lost && s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// nextLook is when to look again though nothing is heard.
func (s *Supervisor) nextLook(v *View, d Decision, settings *Settings) time.Time {
	next := s.asked.Add(settings.CheckEvery)
	if !v.Open || v.Primary && !v.Serving {
		next = v.Now.Add(settings.CheckEvery)
	}
	if !d.Until.IsZero() && d.Until.Before(next) {
		next = d.Until
	}
	return next
}

// sleepLeast keeps what is changing all the time from making the supervisor spin.
const sleepLeast = 20 * time.Millisecond

func (s *Supervisor) sleep(ctx context.Context, until time.Time) {
	var timer <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(max(time.Until(until), sleepLeast))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-s.wake:
	case <-timer:
	case <-ctx.Done():
	}
}

// tell publishes what was decided.
func (s *Supervisor) tell(v *View, d Decision, settings *Settings) {
	st := Status{Enabled: true, Doing: d.Action, Why: d.Why, Trouble: d.Trouble, Until: d.Until, Top: v.Top}
	if v.Now.Before(s.memory.BarredUntil) {
		st.Barred = s.memory.BarredUntil
	}
	var why string
	st.Standing, why = Standing(v, &s.memory, settings)
	switch d.Action {
	case Start:
		st.Standing = protocol.StandingStarting
	case Stop, HandOver:
		st.Standing = protocol.StandingStopping
	case Promote, Wait:
	}
	if why != "" {
		st.Why = why
	}
	s.publish(st)
}

func (s *Supervisor) publish(st Status) {
	s.mu.Lock()
	was := s.status
	st.Pause = s.pause
	s.status = st
	changed := was != st
	if changed {
		close(s.news)
		s.news = make(chan struct{})
	}
	s.mu.Unlock()
	if changed {
		s.o.Node.Changed(was, st)
	}
}

// Status returns what people are shown.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// News is closed when there is another status.
func (s *Supervisor) News() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

// Active reports whether the supervisor decides over the role now.
func (s *Supervisor) Active() bool {
	st := s.Status()
	return st.Enabled && !st.Pause.Paused
}

// SetPause pauses failover or resumes it, durably, and returns what the other nodes are
// to be told.
func (s *Supervisor) SetPause(paused bool, by string) (Pause, error) {
	s.mu.Lock()
	p := Pause{Paused: paused, Change: s.pause.Change + 1, By: by, Since: time.Now()}
	s.mu.Unlock()
	return p, s.Hear(p)
}

// Hear takes a pause, or its end, that another node knows of, if it is newer.
func (s *Supervisor) Hear(p Pause) error {
	s.mu.Lock()
	was := s.pause
	s.mu.Unlock()
	if !p.newer(was) {
		return nil
	}
	if p.Since.IsZero() {
		p.Since = time.Now()
	}
	if err := s.o.Node.SavePause(p); err != nil {
		return fmt.Errorf("the pause of failover is not saved: %w", err)
	}
	s.mu.Lock()
	if p.newer(s.pause) {
		s.pause = p
		s.forgive = s.forgive || !p.Paused
	}
	now := s.status
	s.mu.Unlock()
	now.Pause = p
	s.publish(now)
	s.Poke(false)
	return nil
}
