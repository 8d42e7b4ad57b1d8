package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// errNoOutput says that fio ended without the JSON that was asked for, or without having done any work.
var errNoOutput = errors.New("fio reported no work")

// fioRun is what one run of fio measured.
type fioRun struct {
	ops       int64         // requests completed, flushes not counted
	opsPerSec float64       //
	mbPerSec  float64       // 10^6 bytes per second
	p50us     float64       // median of a request's time from submission to completion
	p99us     float64       //
	flushes   int64         //
	flushP50  float64       // us, 0 without flushes
	flushP99  float64       // us, 0 without flushes
	clientCPU time.Duration // user and system time of fio itself
}

// fioStats is the part of fio's JSON that one direction (read, write, mixed, sync) carries.
type fioStats struct {
	Ops     int64   `json:"total_ios"`
	Iops    float64 `json:"iops"`
	BwBytes float64 `json:"bw_bytes"`
	Latency struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

// us returns a percentile, fio's spelling, in microseconds.
func (s fioStats) us(percentile string) float64 { return s.Latency.Percentile[percentile] / 1000 }

// fioJob is one job of fio's JSON.
type fioJob struct {
	Error int      `json:"error"`
	Read  fioStats `json:"read"`
	Write fioStats `json:"write"`
	Mixed fioStats `json:"mixed"`
	Sync  fioStats `json:"sync"`
}

// workArgs returns fio's arguments for an item, without the ones that say where and how long.
func workArgs(it item) []string {
	args := []string{"--rw=" + it.rw, "--bs=" + it.bs, "--iodepth=" + strconv.Itoa(it.depth)}
	if it.flush {
		args = append(args, "--fsync=1")
	}
	if it.rw == "randrw" {
		args = append(args, "--rwmixread=70", "--unified_rw_reporting=mixed")
	}
	return args
}

// forDuration returns fio's arguments for a run limited by time over a device of sizeBytes.
func forDuration(d time.Duration, sizeBytes int64) []string {
	return []string{"--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()), fmt.Sprintf("--size=%d", sizeBytes)}
}

// runFio runs one fio process against an NBD URI and blocks until it ends.
func runFio(ctx context.Context, uri string, args ...string) (fioRun, error) {
	all := append([]string{"--name=bench", "--ioengine=nbd", "--uri=" + uri, "--thread",
		"--lat_percentiles=1", "--clat_percentiles=0", "--group_reporting", "--output-format=json"}, args...)
	cmd := exec.CommandContext(ctx, "fio", all...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return fioRun{}, fmt.Errorf("fio %v: %w: %s", all, err, lastLine(append(errOut.Bytes(), out.Bytes()...)))
	}
	run, err := parseFio(out.Bytes())
	if err != nil {
		return fioRun{}, fmt.Errorf("fio %v: %w: %s", all, err, lastLine(errOut.Bytes()))
	}
	run.clientCPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return run, nil
}

// parseFio reads fio's JSON. The nbd engine prints a line of its own before it.
func parseFio(out []byte) (fioRun, error) {
	start := bytes.IndexByte(out, '{')
	if start < 0 {
		return fioRun{}, errNoOutput
	}
	var report struct {
		Jobs []fioJob `json:"jobs"`
	}
	if err := json.Unmarshal(out[start:], &report); err != nil {
		return fioRun{}, fmt.Errorf("reading fio's JSON: %w", err)
	}
	if len(report.Jobs) != 1 {
		return fioRun{}, fmt.Errorf("%w: %d jobs, want 1", errNoOutput, len(report.Jobs))
	}
	job := report.Jobs[0]
	if job.Error != 0 {
		return fioRun{}, fmt.Errorf("fio's job failed with error %d", job.Error)
	}
	for _, s := range []fioStats{job.Mixed, job.Write, job.Read} {
		if s.Ops > 0 {
			return fioRun{
				ops: s.Ops, opsPerSec: s.Iops, mbPerSec: s.BwBytes / 1e6,
				p50us: s.us("50.000000"), p99us: s.us("99.000000"),
				flushes: job.Sync.Ops, flushP50: job.Sync.us("50.000000"), flushP99: job.Sync.us("99.000000"),
			}, nil
		}
	}
	return fioRun{}, errNoOutput
}

// lastLine returns the last line of a program's output that says something, for an error message.
func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(out[bytes.LastIndexByte(out, '\n')+1:])
}
