package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// options are the command line's.
type options struct {
	root     string
	seeds    int           // for each mutant, at most
	first    uint64        // seed
	workers  int           // of one hunt
	beside   int           // hunts at a time
	limit    time.Duration // of one hunt
	only     string        // names that contain one of these, comma separated; "": all
	state    string        // file of what is known; "": none
	progress bool
	hunt     bool
	list     bool
}

func main() {
	var opt options
	flag.StringVar(&opt.root, "root", ".", "the module's `directory`")
	flag.IntVar(&opt.seeds, "seeds", 2000, "how many seeds each mutant gets at most")
	flag.Uint64Var(&opt.first, "seed", 1, "the first seed")
	flag.IntVar(&opt.workers, "workers", 1, "how many seeds of a mutant run at a time")
	flag.IntVar(&opt.beside, "beside", runtime.GOMAXPROCS(0), "how many mutants are hunted at a time")
	flag.DurationVar(&opt.limit, "limit", 20*time.Minute, "how long one mutant may take")
	flag.StringVar(&opt.only, "only", "", "only mutants whose `names` contain one of these, separated by commas")
	flag.StringVar(&opt.state, "state", "", "a `file` that what is found is kept in, to go on where an earlier run of the same commit was ended")
	flag.BoolVar(&opt.list, "list", false, "list the mutants and what each would do")
	flag.BoolVar(&opt.hunt, "hunt", false, "(used by itself) run the simulator that is compiled in")
	flag.Parse()
	if flag.NArg() > 0 || opt.seeds < 1 || opt.workers < 1 || opt.beside < 1 {
		flag.Usage()
		os.Exit(2)
	}
	info, err := os.Stderr.Stat()
	opt.progress = err == nil && info.Mode()&os.ModeCharDevice != 0
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch {
	case opt.hunt:
		progress := io.Discard
		if opt.progress {
			progress = os.Stderr
		}
		err = huntHere(opt.first, opt.seeds, opt.workers, os.Stdout, progress)
	case opt.list:
		for _, m := range chosen(mutants, opt.only) {
			fmt.Printf("%-34s %s\n", m.Name, m.Why)
			if m.Test != "" {
				fmt.Printf("%-34s found by %s of ./%s, not by the simulator\n", "", m.Test, m.In)
			}
		}
	default:
		err = all(ctx, &opt, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// chosen returns the mutants whose names contain one of the words of only.
func chosen(list []Mutant, only string) []*Mutant {
	var out []*Mutant
	for i := range list {
		for word := range strings.SplitSeq(only, ",") {
			if strings.Contains(list[i].Name, word) {
				out = append(out, &list[i])
				break
			}
		}
	}
	return out
}

// all hunts every chosen mutant. It returns an error unless each was caught by a seed
// that the code as it is passes, and no seed failed with that.
func all(ctx context.Context, opt *options, out io.Writer) error {
	picked := chosen(mutants, opt.only)
	if len(picked) == 0 {
		return fmt.Errorf("no mutant's name contains one of %q", opt.only)
	}
	for _, m := range picked { // before hours are spent
		if _, err := m.Apply(opt.root); err != nil {
			return err
		}
	}
	root, err := filepath.Abs(opt.root)
	if err != nil {
		return fmt.Errorf("directory of the module: %w", err)
	}
	dir, err := os.MkdirTemp("", "qrbd-mutants-")
	if err != nil {
		return fmt.Errorf("a directory for mutants: %w", err)
	}
	defer os.RemoveAll(dir)
	book, err := openNotes(ctx, opt.state, root, opt.seeds, opt.first)
	if err != nil {
		return err
	}
	w := &workshop{root: root, dir: dir, control: book.control()}
	t := &table{out: out}
	t.head()
	if err := w.huntAll(ctx, picked, opt, book, t); err != nil {
		return err
	}
	t.control(w.control)
	return t.verdict(len(picked))
}

// huntAll hunts mutants, some at a time, but for those that the notes know of.
func (w *workshop) huntAll(ctx context.Context, picked []*Mutant, opt *options, book *notes, t *table) error {
	todo := make(chan *Mutant)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // t, failed
		fault error
	)
	for range opt.beside {
		wg.Go(func() {
			for m := range todo {
				n, known := book.of(m)
				var err error
				if !known {
					n, err = w.verdict(ctx, m, opt)
				}
				if ctx.Err() != nil {
					continue
				}
				mu.Lock()
				t.row(m, n.Prey, n.Took, err)
				if err == nil && !known {
					fault = errors.Join(fault, book.add(n))
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range picked {
		todo <- m
	}
	close(todo)
	wg.Wait()
	return errors.Join(ctx.Err(), fault)
}
