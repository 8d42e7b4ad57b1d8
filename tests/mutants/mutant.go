package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrStale: the text that a mutant replaces is not in the code exactly once.
var ErrStale = errors.New("the mutant is stale")

// Mutant is one way to break the code.
type Mutant struct {
	Name string // unique, a file name
	Why  string // what it would lose or mix
	// First is where its seeds begin: a range of the simulator's in which what it takes
	// is common. 0: at the flag's.
	First uint64
	Edits []Edit
	// Test, if any, is the test of the package in directory In that finds it: it is not
	// hunted with the simulator, for the reason that But gives.
	In, Test, But string
}

// Edit replaces text of one file.
type Edit struct {
	File     string // from the root of the module
	Old, New string
}

// Apply returns the mutant's files, by their paths from root, as they are once it
// is applied. It changes nothing. ErrStale: an old text is not there exactly once.
func (m *Mutant) Apply(root string) (map[string]string, error) {
	out := map[string]string{}
	for i, e := range m.Edits {
		text, ok := out[e.File]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.File))
			if err != nil {
				return nil, fmt.Errorf("mutant %s, edit %d: %w: %w", m.Name, i+1, ErrStale, err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return nil, fmt.Errorf("mutant %s, edit %d: %w: its text is in %s %d times, not once: %q", m.Name, i+1, ErrStale, e.File, n, e.Old)
		}
		out[e.File] = strings.Replace(text, e.Old, e.New, 1)
	}
	return out, nil
}
