package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// watchEvery is how often each node is looked at.
const watchEvery = 50 * time.Millisecond

// sighting is a primary that was seen to serve, at some moment between two.
type sighting struct{ asked, answered time.Time }

// Watcher looks from outside at who serves a volume, every 50 ms, each node by itself: a
// node that does not answer holds up no other.
type Watcher struct {
	volume string
	stop   context.CancelFunc
	ended  sync.WaitGroup

	mu    sync.Mutex
	looks map[string]int          // guarded by mu: answers
	seen  map[string][][]sighting // guarded by mu: reigns, of consecutive sightings each
}

// Watch begins to look, until Stop or the end of the test.
func (c *Cluster) Watch(volume string) *Watcher {
	ctx, stop := context.WithCancel(context.Background())
	w := &Watcher{volume: volume, stop: stop, looks: map[string]int{}, seen: map[string][][]sighting{}}
	for _, n := range c.Nodes {
		w.ended.Go(func() { w.watch(ctx, n) })
	}
	c.t.Cleanup(func() { w.Stop() })
	return w
}

func (w *Watcher) watch(ctx context.Context, n *Node) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	served := false
	for {
		asked := time.Now()
		v, err := n.poll(w.volume)
		s := sighting{asked, time.Now()}
		serves := err == nil && v.Serves()
		w.mu.Lock()
		if err == nil {
			w.looks[n.Name]++
		}
		if serves {
			reigns := w.seen[n.Name]
			if !served {
				reigns = append(reigns, nil)
			}
			last := len(reigns) - 1
			reigns[last] = append(reigns[last], s)
			w.seen[n.Name] = reigns
		}
		w.mu.Unlock()
		served = serves
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Stop ends the watch and returns each moment at which two nodes served for certain: one
// was seen to serve before and after the other was, and not to stop in between.
func (w *Watcher) Stop() []string {
	w.stop()
	w.ended.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for x, reigns := range w.seen {
		for _, r := range reigns {
			for y := range w.seen {
				if x != y {
					out = append(out, both(x, r, y, w.seen[y])...)
				}
			}
		}
	}
	return out
}

// both returns the moments of y's reigns that fall between two sightings of one of x.
func both(x string, r []sighting, y string, reigns [][]sighting) []string {
	var out []string
	for i := 1; i < len(r); i++ {
		for _, o := range reigns {
			for _, s := range o {
				if s.asked.After(r[i-1].answered) && s.answered.Before(r[i].asked) {
					out = append(out, fmt.Sprintf("%s served at %s and at %s, and %s at %s", x, clock(r[i-1].answered), clock(r[i].asked), y, clock(s.asked)))
				}
			}
		}
	}
	return out
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }

// String says how often each node was looked at, and how many reigns it had.
func (w *Watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []string
	for n, looks := range w.looks {
		parts = append(parts, fmt.Sprintf("%s answered %d times, %d reigns", n, looks, len(w.seen[n])))
	}
	return strings.Join(parts, "; ")
}
