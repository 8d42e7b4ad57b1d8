package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

const (
	attemptsMax    = 4                      // bounds how often one sample is taken because of foreign load
	sampleOverhead = 400 * time.Millisecond // what a sample takes beside its runtime: fio's start and end
)

// bench is one run over a set of columns. Owner: main's goroutine.
type bench struct {
	opts     options
	progress io.Writer
	started  time.Time
	columns  []*column
	left     int // samples still to be taken
}

// measure builds the columns, runs the rounds, ends the columns and compares their copies. It returns the samples taken so far also with an error.
func (b *bench) measure(ctx context.Context, dir string) (samples []sample, err error) {
	defer b.close()
	if err := b.build(ctx, dir); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	b.left = b.opts.rounds * len(b.opts.items) * len(b.columns)
	for round := 1; round <= b.opts.rounds; round++ {
		for _, it := range b.opts.items {
			for _, c := range b.columns {
				s, err := b.quietSample(ctx, c, it)
				if err != nil {
					return samples, fmt.Errorf("round %d, %s, %s: %w", round, it.name, c.name, err)
				}
				s.Round = round
				b.left--
				samples = append(samples, s)
			}
		}
		fmt.Fprintf(b.progress, "round %d of %d done after %v\n", round, b.opts.rounds, b.elapsed())
	}
	if b.opts.perf != "" {
		if err := b.profile(ctx); err != nil {
			return samples, err
		}
	}
	b.close()
	for _, c := range b.columns {
		err = errors.Join(err, c.verify())
	}
	return samples, err
}

// elapsed is the time since the start, for people.
func (b *bench) elapsed() time.Duration { return time.Since(b.started).Round(time.Second) }

// build starts all columns.
func (b *bench) build(ctx context.Context, dir string) error {
	for _, k := range b.opts.columns {
		s := site{dir: filepath.Join(dir, k.name), sizeBytes: b.opts.sizeBytes, qrbd: b.opts.qrbd}
		if err := os.Mkdir(s.dir, 0o700); err != nil {
			return fmt.Errorf("column %s: %w", k.name, err)
		}
		c, err := k.build(ctx, s)
		b.columns = append(b.columns, c) // also when half built: close ends what runs
		if err != nil {
			return fmt.Errorf("column %s: %w", k.name, err)
		}
		fmt.Fprintf(b.progress, "column %s is up after %v\n", k.name, b.elapsed())
	}
	return nil
}

// close ends all columns.
func (b *bench) close() {
	for _, c := range b.columns {
		c.close()
	}
}

// prepare writes every block of every volume once, so that no sample pays for the first touch of memory and no read meets
// a hole, and runs each item shortly.
func (b *bench) prepare(ctx context.Context) error {
	for _, c := range b.columns {
		if _, err := runFio(ctx, c.uri, "--rw=write", "--bs=1m", "--iodepth=8", fmt.Sprintf("--size=%d", b.opts.sizeBytes)); err != nil {
			return fmt.Errorf("filling %s: %w", c.name, err)
		}
	}
	for _, it := range b.opts.items {
		for _, c := range b.columns {
			if _, err := runFio(ctx, c.uri, append(workArgs(it), forDuration(b.opts.warmUp, b.opts.sizeBytes)...)...); err != nil {
				return fmt.Errorf("warming up %s with %s: %w", c.name, it.name, err)
			}
		}
	}
	fmt.Fprintf(b.progress, "volumes are filled and warm after %v\n", b.elapsed())
	return nil
}

// quietSample takes a sample and repeats it while others use the CPUs and the time budget has room for more than the
// samples still to be taken. It returns the attempt with the least foreign load.
func (b *bench) quietSample(ctx context.Context, c *column, it item) (sample, error) {
	var best sample
	for attempt := 1; ; attempt++ {
		s, err := b.takeSample(ctx, c, it)
		if err != nil {
			return sample{}, err
		}
		if attempt == 1 || s.Foreign+s.Stolen < best.Foreign+best.Stolen {
			best = s
		}
		best.Attempts = attempt
		if best.Foreign+best.Stolen <= b.opts.foreignPct || attempt == attemptsMax || b.timeToSpare() <= 0 {
			return best, nil
		}
	}
}

// timeToSpare is what the budget leaves beside the samples still to be taken.
func (b *bench) timeToSpare() time.Duration {
	return b.opts.budget - time.Since(b.started) - time.Duration(b.left)*(b.opts.runtime+sampleOverhead)
}

// takeSample runs one item once on one column.
func (b *bench) takeSample(ctx context.Context, c *column, it item) (sample, error) {
	if err := c.alive(); err != nil {
		return sample{}, err
	}
	allBefore, err := readCPUUse()
	if err != nil {
		return sample{}, err
	}
	ownBefore, begin := ownCPU(), time.Now()
	serverBefore, err := totalCPU(c.servers)
	if err != nil {
		return sample{}, err
	}
	run, err := runFio(ctx, c.uri, append(workArgs(it), forDuration(b.opts.runtime, b.opts.sizeBytes)...)...)
	if err != nil {
		return sample{}, errors.Join(err, c.alive())
	}
	serverAfter, err := totalCPU(c.servers)
	if err != nil {
		return sample{}, err
	}
	took, own := time.Since(begin), ownCPU()-ownBefore
	allAfter, err := readCPUUse()
	if err != nil {
		return sample{}, err
	}
	if it.flush && run.flushes < run.ops-1 {
		return sample{}, fmt.Errorf("%d flushes for %d writes: the export does not take flushes", run.flushes, run.ops)
	}
	server := serverAfter - serverBefore
	share := func(d time.Duration) float64 {
		return max(0, 100*d.Seconds()/took.Seconds()/float64(runtime.NumCPU()))
	}
	perOp := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(run.ops) }
	return sample{
		Item: it.name, Column: c.name, OpsPerSec: run.opsPerSec, MBPerSec: run.mbPerSec,
		P50us: run.p50us, P99us: run.p99us, FlushP50: run.flushP50, FlushP99: run.flushP99,
		CPUus: perOp(server), ClientCPU: perOp(run.clientCPU),
		Foreign: share(allAfter.busy - allBefore.busy - server - run.clientCPU - own),
		Stolen:  share(allAfter.stolen - allBefore.stolen),
	}, nil
}
