package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// note is what is known of a mutant: a line of the file of -state.
type note struct {
	Of      string        `json:"of"` // commit, seeds and first seed that it holds for
	Mutant  string        `json:"mutant"`
	Sum     string        `json:"sum"` // of the mutant's edits and range
	Prey    prey          `json:"prey"`
	Took    time.Duration `json:"took"`
	Control []asItIs      `json:"control,omitempty"`
}

// asItIs is what the code as it is says of a seed.
type asItIs struct {
	Seed   uint64 `json:"seed"`
	Failed string `json:"failed"`
}

// notes are those of one run, kept in a file so that an interrupted one goes on.
type notes struct {
	path string // "": they are not kept
	key  string // note.Of
	list []note
}

// openNotes reads what earlier runs of the same commit have found. A tree with changes
// has no name that a result could be kept under.
func openNotes(ctx context.Context, path, root string, seeds int, first uint64) (*notes, error) {
	b := &notes{path: path}
	if path == "" {
		return b, nil
	}
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("git %s, for the commit that results are kept under: %w", args[0], err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	commit, err := git("rev-parse", "HEAD")
	if err != nil {
		return nil, err
	}
	if changed, err := git("status", "--porcelain", "-uno"); err != nil {
		return nil, err
	} else if changed != "" {
		return nil, fmt.Errorf("results are kept by commit, and there are changes that none has: commit them, or leave -state out\n%s", changed)
	}
	b.key = fmt.Sprintf("%s, %d seeds from %d", commit, seeds, first)
	return b, b.read()
}

// read takes the notes of the same commit from the file. A line that was cut short is
// none.
func (b *notes) read() error {
	text, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("results of an earlier run: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var n note
		if json.Unmarshal(lines.Bytes(), &n) == nil && n.Of == b.key {
			b.list = append(b.list, n)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("results of an earlier run, in %s: %w", b.path, err)
	}
	return nil
}

// of returns what is known of a mutant as it is now.
func (b *notes) of(m *Mutant) (note, bool) {
	for _, n := range b.list {
		if n.Mutant == m.Name && n.Sum == m.sum() {
			return n, true
		}
	}
	return note{}, false
}

// control returns what is known of the code as it is, by seed.
func (b *notes) control() map[uint64]string {
	out := map[uint64]string{}
	for _, n := range b.list {
		for _, c := range n.Control {
			out[c.Seed] = c.Failed
		}
	}
	return out
}

// add keeps a note.
func (b *notes) add(n note) error {
	if b.path == "" {
		return nil
	}
	n.Of = b.key
	line, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	_, err = f.Write(append([]byte("\n"), append(line, '\n')...)) // behind one that was cut short
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	return nil
}

// sum tells a mutant from what it was before somebody changed it.
func (m *Mutant) sum() string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%+v", *m)))[:16]
}
