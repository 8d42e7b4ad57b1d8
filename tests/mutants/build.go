package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// workshop builds and runs mutants of the module at root in a directory of its own.
type workshop struct {
	root    string
	dir     string
	control map[uint64]string // what the code as it is fails with, by seed; "": it passes
}

// overlay writes the mutant's files and the description that go build takes, and
// returns the latter's path.
func (w *workshop) overlay(m *Mutant) (string, error) {
	files, err := m.Apply(w.root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range files {
		path := filepath.Join(w.dir, m.Name, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", fmt.Errorf("mutant %s: %w", m.Name, err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("mutant %s: %w", m.Name, err)
		}
		original, err := filepath.Abs(filepath.Join(w.root, file))
		if err != nil {
			return "", fmt.Errorf("mutant %s: %w", m.Name, err)
		}
		replace[original] = path
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("mutant %s: %w", m.Name, err)
	}
	path := filepath.Join(w.dir, m.Name+".json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return "", fmt.Errorf("mutant %s: %w", m.Name, err)
	}
	return path, nil
}

// build compiles packages of the module with the mutant in place (nil: as they are),
// to a file of that name ("": only see whether they compile).
func (w *workshop) build(ctx context.Context, m *Mutant, out string, packages ...string) error {
	args := []string{"build"}
	name := "the code as it is"
	if m != nil {
		name = "mutant " + m.Name
		over, err := w.overlay(m)
		if err != nil {
			return err
		}
		args = append(args, "-overlay", over)
	}
	if out != "" {
		args = append(args, "-o", out)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = w.root
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not compile: %w\n%s", name, err, b)
	}
	return nil
}

// hunt builds the simulator with the mutant in it and has it look for a seed that
// fails, and that passes with the code as it is.
func (w *workshop) hunt(ctx context.Context, m *Mutant, opt *options) (prey, time.Duration, error) {
	bin := filepath.Join(w.dir, m.Name+".bin")
	defer os.Remove(bin)
	if err := w.build(ctx, m, bin, "./tests/mutants"); err != nil {
		return prey{}, 0, err
	}
	began := time.Now()
	start := opt.first
	if m.First != 0 {
		start += m.First
	}
	for first, end := start, start+uint64(opt.seeds); ; {
		p, err := w.run(ctx, bin, first, int(end-first), opt)
		p.Ran += int(first - start)
		if err != nil || p.Failed == "" {
			return p, time.Since(began), err
		}
		sound, err := w.passes(ctx, p.Seed, opt)
		if err != nil || sound {
			return p, time.Since(began), err
		}
		if first = p.Seed + 1; first == end {
			return prey{Ran: opt.seeds}, time.Since(began), nil
		}
	}
}

// passes reports whether the code as it is passes a seed.
func (w *workshop) passes(ctx context.Context, seed uint64, opt *options) (bool, error) {
	if why, known := w.control[seed]; known {
		return why == "", nil
	}
	bin := filepath.Join(w.dir, "as-it-is.bin")
	if len(w.control) == 0 {
		w.control = map[uint64]string{}
		if err := w.build(ctx, nil, bin, "./tests/mutants"); err != nil {
			return false, err
		}
	}
	p, err := w.run(ctx, bin, seed, 1, opt)
	if err != nil {
		return false, err
	}
	w.control[seed] = p.Failed
	return p.Failed == "", nil
}

// run has a simulator look for a failing seed among n from first on.
func (w *workshop) run(ctx context.Context, bin string, first uint64, n int, opt *options) (prey, error) {
	name := filepath.Base(bin)
	ctx, cancel := context.WithTimeout(ctx, opt.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-hunt", "-seeds", strconv.Itoa(n), "-seed", strconv.FormatUint(first, 10), "-workers", strconv.Itoa(opt.workers))
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if opt.progress {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return prey{}, fmt.Errorf("%s: no verdict within %s", name, opt.limit)
		}
		return prey{}, fmt.Errorf("%s: the simulator: %w\n%s", name, err, text.Bytes())
	}
	var p prey
	if err := json.Unmarshal(out.Bytes(), &p); err != nil {
		return prey{}, fmt.Errorf("%s: the simulator said %q: %w", name, out.Bytes(), err)
	}
	return p, nil
}
