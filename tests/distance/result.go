package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// result is what runs measured: the content of the results file.
type result struct {
	When    time.Time `json:"when"`
	Qrbd    string    `json:"qrbd"`
	Runtime string    `json:"runtime"`
	Rounds  int       `json:"rounds"`
	Cells   []cell    `json:"cells"`
}

// loadResults reads files and puts their cells together; each file counts as rounds of its own.
func loadResults(paths []string) (*result, error) {
	all := &result{}
	for _, path := range paths {
		var one result
		if err := readJSON(path, &one); err != nil {
			return nil, err
		}
		for i := range one.Cells {
			one.Cells[i].Round += all.Rounds
		}
		all.When, all.Qrbd, all.Runtime = one.When, one.Qrbd, one.Runtime
		all.Rounds += one.Rounds
		all.Cells = append(all.Cells, one.Cells...)
	}
	return all, nil
}

// median of a figure over the rounds of a cell; 0 if there is none.
func (r *result) median(at condition, column string, of func(cell) float64) float64 {
	var list []float64
	for _, c := range r.Cells {
		if c.condition == at && c.Column == column && of(c) > 0 {
			list = append(list, of(c))
		}
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// conditions in the order of the table.
func (r *result) conditions() []condition {
	var list []condition
	for _, c := range r.Cells {
		if !slices.Contains(list, c.condition) {
			list = append(list, c.condition)
		}
	}
	slices.SortFunc(list, func(a, b condition) int {
		return cmp.Or(cmp.Compare(a.RTTms, b.RTTms), cmp.Compare(a.LossPct, b.LossPct))
	})
	return list
}

// columns that were measured, in the table's order.
func (r *result) columns() []string {
	var list []string
	for _, k := range columnKinds {
		if slices.ContainsFunc(r.Cells, func(c cell) bool { return c.Column == k.name }) {
			list = append(list, k.name)
		}
	}
	return list
}

func depth1(c cell) float64  { return c.Depth1ms }
func depth32(c cell) float64 { return c.Depth32 }
func bulk(c cell) float64    { return c.BulkMBs }

// write prints the table, one line per condition and column, and the verdicts.
func (r *result) write(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, User-Mode Linux, %d runs, works of %s\n\n", r.When.Format("2006-01-02 15:04"), r.Qrbd, r.Rounds, r.Runtime)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "round trip, loss\tcolumn\t4 KiB, depth 1, ms\tdepth 32, /s\t1 MiB, depth 8, MB/s\t")
	for _, at := range r.conditions() {
		for _, column := range r.columns() {
			one := r.median(at, column, depth1)
			if one == 0 {
				if why := r.failure(at, column); why != "" {
					fmt.Fprintf(t, "%v\t%s\t%s\t\t\t\n", at, column, why)
				}
				continue
			}
			fmt.Fprintf(t, "%v\t%s\t%.2f\t%.0f\t%s\t\n", at, column, one, r.median(at, column, depth32), short(r.median(at, column, bulk)))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, v := range r.verdicts() {
		fmt.Fprintln(w, v)
	}
	return nil
}

// failure says why a cell has no figures.
func (r *result) failure(at condition, column string) string {
	for _, c := range r.Cells {
		if c.condition == at && c.Column == column && c.Failed != "" {
			return c.Failed
		}
	}
	return ""
}

// short prints a figure, or a dash if it was not measured.
func short(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", x)
}
