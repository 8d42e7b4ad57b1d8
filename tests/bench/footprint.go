package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	footprintVolume = 1 << 40 // bytes
	footprintLoad   = 3 * time.Second
)

// footprint is what two agents of a 1 TiB volume need.
type footprint struct {
	VolumeBytes  int64            `json:"volume_bytes"`
	PeakRSS      map[string]int64 `json:"peak_rss_bytes"`        // by node, VmHWM after the load
	IdleRSS      map[string]int64 `json:"idle_peak_rss_bytes"`   // by node, VmHWM before the load
	FirstSync    float64          `json:"first_sync_s"`          // of the empty volume, from promotion to both up-to-date
	Start        float64          `json:"start_s"`               // slowest first start, until the control API knows the volume
	RestartClean float64          `json:"restart_after_stop_s"`  // alpha, after SIGTERM
	RestartCrash float64          `json:"restart_after_crash_s"` // alpha, after SIGKILL under load's activity map
	WritesPerSec float64          `json:"writes_4k_per_s"`       // random over the whole volume, four connections, depth 32 each
	MBPerSec     float64          `json:"write_1m_mb_per_s"`     // sequential, four connections, depth 8 each
}

// measureFootprint builds a pair with a sparse 1 TiB volume, loads it in full, and reads the agents' peak memory; then it
// kills and stops the primary and times its starts.
func measureFootprint(ctx context.Context, s site) (*footprint, error) {
	s.sizeBytes = footprintVolume
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("footprint: %w", err)
	}
	p, err := newPair(ctx, s)
	defer func() { p.close() }()
	if err != nil {
		return nil, err
	}
	f := &footprint{VolumeBytes: s.sizeBytes}
	for _, n := range []*node{p.beta, p.alpha} {
		took, err := n.start(ctx)
		if err != nil {
			return nil, err
		}
		f.Start = max(f.Start, took.Seconds())
	}
	begin := time.Now()
	if err := p.bringUp(ctx); err != nil {
		return nil, err
	}
	f.FirstSync = time.Since(begin).Seconds()
	if f.IdleRSS, err = p.peakRSS(); err != nil {
		return nil, err
	}
	if err := f.load(ctx, p); err != nil {
		return nil, err
	}
	if f.PeakRSS, err = p.peakRSS(); err != nil {
		return nil, err
	}
	if f.RestartCrash, err = p.alpha.restart(ctx, syscall.SIGKILL); err != nil {
		return nil, err
	}
	f.RestartClean, err = p.alpha.restart(ctx, syscall.SIGTERM)
	return f, err
}

// load writes small blocks all over the volume, large ones in sequence, and a mix, with four connections each.
func (f *footprint) load(ctx context.Context, p pair) error {
	uri := unixURI(volumeName, p.alpha.socket())
	common := append([]string{"--numjobs=4", "--norandommap"}, forDuration(footprintLoad, footprintVolume)...)
	small, err := runFio(ctx, uri, append([]string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, common...)...)
	if err != nil {
		return err
	}
	large, err := runFio(ctx, uri, append([]string{"--rw=write", "--bs=1m", "--iodepth=8", "--offset_increment=200g"}, common...)...)
	if err != nil {
		return err
	}
	if _, err := runFio(ctx, uri, append([]string{"--rw=randrw", "--bs=64k", "--iodepth=16"}, common...)...); err != nil {
		return err
	}
	f.WritesPerSec, f.MBPerSec = small.opsPerSec, large.mbPerSec
	return nil
}

// peakRSS returns the peak memory of both agents.
func (p pair) peakRSS() (map[string]int64, error) {
	peaks := map[string]int64{}
	for _, n := range []*node{p.alpha, p.beta} {
		peak, err := n.agent.peakRSS()
		if err != nil {
			return nil, err
		}
		peaks[n.name] = peak
	}
	return peaks, nil
}

// restart ends the agent by a signal and returns the seconds that its next start takes.
func (n *node) restart(ctx context.Context, sig os.Signal) (float64, error) {
	n.agent.stop(sig)
	took, err := n.start(ctx)
	return took.Seconds(), err
}

// verdicts judges memory and start.
func (f *footprint) verdicts() []verdict {
	peak := max(f.PeakRSS["alpha"], f.PeakRSS["beta"])
	slowest := max(f.Start, f.RestartClean, f.RestartCrash)
	mib := func(bytes int64) float64 { return float64(bytes) / (1 << 20) }
	return []verdict{
		{
			what: "1 TiB volume, full load: memory under 200 MiB", met: peak < footprintRSSMax,
			measured: fmt.Sprintf("peak RSS alpha %.0f MiB (idle %.0f), beta %.0f MiB (idle %.0f); %s writes/s of 4 KiB, %s MB/s of 1 MiB",
				mib(f.PeakRSS["alpha"]), mib(f.IdleRSS["alpha"]), mib(f.PeakRSS["beta"]), mib(f.IdleRSS["beta"]),
				number(f.WritesPerSec), number(f.MBPerSec)),
		},
		{
			what: "1 TiB volume: start under 2 s", met: slowest < footprintStart,
			measured: fmt.Sprintf("first %.2f s, after SIGTERM %.2f s, after SIGKILL %.2f s (first sync of the empty volume %.2f s)",
				f.Start, f.RestartClean, f.RestartCrash, f.FirstSync),
		},
	}
}
