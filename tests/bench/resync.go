package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

const (
	// resyncLoad is how long clients are measured, alone and beside a resync.
	resyncLoad = 3 * time.Second

	// copyPoll is how often a copy is looked at. Each look starts a program: looking as
	// often as pollInterval takes a third of two CPUs from what is measured.
	copyPoll = 250 * time.Millisecond
	// digestPoll is the same for what may be over in a second.
	digestPoll = 60 * time.Millisecond

	// resyncFill is the part of what the bare transport does that a resync of an idle
	// pair has to reach, resyncRise what the clients' p99 may rise by beside one.
	resyncFill = 0.9
	resyncRise = 1.25

	// digestFactor is how much faster than copying it equal data are compared, at least.
	digestFactor = 5.0
)

// resyncFigures says what a resync does, and what it does to clients.
type resyncFigures struct {
	VolumeBytes int64           `json:"volume_bytes"`
	LinkBits    int64           `json:"link_bits_per_s,omitempty"` // 0: no link, the loopback
	Transport   string          `json:"transport,omitempty"`       // "": QUIC
	BareMBs     float64         `json:"bare_mb_per_s"`             // one bulk stream between two processes
	CopyMBs     float64         `json:"copy_mb_per_s"`             // the same, with the source's store read and a file written over
	IdleMBs     float64         `json:"idle_mb_per_s"`             // a full copy to a new replica
	DigestMBs   float64         `json:"digest_mb_per_s"`           // compared and equal, after a crash of the primary that had written all of it
	Beside      []besideFigures `json:"beside"`
}

// besideFigures are clients' random 4 KiB writes without and with a resync.
type besideFigures struct {
	Depth     int     `json:"depth"`
	AloneP99  float64 `json:"alone_p99_us"`
	BesideP99 float64 `json:"beside_p99_us"`
	AloneOps  float64 `json:"alone_ops_per_s"`
	BesideOps float64 `json:"beside_ops_per_s"`
	ResyncMBs float64 `json:"resync_mb_per_s"` // meanwhile
}

// measureResyncs does it without a link, where the CPUs are the limit, and over one.
func measureResyncs(ctx context.Context, s site, progress io.Writer) (list []*resyncFigures, err error) {
	f, err := measureResync(ctx, s)
	if err != nil {
		return nil, err
	}
	list = append(list, f)
	if !canLink() {
		fmt.Fprintln(progress, "no resync over a link:", errNoLink)
		return list, nil
	}
	fmt.Fprintln(progress, "resync of a 512 MiB volume over 1 Gbit/s")
	s.dir, s.sizeBytes = s.path("link"), linkVolume
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return list, err
	}
	err = overLink(ctx, linkBits, func() error {
		f, err := measureResync(ctx, s)
		if err == nil {
			f.LinkBits = linkBits
			list = append(list, f)
		}
		return err
	})
	return list, err
}

// measureResync times a full copy of a pair's volume, and clients beside another.
func measureResync(ctx context.Context, s site) (*resyncFigures, error) {
	f := &resyncFigures{VolumeBytes: s.sizeBytes, Transport: s.transport}
	p, err := newPair(ctx, s)
	defer func() { p.close() }()
	if err != nil {
		return nil, err
	}
	for _, n := range []*node{p.beta, p.alpha} {
		if _, err := n.start(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.bringUp(ctx); err != nil {
		return nil, err
	}
	uri := unixURI(volumeName, p.alpha.socket())
	if _, err := runFio(ctx, uri, "--rw=write", "--bs=1m", "--iodepth=8", "--refill_buffers", fmt.Sprintf("--size=%d", s.sizeBytes)); err != nil {
		return nil, fmt.Errorf("filling: %w", err)
	}
	if err := f.bare(ctx, s, p); err != nil {
		return nil, err
	}
	for _, depth := range []int{1, 8} {
		run, err := p.clients(ctx, depth)
		if err != nil {
			return nil, err
		}
		f.Beside = append(f.Beside, besideFigures{Depth: depth, AloneP99: run.p99us, AloneOps: run.opsPerSec})
	}
	for i := range f.Beside {
		if err := f.beside(ctx, p, &f.Beside[i]); err != nil {
			return nil, err
		}
	}
	if err := p.renew(ctx); err != nil {
		return nil, err
	}
	if f.IdleMBs, err = copied(ctx, p.alpha, copyPoll, p.settle); err != nil {
		return nil, err
	}
	return f, f.digest(ctx, p, uri)
}

// digest times the resync of a primary that has crashed after it wrote all of the volume: every block may differ, none does.
func (f *resyncFigures) digest(ctx context.Context, p pair, uri string) error {
	if _, err := runFio(ctx, uri, "--rw=write", "--bs=1m", "--iodepth=8", fmt.Sprintf("--size=%d", f.VolumeBytes)); err != nil {
		return fmt.Errorf("writing all: %w", err)
	}
	p.alpha.agent.stop(syscall.SIGKILL)
	if _, err := p.alpha.start(ctx); err != nil {
		return err
	}
	var err error
	f.DigestMBs, err = copied(ctx, p.beta, digestPoll, func(ctx context.Context) error {
		_, err := p.alpha.command(ctx, "wait", volumeName, "--for", "up-to-date", "--timeout", "20s")
		return err
	})
	return err
}

// bare measures what a resync is compared with: the transport alone, and a plain copy
// of alpha's store over it.
func (f *resyncFigures) bare(ctx context.Context, s site, p pair) error {
	size := min(s.sizeBytes, 2<<30)
	alone, err := measureBare(ctx, s.path("bare"), f.Transport, size, [2]string{})
	if err != nil {
		return err
	}
	target := s.path("bare.img")
	defer os.Remove(target)
	f.BareMBs = alone / 1e6
	for range 2 { // the second has its target's pages, as a resync has
		copied, err := measureBare(ctx, s.path("bare"), f.Transport, size, [2]string{p.alpha.path("disk.img"), target})
		if err != nil {
			return err
		}
		f.CopyMBs = copied / 1e6
	}
	return nil
}

// clients runs the clients' load.
func (p pair) clients(ctx context.Context, depth int) (fioRun, error) {
	args := append([]string{"--rw=randwrite", "--bs=4k", fmt.Sprintf("--iodepth=%d", depth)}, forDuration(resyncLoad, p.alpha.sizeBytes)...)
	return runFio(ctx, unixURI(volumeName, p.alpha.socket()), args...)
}

// renew gives beta a brand-new replica, so that alpha copies all of it.
func (p *pair) renew(ctx context.Context) error {
	p.beta.agent.stop(syscall.SIGTERM)
	if _, err := p.beta.command(ctx, "create", volumeName, "--force"); err != nil {
		return err
	}
	_, err := p.beta.start(ctx)
	return err
}

// synced returns how much of a sync from the node is done, and whether it runs.
func (n *node) synced(ctx context.Context) (done int64, runs bool, err error) {
	v, err := n.status(ctx)
	if err != nil || len(v.Peers) != 1 {
		return 0, false, err
	}
	q := v.Peers[0]
	return q.SyncDone, q.Replication == "sync-source" && q.SyncTotal > 0, nil
}

// awaitSync returns when the sync has begun, and how much was done then.
func (n *node) awaitSync(ctx context.Context) (int64, time.Time, error) {
	for deadline := time.Now().Add(syncTimeout); ; time.Sleep(pollInterval) {
		done, runs, err := n.synced(ctx)
		if runs {
			return done, time.Now(), err
		}
		if time.Now().After(deadline) {
			return 0, time.Time{}, fmt.Errorf("no sync begins: %w", errNotReplicating)
		}
	}
}

// beside measures the clients while a resync runs.
func (f *resyncFigures) beside(ctx context.Context, p pair, b *besideFigures) error {
	if err := p.renew(ctx); err != nil {
		return err
	}
	before, begin, err := p.alpha.awaitSync(ctx)
	if err != nil {
		return err
	}
	run, err := p.clients(ctx, b.Depth)
	if err != nil {
		return err
	}
	after, runs, err := p.alpha.synced(ctx)
	if err == nil && !runs {
		err = fmt.Errorf("the resync ended before the clients did: %w", errNotReplicating)
	}
	b.BesideP99, b.BesideOps = run.p99us, run.opsPerSec
	b.ResyncMBs = float64(after-before) / time.Since(begin).Seconds() / 1e6
	return err
}

// copied waits for the end of the sync from a node, sees that the pair is settled then, and returns the sync's pace, MB/s.
func copied(ctx context.Context, n *node, poll time.Duration, settled func(context.Context) error) (float64, error) {
	before, begin, err := n.awaitSync(ctx)
	if err != nil {
		return 0, err
	}
	last, lastAt := before, begin
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(poll) {
		done, runs, err := n.synced(ctx)
		if err != nil {
			return 0, err
		}
		if !runs && last == before { // it was only about to: the connection began anew
			if before, begin, err = n.awaitSync(ctx); err != nil {
				return 0, err
			}
			last, lastAt = before, begin
			continue
		}
		if !runs {
			return float64(last-before) / lastAt.Sub(begin).Seconds() / 1e6, settled(ctx)
		}
		last, lastAt = done, time.Now()
	}
	return 0, fmt.Errorf("the resync does not end: %w", errNotReplicating)
}

// verdicts judges the figures. They are of one run each: near the limit they say
// little.
func (f *resyncFigures) verdicts() []verdict {
	fill := f.IdleMBs / f.BareMBs
	list := []verdict{{
		what: "resync of an idle pair" + f.where() + " does nine tenths of the bare transport", met: fill >= resyncFill,
		measured: fmt.Sprintf("%.0f MB/s, the bare transport %.0f, ratio %.2f (at least %.2f); a plain copy over it %.0f", f.IdleMBs, f.BareMBs, fill, resyncFill, f.CopyMBs),
	}}
	if f.DigestMBs > 0 && f.LinkBits == 0 {
		list = append(list, verdict{
			what: "equal data are compared" + f.where() + " at five times the rate of copying them", met: f.DigestMBs >= digestFactor*f.IdleMBs,
			measured: fmt.Sprintf("%.0f MB/s, copied %.0f, ratio %.2f (at least %.0f)", f.DigestMBs, f.IdleMBs, f.DigestMBs/f.IdleMBs, digestFactor),
		})
	}
	for _, b := range f.Beside {
		rise := b.BesideP99 / b.AloneP99
		list = append(list, verdict{
			what: fmt.Sprintf("clients beside a resync%s, depth %d: p99 rises by a quarter at most", f.where(), b.Depth), met: rise <= resyncRise,
			measured: fmt.Sprintf("%.0f us alone, %.0f beside, ratio %.2f (at most %.2f)", b.AloneP99, b.BesideP99, rise, resyncRise),
		})
	}
	return list
}

// where names the link, for people.
func (f *resyncFigures) where() string {
	over := ""
	if f.LinkBits != 0 {
		over = fmt.Sprintf(" over %g Gbit/s", float64(f.LinkBits)/1e9)
	}
	return over + overTransport(f.Transport)
}

// write prints the figures.
func (f *resyncFigures) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "\nResync of %d MiB%s, copied in full\n  idle               %8.0f MB/s\n"+
		"  bare transport     %8.0f MB/s (%.2f): one bulk stream between two processes with an agent's threads, no store\n"+
		"  plain copy         %8.0f MB/s (%.2f): the same, the source's store read, a file written over: no digests, no answers\n",
		f.VolumeBytes>>20, f.where(), f.IdleMBs, f.BareMBs, f.IdleMBs/f.BareMBs, f.CopyMBs, f.IdleMBs/f.CopyMBs)
	if err == nil && f.DigestMBs > 0 {
		_, err = fmt.Fprintf(w, "  equal data         %8.0f MB/s (%.2f of copying): after a crash of the primary, compared by digest\n", f.DigestMBs, f.DigestMBs/f.IdleMBs)
	}
	for _, b := range f.Beside {
		if err == nil {
			_, err = fmt.Fprintf(w, "  4 KiB writes, d%-3d p99 %6.0f us alone, %6.0f us beside it (x%.2f); %6.0f and %6.0f/s; it gets %.1f MB/s\n",
				b.Depth, b.AloneP99, b.BesideP99, b.BesideP99/b.AloneP99, b.AloneOps, b.BesideOps, b.ResyncMBs)
		}
	}
	return err
}
