package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/qrbd/qrbd/tests/sim"
)

// prey is what a hunt brings home.
type prey struct {
	Seed   uint64 `json:"seed"`   // the lowest that failed; 0: none
	Ran    int    `json:"ran"`    // seeds from the first on that have a verdict
	Failed string `json:"failed"` // what the checker said
}

// checker names what caught it: the checker, or a broken invariant of the code's
// own that stopped it.
func (p *prey) checker() string {
	name, _, _ := strings.Cut(p.Failed, ":")
	return name
}

// hunt runs seeds from first on until one fails, at most n, by some workers. It tells
// progress of how far it is now and then. The lowest failing seed is found whatever
// the number of workers.
func hunt(run func(seed uint64) string, first uint64, n, workers int, progress io.Writer) prey {
	var (
		mu   sync.Mutex
		next = first
		end  = first + uint64(n) // no seed from here on is of interest
		best prey
		told = time.Now()
		wg   sync.WaitGroup
	)
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next >= end {
			return 0, false
		}
		next++
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			fmt.Fprintf(progress, "\r%6d of %d seeds ", next-first, n)
		}
		return next - 1, true
	}
	for range workers {
		wg.Go(func() {
			for {
				seed, ok := take()
				if !ok {
					return
				}
				if why := run(seed); why != "" {
					mu.Lock()
					if seed < end {
						end, best = seed, prey{Seed: seed, Failed: why}
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	best.Ran = n
	if best.Failed != "" {
		best.Ran = int(best.Seed-first) + 1
	}
	fmt.Fprint(progress, "\r                             \r")
	return best
}

// huntHere is the child: the simulator that is compiled into this program.
func huntHere(first uint64, n, workers int, out, progress io.Writer) error {
	debug.SetGCPercent(400) // a run holds little, and makes much of it
	p := hunt(func(seed uint64) string { return sim.Run(seed, false).Failed }, first, n, workers, progress)
	if err := json.NewEncoder(out).Encode(p); err != nil {
		return fmt.Errorf("telling what was found: %w", err)
	}
	return nil
}
