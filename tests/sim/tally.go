package sim

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Tally adds up what runs have to say.
type Tally struct {
	Next   uint64 // the seed to go on with
	Seeds  int
	Time   int64 // simulated, in nanoseconds
	Events int64
	Failed []Failure
	Counts map[string]int
}

// Failure is a run that found something.
type Failure struct {
	Seed uint64
	What string
}

// Add adds a run.
func (t *Tally) Add(r *Result) {
	if t.Counts == nil {
		t.Counts = map[string]int{}
	}
	t.Seeds++
	t.Time += r.Time
	t.Events += int64(r.Events)
	for k, v := range r.Counts {
		t.Counts[k] += v
	}
	if r.Failed != "" {
		t.Failed = append(t.Failed, Failure{r.Seed, r.Failed})
		slices.SortFunc(t.Failed, func(a, b Failure) int { return int(int64(a.Seed - b.Seed)) })
	}
}

// The kinds that are told together; what begins with "op " is an operation, what is
// left an outcome.
var (
	requestKinds = []string{"read", "write", "zero", "trim", "flush", "requests failed"}
	faultKinds   = []string{"kill", "power cut", "crash in open", "crash in start", "pause", "clock jump", "cut", "session reset", "slow network", "hung in the disk",
		"slow disk", "stuck disk", "write without space", "read failed", "disk failed", "metadata sync failed", "archive failed"}
)

// String tells everything in a few lines.
func (t *Tally) String() string {
	var faults int
	for _, k := range faultKinds {
		faults += t.Counts[k]
	}
	s := fmt.Sprintf("%d seeds, %.1f simulated hours, %d events, %d faults, %d promotions, %d resyncs, %d split brains\n",
		t.Seeds, float64(t.Time)/3600e9, t.Events, faults, t.Counts["promotions"], t.Counts["resyncs"], t.Counts["split brains"])
	var ops, rest []string
	for k := range t.Counts {
		switch {
		case slices.Contains(requestKinds, k) || slices.Contains(faultKinds, k):
		case strings.HasPrefix(k, "op "):
			ops = append(ops, k)
		default:
			rest = append(rest, k)
		}
	}
	sort.Strings(ops)
	sort.Strings(rest)
	return s + t.line("requests", requestKinds, "") + t.line("faults", faultKinds, "") + t.line("operations", ops, "op ") + t.line("outcomes", rest, "")
}

func (t *Tally) line(title string, keys []string, prefix string) string {
	var parts []string
	for _, k := range keys {
		if n := t.Counts[k]; n != 0 {
			parts = append(parts, fmt.Sprintf("%s %d", strings.TrimPrefix(k, prefix), n))
		}
	}
	return title + ": " + strings.Join(parts, ", ") + "\n"
}
