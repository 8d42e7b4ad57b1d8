package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/arbiter"
	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/protocol"
)

// toldSession is a session whose peer takes Failover.
type toldSession struct{ *fakeSession }

func (s toldSession) Features() uint64 { return protocol.FeatureFailover }

// waitTold waits until the peer was told what holds.
func (s toldSession) waitTold(t *testing.T, holds func(*protocol.Failover) bool) {
	t.Helper()
	for end := time.After(10 * time.Second); ; {
		s.mu.Lock()
		for _, m := range s.sent {
			if f, ok := m.(*protocol.Failover); ok && holds(f) {
				s.mu.Unlock()
				return
			}
		}
		s.mu.Unlock()
		select {
		case <-s.news:
		case <-end:
			t.Fatal("the peer is not told")
		}
	}
}

// supervisedConfig has failover for the volume crm: nothing on top.
func supervisedConfig(t *testing.T) *config.Config {
	c := testConfig(t)
	c.Volume("crm").Failover = &failover.Settings{Enabled: true, Delay: time.Millisecond, NoQuorumStop: time.Minute, CheckEvery: time.Minute, StartAttempts: 2, GiveUpFor: time.Minute}
	return c
}

func TestFailoverPause(t *testing.T) {
	c := supervisedConfig(t)
	a, _ := startOn(t, c, nil, nil)
	s := toldSession{newFakeSession("beta", false)}
	a.links.sessionUp(s)
	s.waitTold(t, func(m *protocol.Failover) bool { return m.Volume == "crm" && !m.Paused })
	if err := a.FailoverPause(t.Context(), "web", control.FailoverPauseRequest{Paused: true}); err == nil || !strings.Contains(err.Error(), "no failover") {
		t.Errorf("a volume without failover: %v", err)
	}
	if err := a.FailoverPause(t.Context(), "crm", control.FailoverPauseRequest{Paused: true}); err != nil {
		t.Fatal(err)
	}
	s.waitTold(t, func(m *protocol.Failover) bool { return m.Paused && m.Change == 1 && m.By == a.cfg.Node.Name })
	if f := a.slot("crm").status().Failover; f == nil || !f.Paused || f.PausedBy != a.cfg.Node.Name || f.PausedSince.IsZero() {
		t.Errorf("status %+v", f)
	}
	a.links.message(s, &protocol.Failover{Volume: "crm", Paused: false, Change: 7, By: "beta", Standing: protocol.StandingUnable, Reason: "no unit"})
	s.waitTold(t, func(m *protocol.Failover) bool { return !m.Paused && m.Change == 7 })
	if p := a.slot("crm").status().Failover.Peers; len(p) != 1 || p[0].Standing != "unable" || p[0].Reason != "no unit" {
		t.Errorf("peers %+v", p)
	}
	a.links.message(s, &protocol.Failover{Volume: "crm", Paused: true, Change: 8, By: "beta"})
	s.waitTold(t, func(m *protocol.Failover) bool { return m.Paused && m.Change == 8 })
	a.links.sessionDown(s)
	if p := a.slot("crm").status().Failover.Peers; len(p) != 0 {
		t.Errorf("a peer that is gone is known: %+v", p)
	}
	stop(t, a)

	t.Log("a new life remembers, and one that cannot read it is paused")
	again := supervisedConfig(t)
	again.Node = c.Node
	a, _ = startOn(t, again, nil, nil)
	if p := a.slot("crm").failover.sup.Status().Pause; !p.Paused || p.Change != 8 {
		t.Errorf("remembered %+v", p)
	}
	stop(t, a)
	if err := os.WriteFile(filepath.Join(c.Node.State, "crm.failover.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _ = startOn(t, again, nil, nil)
	if !a.slot("crm").failover.sup.Status().Pause.Paused {
		t.Error("what cannot be read is no pause")
	}
}

// TestFailoverKeepsTheRole: what would be undone at once is refused, unless it is paused.
func TestFailoverKeepsTheRole(t *testing.T) {
	a, vols := startOn(t, supervisedConfig(t), nil, func(v *fakeVolume) { v.setRole("primary") })
	for end := time.Now().Add(10 * time.Second); !a.slot("crm").failover.sup.Active(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not active")
		}
	}
	if err := a.Demote(t.Context(), "crm", control.DemoteRequest{}); err == nil || !strings.Contains(err.Error(), "failover pause crm") {
		t.Errorf("demote: %v", err)
	}
	if err := a.Switchover(t.Context(), "crm", control.SwitchoverRequest{To: "beta"}); err == nil || !strings.Contains(err.Error(), "not moved") {
		t.Errorf("switchover to one that is not there: %v", err)
	}
	if _, err := a.FailoverTest(t.Context(), "crm", control.FailoverTestRequest{}, func(string) {}); err == nil || !strings.Contains(err.Error(), "failover status crm") {
		t.Errorf("test: %v", err)
	}
	if err := a.FailoverPause(t.Context(), "crm", control.FailoverPauseRequest{Paused: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.Demote(t.Context(), "crm", control.DemoteRequest{}); err != nil || vols["crm"].count("demote") != 1 {
		t.Errorf("demote in a pause: %v", err)
	}
}

// TestTrustedVote: a record in etcd counts when it is known, or confirmed.
func TestTrustedVote(t *testing.T) {
	for _, c := range []struct {
		name  string
		known uint64
		said  map[string]uint64
		want  bool
	}{
		{"nobody knows", 0, nil, false},
		{"a peer does not know either", 0, map[string]uint64{"beta": 1}, false},
		{"a peer knows it", 0, map[string]uint64{"beta": 5}, true},
		{"a peer knows another", 0, map[string]uint64{"beta": 6}, false},
		{"it is known", 5, nil, true},
		{"it is known, and a peer sees none", 5, map[string]uint64{"beta": 1}, true},
		{"it is known, and a peer knows another", 5, map[string]uint64{"beta": 6}, false},
		{"another is known", 4, nil, false},
		{"another is known, and a peer that is not primary knows this one", 4, map[string]uint64{"beta": 5}, false},
		{"a peer knows it and another one another", 0, map[string]uint64{"beta": 5, "gamma": 6}, false},
	} {
		a, _ := startOn(t, supervisedConfig(t), nil, nil)
		f := a.slot("crm").failover
		if err := f.trust(c.known); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		for peer, vote := range c.said {
			f.heard[peer] = protocol.Failover{Vote: vote}
		}
		f.mu.Unlock()
		err := f.trusted(5)
		if (err == nil) != c.want || err != nil && !errors.Is(err, arbiter.ErrForeign) {
			t.Errorf("%s: %v", c.name, err)
		}
		if f.file.Vote != 5 && c.want {
			t.Errorf("%s: not kept", c.name)
		}
		stop(t, a)
	}
}
