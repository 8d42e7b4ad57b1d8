package hook

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestAnswers(t *testing.T) {
	r, log := newRunner(t)
	for _, c := range []struct {
		name   string
		script string
		want   Answer
		known  bool
	}{
		{"0", "exit 0", 0, false},
		{"1", "exit 1", 1, false},
		{"3", "exit 3", PeerInconsistent, true},
		{"4", "exit 4", PeerOutdated, true},
		{"5", "exit 5", PeerUnreachable, true},
		{"6", "exit 6", PeerPrimary, true},
		{"7", "exit 7", PeerStonithed, true},
		{"8", "exit 8", 8, false},
		{"a signal", "kill -TERM $$", -1, false},
		{"too long", "sleep 60", -1, false},
	} {
		s := set(FencePeer, sh(c.script))
		s.Timeout = time.Second
		err := r.Ask(context.Background(), s, Event{Name: FencePeer, Volume: "crm", Peer: "beta"})
		if got := AnswerOf(err); got != c.want || got.Known() != c.known {
			t.Errorf("%s: %v (%v)", c.name, got, err)
		}
	}
	if !strings.Contains(log.String(), `answer="4, the peer is outdated"`) {
		t.Errorf("an answer is not logged as one: %s", log)
	}
	if err := r.Ask(context.Background(), set(FencePeer, Command{"/nowhere/fence"}), Event{Name: FencePeer}); AnswerOf(err) != -1 {
		t.Errorf("a command that is not there: %v", err)
	}
}

// TestFencingHasRoom: other commands that are asked and hang do not hold it up.
func TestFencingHasRoom(t *testing.T) {
	r, _ := newRunner(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, runningMax)
	for range runningMax {
		go func() { done <- r.Ask(ctx, set(BeforeResyncTarget, sh("sleep 60")), Event{Name: BeforeResyncTarget}) }()
	}
	s := set(FencePeer, sh("exit 7"))
	s.Timeout = 20 * time.Second
	if a := AnswerOf(r.Ask(context.Background(), s, Event{Name: FencePeer})); a != PeerStonithed {
		t.Errorf("got %v", a)
	}
	cancel()
	for range runningMax {
		<-done
	}
}
