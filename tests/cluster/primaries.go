package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Primaries watches from outside that no two nodes serve a volume at the same time. It
// asks the nodes one after the other, over and over:
//
//	alpha serves ── beta serves ── alpha serves    both did while beta was asked
//	alpha serves ── beta serves ── alpha does not  the role has moved in between
type Primaries struct {
	nodes []string
	ask   func(ctx context.Context, node string) (Volume, error)
	stop  context.CancelFunc
	ended sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	faults []string
	rounds int
	gap    time.Duration // the longest time between two rounds
	seen   []string      // who served, each time that it changed
}

// PrimariesEvery is how often a Primaries begins a round.
const PrimariesEvery = 50 * time.Millisecond

// askMax bounds a look at one node: who does not answer in this time is not known to serve.
const askMax = 250 * time.Millisecond

// WatchPrimaries begins to watch. ask returns the state of the volume on a node; an error
// says that it is not known.
func WatchPrimaries(nodes []string, ask func(ctx context.Context, node string) (Volume, error)) *Primaries {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Primaries{nodes: nodes, ask: ask, stop: cancel}
	p.ended.Go(func() { p.watch(ctx) })
	return p
}

func (p *Primaries) watch(ctx context.Context) {
	tick := time.NewTicker(PrimariesEvery)
	defer tick.Stop()
	var before []bool
	began := time.Now()
	for ctx.Err() == nil {
		now := p.round(ctx)
		p.judge(before, now, time.Since(began))
		before, began = now, time.Now()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// round asks every node, in order.
func (p *Primaries) round(ctx context.Context) []bool {
	serves := make([]bool, len(p.nodes))
	for i, node := range p.nodes {
		each, cancel := context.WithTimeout(ctx, askMax)
		v, err := p.ask(each, node)
		cancel()
		serves[i] = err == nil && v.Serves()
	}
	return serves
}

// judge looks for a node that served in two rounds, and another that did in between:
// behind the first in the former round, or before it in the latter.
func (p *Primaries) judge(before, now []bool, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rounds++
	p.gap = max(p.gap, took)
	who := ""
	for i, serves := range now {
		if serves {
			who += p.nodes[i] + " "
		}
	}
	if n := len(p.seen); n == 0 || p.seen[n-1] != who {
		p.seen = append(p.seen, who)
	}
	if before == nil {
		return
	}
	for i := range now {
		if !before[i] || !now[i] {
			continue
		}
		for j := range now {
			if j > i && before[j] || j < i && now[j] {
				p.faults = append(p.faults, fmt.Sprintf("%s: %s and %s both served", time.Now().Format("15:04:05.000"), p.nodes[i], p.nodes[j]))
			}
		}
	}
}

// Faults returns when two nodes were seen to serve at once.
func (p *Primaries) Faults() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.faults...)
}

// String says how well it was watched, and who served, in order.
func (p *Primaries) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%d looks at every node, at most %v apart; served: %q", p.rounds, p.gap.Round(time.Millisecond), p.seen)
}

// Stop ends the watch.
func (p *Primaries) Stop() {
	p.stop()
	p.ended.Wait()
}
