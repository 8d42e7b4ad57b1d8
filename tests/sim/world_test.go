package sim

import (
	"strings"
	"testing"
)

// TestBound: what goes on without end is found, and a load that lasts is not taken for
// it (seed 151246, 490,000 writes in five minutes, takes too long to be run every time).
func TestBound(t *testing.T) {
	for _, c := range []struct {
		name  string
		every int64 // between events
		until int64
		want  string
	}{
		{"no time between events", 0, second, "C5: 5000001 events in 0 ms"},
		{"hardly any", 10 * micro, timeMax, "C5: 5000001 events in 50000 ms"},
		{"a load that lasts", 100 * micro, 900 * second, ""},
		{"a run that does not end", 100 * milli, 2 * timeMax, "C5: 3600 s, and the run has not ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &World{}
			var again func()
			again = func() { w.at(c.every, again) }
			again()
			got := func() (text string) {
				defer func() {
					if f, ok := recover().(failure); ok {
						text = f.text
					}
				}()
				w.runUntil(c.until)
				return ""
			}()
			if c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
				t.Errorf("%q, not %q", got, c.want)
			}
		})
	}
}
