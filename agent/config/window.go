package config

import (
	"fmt"
	"strings"
	"time"
)

// Window is a time of the day, local time, every day, from From until To since
// midnight; To before From is on the next day. The zero Window is always.
type Window struct {
	From, To time.Duration
}

// ParseWindow reads "HH:MM-HH:MM"; "" is always.
func ParseWindow(s string) (Window, error) {
	if s == "" {
		return Window{}, nil
	}
	from, to, ok := strings.Cut(s, "-")
	a, errA := time.Parse("15:04", strings.TrimSpace(from))
	b, errB := time.Parse("15:04", strings.TrimSpace(to))
	if !ok || errA != nil || errB != nil || a.Equal(b) {
		return Window{}, fmt.Errorf("%q is not a window: write two times of the day, like \"01:00-05:00\"", s)
	}
	return Window{sinceMidnight(a), sinceMidnight(b)}, nil
}

func sinceMidnight(t time.Time) time.Duration {
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
}

// Contains says whether t is in the window.
func (w Window) Contains(t time.Time) bool {
	at := sinceMidnight(t.Local())
	switch {
	case w == Window{}:
		return true
	case w.From < w.To:
		return at >= w.From && at < w.To
	}
	return at >= w.From || at < w.To
}

// Left returns how long the window lasts from t on, 0: for ever. REQUIRES t within.
func (w Window) Left(t time.Time) time.Duration {
	if w == (Window{}) {
		return 0
	}
	left := w.To - sinceMidnight(t.Local())
	if left <= 0 {
		left += 24 * time.Hour
	}
	return left
}
