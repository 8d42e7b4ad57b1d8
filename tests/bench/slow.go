package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
	"github.com/qrbd/qrbd/protocol/session"
)

const (
	// slowSeconds is how long the link takes, at least, for what is written and then copied.
	slowSeconds = 5
	// slowPages is how many pages are written at random places, slowDepth how many are
	// under way; as many of slowRun are when all is written in order.
	slowPages = 4000
	slowDepth = 32
	slowRun   = 64 << 10
	// slowData is how much content there is, bytes: payloads are compressed one by one, so that
	// it may repeat.
	slowData = 16 << 20

	// slowGain is what compression brings over the slowest link, at least, slowLoss what it
	// leaves of the rate of data that do not compress.
	slowGain = 1.5
	slowLoss = 0.9
)

// slowRates are the links, bits per second.
var slowRates = []int64{100_000_000, 1_000_000_000}

// slowFigures are what one kind of data does over a link of a known rate.
type slowFigures struct {
	Transport   string  `json:"transport"`
	LinkBits    int64   `json:"link_bits_per_s"`
	Compression string  `json:"compression"`
	Data        string  `json:"data"`           // pages or noise
	WriteMBs    float64 `json:"write_mb_per_s"` // 64 KiB in order, 32 under way, flushed at the end
	PagesPerSec float64 `json:"pages_per_s"`    // 8 KiB at random places, 32 under way
	ResyncMBs   float64 `json:"resync_mb_per_s"`
	CPUms       float64 `json:"cpu_ms_per_mb"` // of both agents, while WriteMBs was measured
}

// measureSlow measures over each link, with and without compression.
func measureSlow(ctx context.Context, s site, progress io.Writer) (list []*slowFigures, err error) {
	if !canLink() {
		fmt.Fprintln(progress, "no slow link:", errNoLink)
		return nil, nil
	}
	for _, bits := range slowRates {
		for _, kind := range []struct {
			data        string
			compression session.Compression
		}{{"pages", session.NoCompression}, {"pages", session.Zstd}, {"noise", session.Zstd}} {
			f := &slowFigures{Transport: s.transport, LinkBits: bits, Compression: kind.compression.String(), Data: kind.data}
			fmt.Fprintf(progress, "%s over %d Mbit/s, compression %s\n", f.Data, bits/1e6, f.Compression)
			at := s
			at.dir = s.path(fmt.Sprintf("%d%s%s", bits/1e6, f.Data, f.Compression))
			at.sizeBytes, at.compress = bits/8*slowSeconds>>20<<20, f.Compression
			if err := os.Mkdir(at.dir, 0o700); err != nil {
				return list, err
			}
			if err := overLink(ctx, bits, func() error { return f.measure(ctx, at) }); err != nil {
				return list, err
			}
			list = append(list, f)
			if err := os.RemoveAll(at.dir); err != nil { // tmpfs
				return list, err
			}
		}
	}
	return list, nil
}

// measure does one pair: all of the volume in order, pages at random places, a copy of all to
// a new replica.
func (f *slowFigures) measure(ctx context.Context, s site) error {
	p, err := newPair(ctx, s)
	defer func() { p.close() }()
	if err != nil {
		return err
	}
	for _, n := range []*node{p.beta, p.alpha} {
		if _, err := n.start(ctx); err != nil {
			return err
		}
	}
	if err := p.bringUp(ctx); err != nil {
		return err
	}
	data := compresstest.Pages(1, slowData)
	if f.Data == "noise" {
		data = compresstest.Noise(1, slowData)
	}
	dev, err := client.Dial(ctx, "unix:"+p.alpha.socket(), volumeName, client.Options{})
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := f.inOrder(dev, p, data, s.sizeBytes); err != nil {
		return err
	}
	took, err := writeAll(dev, data, compresstest.PageSize, slowPages, func(int) int64 {
		return rand.Int64N(s.sizeBytes/compresstest.PageSize) * compresstest.PageSize
	})
	if err != nil {
		return err
	}
	f.PagesPerSec = slowPages / took.Seconds()
	if err := p.renew(ctx); err != nil {
		return err
	}
	f.ResyncMBs, err = copied(ctx, p.alpha, copyPoll, p.settle)
	return err
}

// inOrder writes all of the volume.
func (f *slowFigures) inOrder(dev *client.Client, p pair, data []byte, size int64) error {
	before, err := totalCPU(p.servers())
	if err != nil {
		return err
	}
	took, err := writeAll(dev, data, slowRun, int(size/slowRun), func(i int) int64 { return int64(i) * slowRun })
	if err != nil {
		return err
	}
	after, err := totalCPU(p.servers())
	f.WriteMBs = float64(size) / took.Seconds() / 1e6
	f.CPUms = (after - before).Seconds() * 1e3 / (float64(size) / 1e6)
	return err
}

// writeAll writes count pieces of data, slowDepth under way, each at its place, and flushes.
func writeAll(dev *client.Client, data []byte, piece, count int, at func(i int) int64) (time.Duration, error) {
	begin := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, slowDepth)
	for w := range slowDepth {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < count && errs[w] == nil; i = int(next.Add(1)) - 1 {
				errs[w] = dev.WriteAt(data[i*piece%len(data):][:piece], at(i), 0)
			}
		})
	}
	wg.Wait()
	return time.Since(begin), errors.Join(append(errs, dev.Flush())...)
}

// verdictsOfSlow compares what was measured with and without compression.
func verdictsOfSlow(list []*slowFigures) []verdict {
	find := func(f *slowFigures, data string, c session.Compression) *slowFigures {
		for _, g := range list {
			if g.Transport == f.Transport && g.LinkBits == f.LinkBits && g.Data == data && g.Compression == c.String() {
				return g
			}
		}
		return nil
	}
	var out []verdict
	for _, plain := range list {
		pages, noise := find(plain, "pages", session.Zstd), find(plain, "noise", session.Zstd)
		if plain.Compression != session.NoCompression.String() || plain.LinkBits != slowRates[0] || pages == nil || noise == nil {
			continue
		}
		over := fmt.Sprintf(" over %d Mbit/s%s", plain.LinkBits/1e6, overTransport(plain.Transport))
		out = append(out, verdict{
			what:     "compression of pages" + over + " makes writes and resync faster by half",
			met:      pages.WriteMBs >= slowGain*plain.WriteMBs && pages.ResyncMBs >= slowGain*plain.ResyncMBs,
			measured: fmt.Sprintf("writes %.1f instead of %.1f MB/s, resync %.1f instead of %.1f", pages.WriteMBs, plain.WriteMBs, pages.ResyncMBs, plain.ResyncMBs),
		}, verdict{
			what:     "compression leaves nine tenths to data that do not compress" + over,
			met:      noise.WriteMBs >= slowLoss*plain.WriteMBs && noise.ResyncMBs >= slowLoss*plain.ResyncMBs,
			measured: fmt.Sprintf("writes %.1f instead of %.1f MB/s, resync %.1f instead of %.1f", noise.WriteMBs, plain.WriteMBs, noise.ResyncMBs, plain.ResyncMBs),
		})
	}
	return out
}

// writeSlow prints the figures.
func writeSlow(w io.Writer, list []*slowFigures) error {
	if len(list) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\nOver a slow link\n  %-9s %6s %-5s %-4s %12s %14s %12s %14s\n", "transport", "Mbit/s", "data", "", "writes MB/s", "8 KiB pages/s", "resync MB/s", "CPU ms per MB")
	for _, f := range list {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %-9s %6d %-5s %-4s %12.1f %14.0f %12.1f %14.1f\n", f.Transport, f.LinkBits/1e6, f.Data, f.Compression, f.WriteMBs, f.PagesPerSec, f.ResyncMBs, f.CPUms)
		}
	}
	return err
}
