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
	"syscall"
	"time"
)

// errNotMet says that -strict was given and a requirement is not met.
var errNotMet = errors.New("a requirement is not met")

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run does what the command line asks for: results to stdout, progress to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == bareCommand {
		return runBareEnd(ctx, args[1:], stdout)
	}
	opts, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	var before *result
	if opts.compare != "" {
		if before, err = loadResult(opts.compare); err != nil {
			return err // before minutes of measuring
		}
	}
	var measureErr error
	var res *result
	if opts.show != "" {
		res, err = loadResult(opts.show)
	} else {
		if err := opts.checkPrograms(); err != nil {
			return err
		}
		res, measureErr = measureAll(ctx, opts, stderr)
		if res.empty() {
			return measureErr
		}
		if err = res.save(opts.out); err == nil {
			fmt.Fprintf(stderr, "raw results: %s\n\n", opts.out)
		}
	}
	if err != nil {
		return errors.Join(measureErr, err)
	}
	return errors.Join(measureErr, report(stdout, res, before, opts.strict))
}

// report prints a result and its comparison with an earlier one, if there is one.
func report(w io.Writer, res, before *result, strict bool) error {
	if err := writeReport(w, res); err != nil {
		return err
	}
	for _, f := range res.Scale {
		if err := f.write(w); err != nil {
			return err
		}
	}
	for _, f := range res.Resync {
		if err := f.write(w); err != nil {
			return err
		}
	}
	if err := writeSlow(w, res.Slow); err != nil {
		return err
	}
	if before != nil {
		if err := writeComparison(w, before, res); err != nil {
			return err
		}
	}
	for _, v := range requirements(res) {
		if strict && !v.met {
			return fmt.Errorf("%w: %s", errNotMet, v.what)
		}
	}
	return nil
}

// measureAll runs the table's items and the footprint test in a directory of its own and removes that. It returns what
// was measured also with an error.
func measureAll(ctx context.Context, opts options, progress io.Writer) (_ *result, err error) {
	res := &result{
		Version: resultVersion, When: time.Now(), Machine: describeMachine(), Programs: programVersions(opts.qrbd),
		Rounds: opts.rounds, Runtime: opts.runtime.String(), SizeBytes: opts.sizeBytes, QuietPct: opts.foreignPct,
	}
	dir, err := os.MkdirTemp(opts.dir, "qrbd-bench-")
	if err != nil {
		return res, fmt.Errorf("directory on tmpfs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if len(opts.items) > 0 {
		b := &bench{opts: opts, progress: progress, started: time.Now()}
		if res.Samples, err = b.measure(ctx, dir); err != nil {
			return res, err
		}
	}
	if opts.footprint {
		fmt.Fprintln(progress, "footprint of a 1 TiB volume")
		if res.Footprint, err = measureFootprint(ctx, site{dir: filepath.Join(dir, footprintItem), qrbd: opts.qrbd}); err != nil {
			return res, fmt.Errorf("footprint: %w", err)
		}
	}
	for _, test := range opts.pairTests {
		for _, transport := range opts.transports {
			s := site{dir: filepath.Join(dir, test+transport), sizeBytes: opts.pairBytes, qrbd: opts.qrbd, transport: transport}
			fmt.Fprintf(progress, "%s over %s\n", test, transport)
			if err := res.measurePair(ctx, test, s, opts, progress); err != nil {
				return res, fmt.Errorf("%s over %s: %w", test, transport, err)
			}
		}
	}
	return res, nil
}

// measurePair does a test of its own in a directory of its own, which is removed, and adds what it found.
func (r *result) measurePair(ctx context.Context, test string, s site, opts options, progress io.Writer) (err error) {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	switch test {
	case echoItem:
		f, err := measureEcho(ctx, s, opts.rounds)
		if err == nil {
			r.Echo = append(r.Echo, f)
		}
		return err
	case scaleItem:
		f, err := measureScale(ctx, s, min(opts.rounds, scaleRounds), opts.runtime)
		if err == nil {
			r.Scale = append(r.Scale, f)
		}
		return err
	case slowItem:
		list, err := measureSlow(ctx, s, progress)
		r.Slow = append(r.Slow, list...)
		return err
	case resyncItem:
		list, err := measureResyncs(ctx, s, progress)
		r.Resync = append(r.Resync, list...)
		return err
	}
	panic("bench: test " + test)
}
