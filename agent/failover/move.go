package failover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// ErrBusy: another move is under way.
var ErrBusy = errors.New("another move of the volume is under way")

// Move stops what is on top, hands the role to another node and returns when that has
// it, or why not. It goes on when ctx ends.
func (s *Supervisor) Move(ctx context.Context, to string) error { return s.move(ctx, to, nil) }

func (s *Supervisor) move(ctx context.Context, to string, step func(string)) error {
	if err := s.mayMove(to); err != nil {
		return err
	}
	o := &order{to: to, done: make(chan error, 1), step: step}
	s.mu.Lock()
	if s.order != nil {
		s.mu.Unlock()
		return ErrBusy
	}
	s.order = o
	s.mu.Unlock()
	s.Poke(false)
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mayMove says early why a node would not take the role.
func (s *Supervisor) mayMove(to string) error {
	if st := s.Status(); !st.Enabled {
		return errors.New("failover is not enabled for this volume")
	} else if st.Pause.Paused {
		return errors.New("failover is paused: resume it first")
	}
	v := s.o.Node.View()
	if !v.Primary {
		return fmt.Errorf("this node is not primary (%s): ask the one that is", orElse(v.Leader, "nobody is"))
	}
	for i := range v.Peers {
		switch p := &v.Peers[i]; {
		case p.Name != to:
		case !p.Connected:
			return fmt.Errorf("%s is not connected", to)
		case !p.InSync:
			return fmt.Errorf("the replica of %s is not in sync", to)
		case p.Standing != protocol.StandingReady:
			return fmt.Errorf("%s would not take the role: its failover is %s", to, p.Standing)
		default:
			return nil
		}
	}
	return fmt.Errorf("there is no node %s with a replica", to)
}

// takeOrder makes an operator's wish part of what is decided from.
func (s *Supervisor) takeOrder(v *View) {
	s.mu.Lock()
	o := s.order
	s.mu.Unlock()
	if o == nil {
		return
	}
	if !v.Primary || v.Paused {
		s.refuseOrder(errors.New("this node is not primary any more, or failover was paused"))
		return
	}
	s.memory.MoveTo = o.to
}

// refuseOrder answers who waits for a move.
func (s *Supervisor) refuseOrder(err error) {
	s.mu.Lock()
	o := s.order
	s.order = nil
	s.mu.Unlock()
	if o != nil {
		o.done <- err
	}
}

// Step is one part of a rehearsal and how long it took.
type Step struct {
	What string        `json:"what"`
	Took time.Duration `json:"took_ns"`
}

// Rehearsal is what Test measured.
type Rehearsal struct {
	To    string `json:"to"`
	Steps []Step `json:"steps"`
	// Away and Back are how long nothing ran on top, on the way there and on the way back.
	Away time.Duration `json:"away_ns"`
	Back time.Duration `json:"back_ns"`
}

// String is the rehearsal for people.
func (r *Rehearsal) String() string {
	var b strings.Builder
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "%-44s %s\n", s.What, s.Took.Round(time.Millisecond))
	}
	fmt.Fprintf(&b, "out of service: %s on the way to %s, %s on the way back", r.Away.Round(10*time.Millisecond), r.To, r.Back.Round(10*time.Millisecond))
	return b.String()
}

// Test moves the service to another node and back, and says how long each part took.
// told is called as each part ends. Whatever goes wrong, the supervisors of both nodes
// see to it that it runs on one of them.
func (s *Supervisor) Test(ctx context.Context, to string, told func(what string)) (Rehearsal, error) {
	r := Rehearsal{To: to}
	last := time.Now()
	begun := last
	note := func(what string) {
		now := time.Now()
		r.Steps = append(r.Steps, Step{what, now.Sub(last)})
		last = now
		told(what)
	}
	if s.Status().Standing != protocol.StandingRunning {
		return r, fmt.Errorf("what belongs on top does not run here: %s", orElse(s.Status().Why, s.Status().Standing.String()))
	}
	err := s.move(ctx, to, func(what string) {
		if what == "stopped" {
			note("stopped here")
			return
		}
		note("switched over to " + to)
	})
	if err != nil {
		return r, err
	}
	if err := s.until(ctx, func(v *View, _ Status) bool { return standingOf(v, to) == protocol.StandingRunning }); err != nil {
		return r, fmt.Errorf("%s has the role, and does not say that what belongs on top runs: %w", to, err)
	}
	note("started on " + to)
	r.Away = last.Sub(begun)
	begun = last
	if err := s.o.Node.AskMove(to); err != nil {
		return r, fmt.Errorf("%s is not asked to hand the role back: %w", to, err)
	}
	if err := s.until(ctx, func(v *View, _ Status) bool { return v.Primary }); err != nil {
		return r, fmt.Errorf("%s does not hand the role back: %w", to, err)
	}
	note("stopped on " + to + ", and switched back")
	if err := s.until(ctx, func(v *View, st Status) bool { return v.Primary && st.Standing == protocol.StandingRunning }); err != nil {
		return r, fmt.Errorf("the role is back, and what belongs on top does not run: %w", err)
	}
	note("started here")
	r.Back = last.Sub(begun)
	return r, nil
}

func standingOf(v *View, node string) protocol.Standing {
	for i := range v.Peers {
		if v.Peers[i].Name == node {
			return v.Peers[i].Standing
		}
	}
	return protocol.StandingOff
}

// lookAgain is how often a state is looked at besides every change.
const lookAgain = 100 * time.Millisecond

// until waits for a state.
func (s *Supervisor) until(ctx context.Context, holds func(*View, Status) bool) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		news := s.News()
		v := s.o.Node.View()
		if holds(&v, s.Status()) {
			return nil
		}
		select {
		case <-news:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Successor returns the node that would be the best to move to, "" when there is none.
func (s *Supervisor) Successor() string {
	settings := s.o.Settings()
	v := s.o.Node.View()
	if settings == nil || !v.Primary {
		return ""
	}
	return other(&v, settings)
}
