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
	if before.median == 0 {
		return "~"
	}
	if p >= chanceMax {
		return fmt.Sprintf("~ %+.1f%% (p=%.2f)", 100*(after.median/before.median-1), p)
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
	return append(list, pairComparisons(before, after)...)
}

// pairComparisons lists what both results hold of the tests of their own. Those that are done once have one value: what changed may always be
// chance.
func pairComparisons(before, after *result) []comparison {
	type quantity struct{ work, what string }
	values := func(r *result) (order []quantity, of map[quantity][]float64) {
		of = map[quantity][]float64{}
		add := func(work, what string, list ...float64) {
			if len(list) > 0 && list[0] > 0 { // otherwise it was not measured
				order, of[quantity{work, what}] = append(order, quantity{work, what}), list
			}
		}
		for _, f := range r.Echo {
			add("bare echo of 4 KiB"+overTransport(f.Transport), "us", f.P50us...)
		}
		for _, f := range r.Scale {
			at := overTransport(f.Transport)
			add("4 KiB writes"+at, "one connection /s", f.One...)
			add("4 KiB writes"+at, "four connections /s", f.Connections...)
			add("4 KiB writes"+at, "four volumes /s", f.Volumes...)
			add("4 KiB writes"+at, "over 512 MiB /s", f.Narrow...)
			add("4 KiB writes"+at, "over 100 GiB /s", f.Wide...)
		}
		for _, f := range r.Resync {
			work := fmt.Sprintf("resync of %d MiB%s", f.VolumeBytes>>20, f.where())
			add(work, "bare MB/s", f.BareMBs)
			add(work, "idle MB/s", f.IdleMBs)
			add(work, "equal data MB/s", f.DigestMBs)
			for _, b := range f.Beside {
				add(work, fmt.Sprintf("p99 beside it / alone, depth %d", b.Depth), b.BesideP99/b.AloneP99)
			}
		}
		for _, f := range r.Slow {
			work := fmt.Sprintf("%s over %d Mbit/s, compression %s%s", f.Data, f.LinkBits/1e6, f.Compression, overTransport(f.Transport))
			add(work, "writes MB/s", f.WriteMBs)
			add(work, "pages/s", f.PagesPerSec)
			add(work, "resync MB/s", f.ResyncMBs)
		}
		return order, of
	}
	_, old := values(before)
	order, now := values(after)
	var list []comparison
	for _, q := range order {
		if len(old[q]) > 0 {
			list = append(list, comparison{work: q.work, what: q.what, before: old[q], after: now[q]})
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
