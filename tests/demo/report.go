package main

import (
	"fmt"
	"io"
	"strings"
)

// report is what the demo shows at the end. Every claim is checked, and one that
// does not hold decides the verdict.
type report struct {
	title    string
	lines    []string // "label\tvalue", in order
	failures []string
}

// add adds a line that claims nothing.
func (r *report) add(label, format string, args ...any) {
	r.lines = append(r.lines, label+"\t"+fmt.Sprintf(format, args...))
}

// claim adds a line, and a failure if it does not hold.
func (r *report) claim(holds bool, label, format string, args ...any) {
	r.add(label, format, args...)
	if !holds {
		r.fail("%s: %s", label, fmt.Sprintf(format, args...))
	}
}

// fail notes a failure.
func (r *report) fail(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *report) good() bool { return len(r.failures) == 0 && len(r.lines) > 0 }

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", r.title)
	for _, line := range r.lines {
		label, value, _ := strings.Cut(line, "\t")
		fmt.Fprintf(w, "  %-24s %s\n", label, value)
	}
	for _, f := range r.failures {
		fmt.Fprintf(w, "\n  FAILED  %s\n", strings.ReplaceAll(f, "\n", "\n          "))
	}
	verdict := "PASSED: nothing was lost"
	if !r.good() {
		verdict = "FAILED"
	}
	fmt.Fprintf(w, "\n  %-24s %s\n", "verdict", verdict)
}
