package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// profileMin is the shortest run that gives a profile enough samples.
const profileMin = 2 * time.Second

// profile runs each item once more on each column under perf and writes DIR/COLUMN-ITEM.txt: where the servers' CPU time
// goes, by symbol, most first. The figures of the table are not touched by it.
func (b *bench) profile(ctx context.Context) error {
	if err := os.MkdirAll(b.opts.perf, 0o755); err != nil {
		return fmt.Errorf("profiles: %w", err)
	}
	for _, it := range b.opts.items {
		for _, c := range b.columns {
			if err := b.profileItem(ctx, c, it); err != nil {
				return fmt.Errorf("profile of %s, %s: %w", c.name, it.name, err)
			}
		}
	}
	fmt.Fprintf(b.progress, "profiles are in %s after %v\n", b.opts.perf, b.elapsed())
	return nil
}

// profileItem records and reports one item on one column. The raw record is kept beside the report.
func (b *bench) profileItem(ctx context.Context, c *column, it item) error {
	var pids []string
	for _, p := range c.servers {
		pids = append(pids, strconv.Itoa(p.pid()))
	}
	base := filepath.Join(b.opts.perf, c.name+"-"+it.name)
	record, err := startProcess(b.opts.perf, c.name+"-"+it.name, "perf", "record", "--freq=997", "--call-graph=fp",
		"--output="+base+".data", "--pid="+strings.Join(pids, ","))
	if err != nil {
		return err
	}
	_, fioErr := runFio(ctx, c.uri, append(workArgs(it), forDuration(max(b.opts.runtime, profileMin), b.opts.sizeBytes)...)...)
	record.stop(syscall.SIGINT) // perf writes its file when interrupted
	if fioErr != nil {
		return fioErr
	}
	report, err := exec.CommandContext(ctx, "perf", "report", "--stdio", "--no-children", "--call-graph=none",
		"--percent-limit=0.3", "--sort=comm,dso,symbol", "--input="+base+".data").Output()
	if err != nil {
		return fmt.Errorf("perf report: %w: %s", err, record.lastWords())
	}
	if err := os.WriteFile(base+".txt", report, 0o644); err != nil {
		return fmt.Errorf("perf report: %w", err)
	}
	return nil
}
