package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// options are the command line's.
type options struct {
	root     string
	seeds    int           // for each mutant, at most
	first    uint64        // seed
	workers  int           // of one hunt
	limit    time.Duration // of one hunt
	only     string        // names that contain one of these, comma separated; "": all
	progress bool
	hunt     bool
	list     bool
}

func main() {
	var opt options
	flag.StringVar(&opt.root, "root", ".", "the module's `directory`")
	flag.IntVar(&opt.seeds, "seeds", 2000, "how many seeds each mutant gets at most")
	flag.Uint64Var(&opt.first, "seed", 1, "the first seed")
	flag.IntVar(&opt.workers, "workers", runtime.GOMAXPROCS(0), "how many seeds run at a time")
	flag.DurationVar(&opt.limit, "limit", 20*time.Minute, "how long one mutant may take")
	flag.StringVar(&opt.only, "only", "", "only mutants whose `names` contain one of these, separated by commas")
	flag.BoolVar(&opt.list, "list", false, "list the mutants and what each would do")
	flag.BoolVar(&opt.hunt, "hunt", false, "(used by itself) run the simulator that is compiled in")
	flag.Parse()
	if flag.NArg() > 0 || opt.seeds < 1 || opt.workers < 1 {
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
	w := &workshop{root: root, dir: dir}
	t := &table{out: out}
	t.head()
	for _, m := range picked {
		p, took, err := w.hunt(ctx, m, opt)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.row(m, p, took, err)
	}
	t.control(w.control)
	return t.verdict(len(picked))
}
