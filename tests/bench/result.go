package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// resultVersion is the layout of the results file; a file of another version is refused.
const resultVersion = 2

// quietRoundsMin is how many rounds must have been quiet for the others to be left out.
const quietRoundsMin = 3

// sample is one column's run of one item in one round.
type sample struct {
	Item      string  `json:"item"`
	Column    string  `json:"column"`
	Round     int     `json:"round"` // from 1
	OpsPerSec float64 `json:"ops_per_s"`
	MBPerSec  float64 `json:"mb_per_s"`
	P50us     float64 `json:"p50_us"`
	P99us     float64 `json:"p99_us"`
	FlushP50  float64 `json:"flush_p50_us,omitempty"`
	FlushP99  float64 `json:"flush_p99_us,omitempty"`
	CPUus     float64 `json:"server_cpu_us_per_op"` // user and system time of all server processes
	ClientCPU float64 `json:"client_cpu_us_per_op"` // of fio
	Foreign   float64 `json:"foreign_pct"`          // share of all CPUs used by processes that are not measured
	Stolen    float64 `json:"stolen_pct"`           // share of all CPUs taken by the hypervisor
	Attempts  int     `json:"attempts"`             // 1 unless noisy attempts were thrown away
}

// result is everything one run measured: the content of the results file.
type result struct {
	Version   int               `json:"version"`
	When      time.Time         `json:"when"`
	Machine   machineInfo       `json:"machine"`
	Programs  map[string]string `json:"programs"`
	Rounds    int               `json:"rounds"`
	Runtime   string            `json:"runtime"`
	SizeBytes int64             `json:"size_bytes"`
	QuietPct  float64           `json:"quiet_pct"` // a sample is quiet if foreign and stolen CPU together stay at or below
	Samples   []sample          `json:"samples"`
	Footprint *footprint        `json:"footprint,omitempty"`
	Echo      []*echoFigures    `json:"echo,omitempty"`
	Scale     []*scaleFigures   `json:"scale,omitempty"`
	Resync    []*resyncFigures  `json:"resync,omitempty"`
	Slow      []*slowFigures    `json:"slow,omitempty"`
}

// empty tells whether nothing was measured.
func (r *result) empty() bool {
	return len(r.Samples) == 0 && r.Footprint == nil && len(r.Echo) == 0 && len(r.Scale) == 0 && len(r.Resync) == 0 && len(r.Slow) == 0
}

// columns returns the columns that have samples, in the table's order.
func (r *result) columns() []string {
	var names []string
	for _, k := range columnKinds {
		if slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Column == k.name }) {
			names = append(names, k.name)
		}
	}
	return names
}

// counted returns the rounds that count for an item: those in which the samples of all columns were quiet. If they are
// fewer than quietRoundsMin, all rounds count and quiet is false. Mixing the two kinds would be no measure: other work
// does not only take CPU time, it also keeps CPUs from going idle, which makes every wake-up of a server cheaper.
func (r *result) counted(item string) (rounds map[int]bool, quiet bool) {
	all, rounds := map[int]bool{}, map[int]bool{}
	for _, s := range r.Samples {
		if s.Item == item {
			all[s.Round], rounds[s.Round] = true, true
		}
	}
	for _, s := range r.Samples {
		if s.Item == item && s.Foreign+s.Stolen > r.QuietPct {
			delete(rounds, s.Round)
		}
	}
	if len(rounds) < min(quietRoundsMin, len(all)) {
		return all, false
	}
	return rounds, true
}

// byRound returns f of each sample of an item in a column, keyed by round; only rounds that count.
func (r *result) byRound(item, column string, f func(sample) float64) map[int]float64 {
	rounds, _ := r.counted(item)
	values := map[int]float64{}
	for _, s := range r.Samples {
		if s.Item == item && s.Column == column && rounds[s.Round] {
			values[s.Round] = f(s)
		}
	}
	return values
}

// values is byRound without the rounds, in their order.
func (r *result) values(item, column string, f func(sample) float64) []float64 {
	return inOrder(r.byRound(item, column, f))
}

// ratios returns f(a) / f(b) of each round that has both.
func (r *result) ratios(item, a, b string, f func(sample) float64) []float64 {
	above, below := r.byRound(item, a, f), r.byRound(item, b, f)
	quotients := map[int]float64{}
	for round, x := range above {
		if y, ok := below[round]; ok && y != 0 {
			quotients[round] = x / y
		}
	}
	return inOrder(quotients)
}

// inOrder returns the values in the order of their rounds.
func inOrder(byRound map[int]float64) []float64 {
	var rounds []int
	for round := range byRound {
		rounds = append(rounds, round)
	}
	slices.Sort(rounds)
	var values []float64
	for _, round := range rounds {
		values = append(values, byRound[round])
	}
	return values
}

// save writes the results file and the directories above it.
func (r *result) save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return nil
}

// loadResult reads a results file.
func loadResult(path string) (*result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	r := &result{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("results %s: %w", path, err)
	}
	if r.Version != resultVersion {
		return nil, fmt.Errorf("results %s: version %d, want %d", path, r.Version, resultVersion)
	}
	return r, nil
}
