package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// number prints a figure with three significant digits or all before the point, thousands separated.
func number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	digits := fmt.Sprintf("%.0f", x)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// cell prints a figure with its noise, or a dash if nothing was measured.
func (f figure) cell() string {
	if f.n == 0 {
		return "-"
	}
	return fmt.Sprintf("%s ±%.0f%%", number(f.median), 100*f.noise)
}

// plain prints a figure without its noise.
func (f figure) plain() string {
	if f.n == 0 {
		return "-"
	}
	return number(f.median)
}

// quotient names two columns whose ratio is a column of the table.
type quotient struct{ above, below string }

// quotients returns the ratios that the columns allow: qrbd's if it was measured, else the fixed points' own.
func quotients(columns []string) []quotient {
	var qs []quotient
	for _, q := range []quotient{{"qrbd", "nbdkit"}, {qrbdTCP, "nbdkit"}, {"qrbd", "qemu"}, {qrbdTCP, "qemu"}} {
		if slices.Contains(columns, q.above) && slices.Contains(columns, q.below) {
			qs = append(qs, q)
		}
	}
	if len(qs) == 0 && slices.Contains(columns, "qemu") && slices.Contains(columns, "nbdkit") {
		qs = append(qs, quotient{"qemu", "nbdkit"})
	}
	return qs
}

// serverCPU picks the server CPU per operation from a sample.
func serverCPU(s sample) float64 { return s.CPUus }

// tail picks the 99th percentile from a sample; with flushes it is the sum of both calls' (an upper bound of theirs together).
func tail(s sample) float64 { return s.P99us + s.FlushP99 }

// writeTable prints one line per item: the figure of each column, their ratios, the 99th percentile, the server CPU per
// operation (user and system time of all server processes of the column).
func writeTable(w io.Writer, r *result) error {
	columns := r.columns()
	qs := quotients(columns)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	groups, head := []string{"", ""}, []string{"work", ""}
	group := func(title string, names []string) {
		for i, name := range names {
			if i > 0 {
				title = ""
			}
			groups, head = append(groups, title), append(head, name)
		}
	}
	var ratioNames []string
	for _, q := range qs {
		ratioNames = append(ratioNames, q.above+"/"+q.below)
	}
	group("median", columns)
	group("ratio", ratioNames)
	group("p99 us", columns)
	group("CPU us", columns)
	group("CPU ratio", ratioNames)
	group("rounds", []string{"counted"})
	width := len("work")
	for _, it := range items {
		width = max(width, len(it.title))
	}
	line := func(cells []string) {
		cells[0] = fmt.Sprintf("%-*s", width, cells[0]) // the one column that is aligned to the left
		fmt.Fprintln(t, strings.Join(cells, "\t")+"\t")
	}
	line(groups)
	line(head)
	for _, it := range items {
		if cells := tableRow(r, it, columns, qs); cells != nil {
			line(cells)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	return nil
}

// tableRow returns an item's cells, nil if it was not measured.
func tableRow(r *result, it item, columns []string, qs []quotient) []string {
	cells := []string{it.title, it.metric.String()}
	measured := false
	for _, c := range columns {
		f := figureOf(r.values(it.name, c, it.metric.of))
		measured = measured || f.n > 0
		cells = append(cells, f.cell())
	}
	if !measured {
		return nil
	}
	for _, q := range qs {
		cells = append(cells, figureOf(r.ratios(it.name, q.above, q.below, it.metric.of)).cell())
	}
	for _, c := range columns {
		cells = append(cells, figureOf(r.values(it.name, c, tail)).plain())
	}
	for _, c := range columns {
		cells = append(cells, figureOf(r.values(it.name, c, serverCPU)).plain())
	}
	for _, q := range qs {
		cells = append(cells, figureOf(r.ratios(it.name, q.above, q.below, serverCPU)).plain())
	}
	rounds, quiet := r.counted(it.name)
	if !quiet {
		return append(cells, "busy")
	}
	return append(cells, fmt.Sprintf("%d of %d", len(rounds), r.Rounds))
}

// writeReport prints everything a run found: where, the table, how quiet it was, the requirements.
func writeReport(w io.Writer, r *result) error {
	fmt.Fprintf(w, "%s: %d x %s, Linux %s, %d GiB; volume of %d MiB on tmpfs, %d rounds of %s\n",
		r.When.Format("2006-01-02 15:04"), r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel, r.Machine.MemGiB,
		r.SizeBytes>>20, r.Rounds, r.Runtime)
	if len(r.Samples) > 0 {
		fmt.Fprintf(w, "Medians over the quiet rounds (other work below %.0f %% of the CPUs), ± half the range; a ratio is the median of the rounds' ratios.\n"+
			"CPU is that of all server processes of the column, per operation.\n\n", r.QuietPct)
		if err := writeTable(w, r); err != nil {
			return err
		}
		writeQuiet(w, r)
	}
	verdicts := requirements(r)
	if len(verdicts) > 0 {
		fmt.Fprintln(w)
	}
	for _, v := range verdicts {
		fmt.Fprintln(w, v)
	}
	return nil
}

// writeQuiet says how much other work ran beside the samples.
func writeQuiet(w io.Writer, r *result) {
	var foreign []float64
	repeated := 0
	for _, s := range r.Samples {
		foreign = append(foreign, s.Foreign+s.Stolen)
		repeated += s.Attempts - 1
	}
	f := figureOf(foreign)
	fmt.Fprintf(w, "\nOther processes and the hypervisor took %.1f %% of the CPUs in the median sample, %.1f %% in the worst; %d attempts repeated.\n",
		f.median, slices.Max(foreign), repeated)
	busy := slices.ContainsFunc(items, func(it item) bool { _, quiet := r.counted(it.name); return !quiet })
	if busy {
		fmt.Fprintln(w, "busy: fewer than three rounds were quiet, all are counted. Measure again before quoting such a line.")
	}
}
