package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// chanceMax is the probability of chance below which a difference counts, as in benchstat.
const chanceMax = 0.05

// comparison is one quantity in two results.
type comparison struct {
	work, what string
	before     []float64
	after      []float64
}

// String of the change: the change of the median in per cent, or ~ if it may be chance.
func (c comparison) change() string {
	before, after, p := figureOf(c.before), figureOf(c.after), rankTest(c.before, c.after)
	if p >= chanceMax || before.median == 0 {
		return fmt.Sprintf("~ (p=%.2f)", p)
	}
	return fmt.Sprintf("%+.1f%% (p=%.3f)", 100*(after.median/before.median-1), p)
}

// comparisons lists what both results hold, item by item: each column's figure, the ratios, qrbd's CPU against qemu's.
// Absolute figures drift with the machine; the ratios are the ones to trust across days.
func comparisons(before, after *result) []comparison {
	columns := slices.DeleteFunc(after.columns(), func(c string) bool { return !slices.Contains(before.columns(), c) })
	var list []comparison
	for _, it := range items {
		add := func(what string, of func(r *result) []float64) {
			c := comparison{work: it.title, what: what, before: of(before), after: of(after)}
			if len(c.before) > 0 && len(c.after) > 0 {
				list = append(list, c)
			}
		}
		for _, c := range columns {
			add(c+" "+it.metric.String(), func(r *result) []float64 { return r.values(it.name, c, it.metric.of) })
		}
		for _, q := range quotients(columns) {
			add(q.above+"/"+q.below, func(r *result) []float64 { return r.ratios(it.name, q.above, q.below, it.metric.of) })
		}
		for _, q := range quotients(columns) {
			add("CPU "+q.above+"/"+q.below, func(r *result) []float64 { return r.ratios(it.name, q.above, q.below, serverCPU) })
		}
	}
	return list
}

// writeComparison prints one line per quantity.
func writeComparison(w io.Writer, before, after *result) error {
	fmt.Fprintf(w, "\nCompared with %s (%d x %s, %d rounds of %s). ~ means: may be chance (Mann-Whitney, p >= %.2f).\n\n",
		before.When.Format("2006-01-02 15:04"), before.Machine.Cores, before.Machine.CPU, before.Rounds, before.Runtime, chanceMax)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "work\tquantity\tbefore\tnow\tchange")
	last := ""
	for _, c := range comparisons(before, after) {
		work := c.work
		if work == last {
			work = ""
		}
		last = c.work
		fmt.Fprintln(t, strings.Join([]string{work, c.what, figureOf(c.before).cell(), figureOf(c.after).cell(), c.change()}, "\t"))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing the comparison: %w", err)
	}
	return nil
}
