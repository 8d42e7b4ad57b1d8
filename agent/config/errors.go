package config

import (
	"fmt"
	"io/fs"
	"sort"
	"strings"
)

// Fault is one thing wrong with a configuration.
type Fault struct {
	Line int    // from 1; 0 when it belongs to no line (a missing section)
	Key  string // as a reader would write it: "volume.size"; "" for a syntax error
	Text string
}

// Error is every fault of a configuration file, in the order of their lines.
type Error struct {
	File   string
	Faults []Fault
}

// Error returns one line for each fault: file:line: key: text.
func (e *Error) Error() string {
	var b strings.Builder
	for i, f := range e.Faults {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		if f.Key != "" {
			b.WriteString(": " + f.Key)
		}
		b.WriteString(": " + f.Text)
	}
	return b.String()
}

func (e *Error) add(line int, key, format string, args ...any) {
	e.Faults = append(e.Faults, Fault{Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

// orNil returns e, sorted, or nil when there is no fault.
func (e *Error) orNil() error {
	if len(e.Faults) == 0 {
		return nil
	}
	sort.SliceStable(e.Faults, func(i, j int) bool { return e.Faults[i].Line < e.Faults[j].Line })
	return e
}

// missingError is fs.ErrNotExist for people.
type missingError struct{ path string }

func (e *missingError) Error() string {
	return fmt.Sprintf("there is no configuration at %s: write one with qrbd init, or name another with --config or QRBD_CONFIG", e.path)
}

func (e *missingError) Unwrap() error { return fs.ErrNotExist }
