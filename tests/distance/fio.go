package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// errNoOutput says that fio ended without the figures that were asked for.
var errNoOutput = errors.New("fio reported no work")

// fioGrace is what a run of fio may take beside its jobs' time: 8 MiB under way at 0.1 MB/s are 80 s.
const fioGrace = 90 * time.Second

// fioJob is the part of fio's JSON that counts.
type fioJob struct {
	Name  string `json:"jobname"`
	Error int    `json:"error"`
	Write struct {
		Ops     int64   `json:"total_ios"`
		Iops    float64 `json:"iops"`
		BwBytes float64 `json:"bw_bytes"`
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	} `json:"write"`
}

// fioArgs is fio's command line for jobs on a target (fio's arguments that name it), one after another.
func fioArgs(target []string, jobs []work, runtime time.Duration) []string {
	args := append([]string{"--thread", "--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json", "--time_based",
		fmt.Sprintf("--size=%d", volumeBytes), fmt.Sprintf("--runtime=%dms", runtime.Milliseconds())}, target...)
	for _, w := range jobs {
		args = append(args, "--name="+w.name, "--stonewall", "--rw="+w.rw, "--bs="+w.bs, fmt.Sprintf("--iodepth=%d", w.depth))
	}
	return args
}

// measure runs the jobs and puts what they did into c.
func (c *cell) measure(ctx context.Context, target []string, jobs []work, runtime time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(len(jobs))*runtime+fioGrace)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", fioArgs(target, jobs, runtime)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fio: %w: %.300s", err, bytes.TrimSpace(append(errOut.Bytes(), out.Bytes()...)))
	}
	list, err := parseFio(out.Bytes())
	if err != nil {
		return err
	}
	for _, j := range list {
		switch j.Name {
		case "depth-1":
			c.Depth1ms, c.Depth1p99 = j.Write.Latency.Percentile["50.000000"]/1e6, j.Write.Latency.Percentile["99.000000"]/1e6
		case "depth-32":
			c.Depth32 = j.Write.Iops
		case "bulk":
			c.BulkMBs = j.Write.BwBytes / 1e6
		}
	}
	return nil
}

// parseFio reads fio's JSON; its nbd engine prints lines of its own before it.
func parseFio(out []byte) ([]fioJob, error) {
	start := bytes.IndexByte(out, '{')
	if start < 0 {
		return nil, errNoOutput
	}
	var report struct {
		Jobs []fioJob `json:"jobs"`
	}
	if err := json.Unmarshal(out[start:], &report); err != nil {
		return nil, fmt.Errorf("fio's JSON: %w", err)
	}
	for _, j := range report.Jobs {
		if j.Error != 0 || j.Write.Ops == 0 {
			return nil, fmt.Errorf("%w: %s: error %d", errNoOutput, j.Name, j.Error)
		}
	}
	if len(report.Jobs) == 0 {
		return nil, errNoOutput
	}
	return report.Jobs, nil
}
