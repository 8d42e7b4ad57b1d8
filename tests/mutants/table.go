package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// table is what people see: a row as soon as it is known.
type table struct {
	out     io.Writer
	caught  int
	missed  []string // names that escaped, or of which nothing can be said
	unsound string   // the code as it is fails, too
}

const rowFormat = "%-34s %-8s %6v %7.1f  %s\n"

func (t *table) head() {
	fmt.Fprintf(t.out, "%-34s %-8s %6s %7s  %s\n", "mutant", "by", "seeds", "seconds", "what was found")
}

// row says what became of a mutant.
func (t *table) row(m *Mutant, p prey, took time.Duration, err error) {
	switch {
	case err != nil:
		t.missed = append(t.missed, m.Name)
		fmt.Fprintf(t.out, rowFormat, m.Name, "-", "-", took.Seconds(), "NO VERDICT: "+err.Error())
	case p.Failed == "":
		t.missed = append(t.missed, m.Name)
		fmt.Fprintf(t.out, rowFormat, m.Name, "-", p.Ran, took.Seconds(), "ESCAPED")
	default:
		t.caught++
		fmt.Fprintf(t.out, rowFormat, m.Name, p.checker(), p.Ran, took.Seconds(), short(p.Failed))
	}
}

// control says how the code as it is fared with the seeds that caught a mutant.
func (t *table) control(seeds map[uint64]string) {
	for _, seed := range slices.Sorted(maps.Keys(seeds)) {
		if why := seeds[seed]; why != "" {
			t.unsound = fmt.Sprintf("FAILS with seed %d: %s", seed, short(why))
			fmt.Fprintf(t.out, "the code as it is %s\n", t.unsound)
		}
	}
}

// verdict sums up; an error says what is wrong.
func (t *table) verdict(n int) error {
	fmt.Fprintf(t.out, "mutants caught: %d of %d\n", t.caught, n)
	switch {
	case len(t.missed) > 0:
		return fmt.Errorf("not caught: %s", strings.Join(t.missed, ", "))
	case t.unsound != "":
		return fmt.Errorf("the code as it is %s", t.unsound)
	}
	return nil
}

// short cuts a checker's words to one line of a terminal or so.
func short(s string) string {
	_, s, _ = strings.Cut(s, ": ")
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 120 {
		s = s[:117] + "..."
	}
	return s
}
