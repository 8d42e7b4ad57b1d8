package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// pair is two nodes of one volume and the agreement between them: one primary.
type pair struct {
	mu      sync.Mutex
	primary string // "": nobody
	quorum  bool
	nodes   map[string]*fakeNode
	log     []string
}

// do changes the world.
func (p *pair) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *pair) note(format string, args ...any) {
	p.log = append(p.log, fmt.Sprintf(format, args...))
}

// fakeNode is one of them, with what runs on top there.
type fakeNode struct {
	p       *pair
	name    string
	down    bool
	sup     *Supervisor
	top     Top
	unable  string
	badly   error // what starting leads to
	hang    bool  // starting takes as long as it may
	stuck   error // what stopping in order leads to
	refused error // what a promotion leads to
	saved   Pause
	cancel  context.CancelFunc
	ended   chan struct{}
}

func (n *fakeNode) View() View {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	v := View{Self: n.name, Open: !n.down, Primary: n.p.primary == n.name}
	v.Serving = v.Primary && n.p.quorum
	for _, o := range n.p.nodes {
		if o == n {
			continue
		}
		if !o.down {
			v.Leader = ""
			if n.p.primary == o.name {
				v.Leader = o.name
			}
		}
		c := Candidate{Name: o.name, Connected: !o.down, InSync: !o.down}
		if !o.down {
			c.Standing = o.sup.Status().Standing
		}
		v.Peers = append(v.Peers, c)
	}
	if !n.p.quorum {
		v.MayPromote = "no quorum"
	}
	return v
}

func (n *fakeNode) Promote(context.Context) error {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if n.refused != nil {
		return n.refused
	}
	if o := n.p.primary; o != "" && !n.p.nodes[o].down {
		return errors.New(o + " is primary")
	}
	n.p.primary = n.name
	n.p.note("%s promoted", n.name)
	return nil
}

func (n *fakeNode) Switchover(_ context.Context, to string) error {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	n.p.primary = to
	n.p.note("%s to %s", n.name, to)
	go n.p.nodes[to].sup.Poke(false)
	return nil
}

func (n *fakeNode) AskMove(from string) error {
	go func() { _ = n.p.nodes[from].sup.Move(context.Background(), n.name) }()
	return nil
}

func (n *fakeNode) SavePause(p Pause) error {
	n.p.do(func() { n.saved = p })
	return nil
}

func (n *fakeNode) Changed(_, is Status) {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	for _, o := range n.p.nodes {
		if o != n && o.sup != nil && !o.down && !n.down {
			go func(sup *Supervisor) {
				_ = sup.Hear(is.Pause)
				sup.Poke(false)
			}(o.sup)
		}
	}
}

func (n *fakeNode) Unable(context.Context) string {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	return n.unable
}

func (n *fakeNode) State(context.Context) Top {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	return n.top
}

func (n *fakeNode) Start(ctx context.Context) error {
	n.p.mu.Lock()
	hang := n.hang
	n.p.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	time.Sleep(time.Second)
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if n.badly != nil {
		n.p.note("%s fails", n.name)
		return n.badly
	}
	if n.p.primary != n.name {
		n.p.note("%s STARTED WITHOUT THE ROLE", n.name)
	}
	for _, o := range n.p.nodes {
		if o != n && o.top == TopRunning && !o.down {
			n.p.note("RUNS ON %s TOO", o.name)
		}
	}
	n.top = TopRunning
	n.p.note("%s started", n.name)
	return nil
}

func (n *fakeNode) Stop(_ context.Context, force bool) error {
	time.Sleep(time.Second)
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if n.stuck != nil && !force {
		return n.stuck
	}
	n.top = TopStopped
	n.p.note("%s stopped", n.name)
	return nil
}

// run starts a life of the node's agent.
func (n *fakeNode) run(s *Settings) {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	n.down = false
	n.sup = New(Options{Node: n, Settings: func() *Settings { return s }, Stack: func(*Settings) Stack { return n }, Pause: n.saved, Log: slog.New(slog.DiscardHandler)})
	go func(sup *Supervisor, ended chan struct{}) {
		defer close(ended)
		sup.Run(ctx)
	}(n.sup, n.ended)
}

func (n *fakeNode) stop() {
	n.cancel()
	<-n.ended
}

// with runs a test on a pair, in simulated time.
func with(t *testing.T, change func(*Settings), f func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := usual()
		if change != nil {
			change(s)
		}
		p := &pair{quorum: true, nodes: map[string]*fakeNode{}}
		for _, name := range []string{"alpha", "beta"} {
			n := &fakeNode{p: p, name: name, top: TopStopped, down: true}
			n.sup = New(Options{Node: n})
			p.nodes[name] = n
		}
		alpha, beta := p.nodes["alpha"], p.nodes["beta"]
		alpha.run(s)
		beta.run(s)
		f(t, p, alpha, beta, s)
		alpha.stop()
		beta.stop()
		for _, l := range p.log {
			if strings.ToUpper(l) == l || strings.Contains(l, "WITHOUT") || strings.Contains(l, "TOO") {
				t.Errorf("%s: %v", l, p.log)
			}
		}
		synctest.Wait()
	})
}

// saw waits, and says what happened since the last time.
func (p *pair) saw(t *testing.T, within time.Duration, want ...string) {
	t.Helper()
	time.Sleep(within)
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.log, want) {
		t.Errorf("in %v: %q, want %q", within, p.log, want)
	}
	p.log = nil
}

func TestTakesOver(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")

		t.Log("alpha dies")
		alpha.stop()
		p.do(func() { alpha.down, alpha.top, p.primary = true, TopStopped, "" })
		beta.sup.Poke(false)
		p.saw(t, 10*time.Second, "beta promoted", "beta started")

		t.Log("alpha is back, and the role stays")
		alpha.run(s)
		p.saw(t, time.Hour)

		t.Log("beta's agent starts anew: what runs is found, not started again")
		beta.stop()
		beta.run(s)
		p.saw(t, time.Hour)
	})
}

func TestFailsBack(t *testing.T) {
	with(t, func(s *Settings) { s.FailBack = 5 * time.Minute }, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		if err := alpha.sup.Move(t.Context(), "beta"); err != nil {
			t.Fatal(err)
		}
		p.saw(t, time.Minute, "alpha stopped", "alpha to beta", "beta started")
		p.saw(t, 5*time.Minute, "beta stopped", "beta to alpha", "alpha started")
	})
}

// TestStartFails: a node on which nothing starts is given up, and not tried again at
// once; if it starts nowhere, nobody flaps.
func TestStartFails(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.do(func() { alpha.badly = errors.New("disk quota") })
		p.saw(t, 30*time.Second, "alpha promoted", "alpha fails", "alpha fails", "alpha stopped", "alpha to beta", "beta started")
		if st := alpha.sup.Status(); st.Standing != protocol.StandingUnable || st.Barred.IsZero() || !strings.Contains(st.Why, "disk quota") {
			t.Errorf("alpha says %+v", st)
		}
		p.saw(t, time.Hour)
		if st := alpha.sup.Status(); st.Standing != protocol.StandingReady {
			t.Errorf("alpha says %+v", st)
		}
	})
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.do(func() { alpha.badly, beta.badly = errors.New("no"), errors.New("no") })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		moves := 0
		for _, l := range p.log {
			if strings.Contains(l, " to ") {
				moves++
			}
		}
		if moves > 30 || len(p.log) > 2000 {
			t.Errorf("%d moves, %d steps in a day", moves, len(p.log))
		}
	})
}

// TestBreaksDown: what stops by itself is started again, and if it does so again and
// again, elsewhere.
func TestBreaksDown(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		crash := func() { p.do(func() { alpha.top = TopStopped }) }
		crash()
		p.saw(t, 30*time.Second, "alpha started")
		crash()
		p.saw(t, 30*time.Second, "alpha stopped", "alpha to beta", "beta started")
	})
}

func TestWithoutQuorum(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		set := func(on bool) {
			p.do(func() { p.quorum = on })
			alpha.sup.Poke(false)
			beta.sup.Poke(false)
		}
		set(false)
		p.saw(t, 30*time.Second)
		set(true)
		p.saw(t, time.Minute)
		set(false)
		p.saw(t, 61*time.Second+time.Second, "alpha stopped")
		p.saw(t, time.Hour)
		set(true)
		p.saw(t, time.Minute, "alpha started")
	})
}

// TestSuperseded: a node that finds another primary stops what runs, by force if need be.
func TestSuperseded(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		p.do(func() { alpha.stuck, p.primary = errors.New("in use"), "" })
		alpha.sup.Poke(true)
		p.saw(t, time.Second+time.Millisecond, "alpha stopped")
	})
}

// TestStartInterrupted: a start is not waited for when the role is gone.
func TestStartInterrupted(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.do(func() { alpha.hang = true })
		p.saw(t, 10*time.Second, "alpha promoted")
		p.mu.Lock()
		p.primary, alpha.refused, alpha.top = "beta", errors.New("no"), TopBroken
		p.mu.Unlock()
		alpha.sup.Poke(true)
		beta.sup.Poke(false)
		p.saw(t, 5*time.Second, "beta started", "alpha stopped")
	})
}

func TestPause(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		if _, err := beta.sup.SetPause(true, "beta"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := alpha.sup.Status(); !st.Pause.Paused || st.Pause.By != "beta" || !alpha.saved.Paused {
			t.Errorf("alpha does not know of the pause: %+v", st)
		}
		if err := alpha.sup.Move(t.Context(), "beta"); err == nil {
			t.Error("moved in a pause")
		}
		alpha.stop()
		p.do(func() { alpha.down, alpha.top, p.primary = true, TopStopped, "" })
		p.saw(t, time.Hour)
		alpha.run(s) // a new life remembers
		p.saw(t, time.Hour)
		if _, err := alpha.sup.SetPause(false, "alpha"); err != nil {
			t.Fatal(err)
		}
		p.saw(t, time.Minute, "alpha promoted", "alpha started")
	})
}

func TestMoves(t *testing.T) {
	with(t, nil, func(t *testing.T, p *pair, alpha, beta *fakeNode, s *Settings) {
		p.saw(t, 10*time.Second, "alpha promoted", "alpha started")
		for _, c := range []struct {
			at *fakeNode
			to string
			in string
		}{{alpha, "gamma", "no node gamma"}, {beta, "alpha", "not primary (alpha)"}} {
			if err := c.at.sup.Move(t.Context(), c.to); err == nil || !strings.Contains(err.Error(), c.in) {
				t.Errorf("%s to %s: %v", c.at.name, c.to, err)
			}
		}
		p.do(func() { alpha.stuck = errors.New("in use") })
		if err := alpha.sup.Move(t.Context(), "beta"); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("stuck: %v", err)
		}
		p.do(func() { alpha.stuck = nil })
		p.saw(t, time.Second)
		report, err := alpha.sup.Test(t.Context(), "beta", func(string) {})
		if err != nil || len(report.Steps) != 5 || report.Away < 2*time.Second || report.Away > 3*time.Second || report.Back < 2*time.Second || report.Back > 3*time.Second {
			t.Errorf("%v, %v", report, err)
		}
		p.saw(t, time.Second, "alpha stopped", "alpha to beta", "beta started", "beta stopped", "beta to alpha", "alpha started")
		p.do(func() { beta.unable = "no unit" })
		time.Sleep(s.CheckEvery)
		synctest.Wait()
		if _, err := alpha.sup.Test(t.Context(), "beta", func(string) {}); err == nil || !strings.Contains(err.Error(), "unable") {
			t.Errorf("to one that cannot: %v", err)
		}
	})
}
