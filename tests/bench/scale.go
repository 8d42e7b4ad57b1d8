package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

const (
	scaleBytes = 512 << 20 // of each of four volumes
	wideBytes  = 100 << 30 // of the one that is written here and there; sparse
	// spreadOps are the writes of a sample on the wide volume and on the narrow one; each run writes the same blocks.
	spreadOps = 100_000

	wideVolume = "wide"

	scaleRounds = 3 // at most: each takes ten seconds

	scaleMin = 1.0 // several connections and volumes against one, at least
	wideMax  = 1.1 // what a write over the wide volume may cost, against the narrow one
)

// scaleFigures are 4 KiB random writes per second, one figure for each round.
type scaleFigures struct {
	Transport   string    `json:"transport"`
	One         []float64 `json:"one_connection_per_s"`   // one connection, one volume, 32 under way
	Connections []float64 `json:"four_connections_per_s"` // four to that volume, 8 under way on each
	Volumes     []float64 `json:"four_volumes_per_s"`     // one to each of four volumes, 8 under way on each
	Narrow      []float64 `json:"narrow_per_s"`           // over 512 MiB, one connection, 32 under way
	Wide        []float64 `json:"wide_per_s"`             // over 100 GiB
}

// measureScale builds a pair with five volumes and measures, round by round, all kinds of load.
func measureScale(ctx context.Context, s site, rounds int, runtime time.Duration) (*scaleFigures, error) {
	names := []string{volumeName, "second", "third", "fourth"}
	s.sizeBytes, s.more = scaleBytes, map[string]int64{wideVolume: wideBytes}
	for _, name := range names[1:] {
		s.more[name] = scaleBytes
	}
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
	uris := map[string]string{volumeName: unixURI(volumeName, p.alpha.socket())}
	for _, v := range p.alpha.moreVolumes() {
		uris[v.name] = unixURI(v.name, v.socket)
		if _, err := p.alpha.command(ctx, "promote", v.name, "--force"); err != nil {
			return nil, err
		}
		if _, err := p.alpha.command(ctx, "wait", v.name, "--for", "up-to-date", "--timeout", "30s"); err != nil {
			return nil, err
		}
	}
	if err := p.bringUp(ctx); err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, err := runFio(ctx, uris[name], "--rw=write", "--bs=1m", "--iodepth=8", fmt.Sprintf("--size=%d", scaleBytes)); err != nil {
			return nil, fmt.Errorf("filling: %w", err)
		}
	}
	f := &scaleFigures{Transport: s.transport}
	if _, err := spread(ctx, uris[wideVolume], wideBytes); err != nil { // the blocks exist, the extents are warm
		return nil, err
	}
	for range rounds {
		if err := f.round(ctx, names, uris, runtime); err != nil {
			return nil, err
		}
	}
	return f, p.settle(ctx)
}

// spread writes spreadOps blocks, the same in each run, all over a volume.
func spread(ctx context.Context, uri string, size int64) (float64, error) {
	run, err := runFio(ctx, uri, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", "--randrepeat=1",
		fmt.Sprintf("--size=%d", size), fmt.Sprintf("--number_ios=%d", spreadOps))
	return run.opsPerSec, err
}

// round measures each kind of load once.
func (f *scaleFigures) round(ctx context.Context, names []string, uris map[string]string, runtime time.Duration) error {
	write := append([]string{"--rw=randwrite", "--bs=4k"}, forDuration(runtime, scaleBytes)...)
	one, err := runFio(ctx, uris[volumeName], append(write, "--iodepth=32")...)
	if err != nil {
		return err
	}
	connections, err := runFio(ctx, uris[volumeName], append(write, "--iodepth=8", "--numjobs=4")...)
	if err != nil {
		return err
	}
	several := append(write, "--iodepth=8")
	for _, name := range names[1:] { // each a job of its own, reported together
		several = append(several, append([]string{"--name=" + name, "--ioengine=nbd", "--uri=" + uris[name], "--iodepth=8", "--thread",
			"--group_reporting", "--lat_percentiles=1", "--clat_percentiles=0"}, write...)...)
	}
	volumes, err := runFio(ctx, uris[volumeName], several...)
	if err != nil {
		return err
	}
	narrow, err := spread(ctx, uris[volumeName], scaleBytes)
	if err != nil {
		return err
	}
	wide, err := spread(ctx, uris[wideVolume], wideBytes)
	if err != nil {
		return err
	}
	f.One, f.Connections, f.Volumes = append(f.One, one.opsPerSec), append(f.Connections, connections.opsPerSec), append(f.Volumes, volumes.opsPerSec)
	f.Narrow, f.Wide = append(f.Narrow, narrow), append(f.Wide, wide)
	return nil
}

// quotientsOf divides the values of the same rounds.
func quotientsOf(above, below []float64) figure {
	var list []float64
	for i := range min(len(above), len(below)) {
		list = append(list, above[i]/below[i])
	}
	return figureOf(list)
}

// verdicts judges the figures.
func (f *scaleFigures) verdicts() []verdict {
	judge := func(what string, ratio figure, limit float64, met bool) verdict {
		return verdict{what: what + overTransport(f.Transport), met: met, doubtful: ratio.holds(limit),
			measured: fmt.Sprintf("ratio %s (limit %.2f)", ratio.cell(), limit)}
	}
	connections, volumes, wide := quotientsOf(f.Connections, f.One), quotientsOf(f.Volumes, f.One), quotientsOf(f.Narrow, f.Wide)
	return []verdict{
		judge("4 KiB writes on four connections no fewer than on one", connections, scaleMin, connections.median >= scaleMin),
		judge("4 KiB writes to four volumes no fewer than to one", volumes, scaleMin, volumes.median >= scaleMin),
		judge("a write over 100 GiB takes a tenth more at most than one over 512 MiB", wide, wideMax, wide.median <= wideMax),
	}
}

// overTransport names a transport that is not the default.
func overTransport(transport string) string {
	if transport == session.TCP.String() {
		return " on TCP"
	}
	return ""
}

// write prints the figures.
func (f *scaleFigures) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "\n4 KiB random writes%s, per second\n", overTransport(f.Transport))
	for _, line := range []struct {
		what   string
		values []float64
	}{
		{"one connection, depth 32", f.One}, {"four connections, depth 8 each", f.Connections}, {"four volumes, depth 8 each", f.Volumes},
		{"the same blocks of 512 MiB again and again", f.Narrow}, {"the same blocks of 100 GiB", f.Wide},
	} {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %-44s %s\n", line.what, figureOf(line.values).cell())
		}
	}
	return err
}
