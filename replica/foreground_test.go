package replica

import "testing"

// TestForeground: the share of the time with a request under way, however they overlap.
func TestForeground(t *testing.T) {
	type step struct {
		at   Time
		what string // begin, end, take
		want float64
	}
	tests := map[string][]step{
		"idle":                   {{100, "take", 0}, {200, "take", 0}},
		"half":                   {{0, "begin", 0}, {50, "end", 0}, {100, "take", 0.5}},
		"two that overlap":       {{20, "begin", 0}, {30, "begin", 0}, {50, "end", 0}, {60, "end", 0}, {100, "take", 0.4}},
		"one after the other":    {{0, "begin", 0}, {10, "end", 0}, {80, "begin", 0}, {90, "end", 0}, {100, "take", 0.2}},
		"over the end":           {{75, "begin", 0}, {100, "take", 0.25}, {150, "end", 0}, {200, "take", 0.5}, {300, "take", 0}},
		"always":                 {{0, "begin", 0}, {100, "take", 1}, {200, "take", 1}},
		"no time has passed":     {{0, "begin", 0}, {0, "take", 0}},
		"a clock that goes back": {{50, "begin", 0}, {40, "end", 0}, {100, "take", 0}},
	}
	for name, steps := range tests {
		var f foreground
		for _, s := range steps {
			switch s.what {
			case "begin":
				f.begin(s.at)
			case "end":
				f.end(s.at)
			case "take":
				if got := f.take(s.at); got != s.want {
					t.Errorf("%s: at %d: %v, want %v", name, s.at, got, s.want)
				}
			}
		}
	}
}
