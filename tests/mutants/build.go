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
	"sync"
	"time"
)

// workshop builds and runs mutants of the module at root in a directory of its own.
type workshop struct {
	root string
	dir  string

	mu      sync.Mutex
	built   bool              // the code as it is
	control map[uint64]string // what that fails with, by seed; "": it passes
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
		args = append(args, "-ldflags", "-s -w", "-o", out) // half the time of a link goes into what a debugger wants
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = w.root
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not compile: %w\n%s", name, err, b)
	}
	return nil
}

// verdict says what becomes of a mutant.
func (w *workshop) verdict(ctx context.Context, m *Mutant, opt *options) (note, error) {
	began := time.Now()
	n := note{Mutant: m.Name, Sum: m.sum()}
	var err error
	if m.Test != "" {
		n.Prey, err = w.tried(ctx, m, opt)
	} else {
		n.Prey, err = w.hunt(ctx, m, opt, &n)
	}
	n.Took = time.Since(began)
	return n, err
}

// hunt builds the simulator with the mutant in it and has it look for a seed that
// fails, and that passes with the code as it is. What that says of a seed is noted.
func (w *workshop) hunt(ctx context.Context, m *Mutant, opt *options, n *note) (prey, error) {
	bin := filepath.Join(w.dir, m.Name+".bin")
	defer os.Remove(bin)
	if err := w.build(ctx, m, bin, "./tests/mutants"); err != nil {
		return prey{}, err
	}
	start := opt.first
	if m.First != 0 {
		start += m.First
	}
	for first, end := start, start+uint64(opt.seeds); ; {
		p, err := w.run(ctx, bin, first, int(end-first), opt)
		p.Ran += int(first - start)
		if err != nil || p.Failed == "" {
			return p, err
		}
		why, err := w.asItIs(ctx, p.Seed, opt)
		if err != nil {
			return p, err
		}
		n.Control = append(n.Control, asItIs{p.Seed, why})
		if why == "" {
			return p, nil
		}
		if first = p.Seed + 1; first == end {
			return prey{Ran: opt.seeds}, nil
		}
	}
}

// asItIs returns what the code as it is fails with at a seed; empty: it passes.
func (w *workshop) asItIs(ctx context.Context, seed uint64, opt *options) (string, error) {
	w.mu.Lock() // also over the run: it is short
	defer w.mu.Unlock()
	if why, known := w.control[seed]; known {
		return why, nil
	}
	bin := filepath.Join(w.dir, "as-it-is.bin")
	if !w.built {
		if err := w.build(ctx, nil, bin, "./tests/mutants"); err != nil {
			return "", err
		}
		w.built = true
	}
	p, err := w.run(ctx, bin, seed, 1, opt)
	if err != nil {
		return "", err
	}
	w.control[seed] = p.Failed
	return p.Failed, nil
}

// tried runs the one test that finds a mutant: it must fail with it, and pass without.
func (w *workshop) tried(ctx context.Context, m *Mutant, opt *options) (prey, error) {
	over, err := w.overlay(m)
	if err != nil {
		return prey{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, opt.limit)
	defer cancel()
	test := func(args ...string) ([]byte, error) {
		args = append([]string{"test", "-count=1"}, args...)
		cmd := exec.CommandContext(ctx, "go", append(args, "-run", "^"+m.Test+"$", "./"+m.In)...)
		cmd.Dir = w.root
		return cmd.CombinedOutput()
	}
	if b, err := test(); err != nil {
		return prey{}, fmt.Errorf("%s of the code as it is: %w\n%s", m.Test, err, b)
	}
	b, err := test("-overlay", over)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return prey{}, nil
	case !errors.As(err, &exit) || !bytes.Contains(b, []byte("--- FAIL")) && !bytes.Contains(b, []byte("panic:")):
		return prey{}, fmt.Errorf("%s: %w\n%s", m.Test, err, b)
	}
	return prey{Failed: "test: " + m.Test + " of ./" + m.In}, nil
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
