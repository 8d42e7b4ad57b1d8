package session

import (
	"strings"
	"testing"
	"time"
)

func TestReportsAreLimited(t *testing.T) {
	var r reporter
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	unreachable, wrong := reportKey{"beta", Unreachable, true}, reportKey{"beta", WrongKey, true}
	for _, c := range []struct {
		after time.Duration
		key   reportKey
		want  bool
	}{
		{0, unreachable, true},
		{time.Second, unreachable, false},
		{2 * time.Second, wrong, true},        // changed
		{3 * time.Second, unreachable, false}, // back, but too soon
		{6 * time.Second, unreachable, true},  // changed
		{30 * time.Second, unreachable, false},
		{67 * time.Second, unreachable, true}, // a minute has passed
	} {
		if got := r.news(c.key, t0.Add(c.after)); got != c.want {
			t.Errorf("%v after %v: %v", c.key, c.after, got)
		}
	}
	r.clear("beta")
	if len(r.seen)+len(r.last) != 0 || !r.news(unreachable, t0.Add(68*time.Second)) {
		t.Error("not cleared")
	}
	for i := range 1000 {
		r.news(reportKey{who: strings.Repeat("x", i)}, t0.Add(69*time.Second))
	}
	if len(r.seen) > reportsMax || len(r.last) > reportsMax {
		t.Errorf("%d and %d reports remembered", len(r.seen), len(r.last))
	}
	if !r.news(reportKey{who: "later"}, t0.Add(200*time.Second)) {
		t.Error("expired reports still take room")
	}
}
