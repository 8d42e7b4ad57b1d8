package sim

import (
	"flag"
	"fmt"
	"reflect"
	"runtime"
	"sort"
	"sync"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 300, "how many seeds TestSeeds runs")
	first = flag.Uint64("seed", 0, "the first seed of TestSeeds; with -seeds 1 its events are shown")
	lines = flag.Int("lines", 200, "how many of the last events a failure shows")
)

// failedOnce lists seeds that once found something, always run.
var failedOnce = []uint64{23, 34, 39, 45, 68, 94, 101, 130, 154, 189, 195, 202, 215, 281, 287, 291, 295, 332, 333, 337, 524, 535, 585, 699,
	1013, 1141, 1466, 1506, 1525, 1586, 1690, 1729, 1969, 2153, 2243, 2879, 3278, 3471, 3570, 6971, 6980, 7018, 7162, 2000369}

func report(t *testing.T, r Result) {
	t.Helper()
	again := Run(r.Seed, true)
	if again.Failed != r.Failed {
		t.Errorf("seed %d is not repeatable: %q, then %q", r.Seed, r.Failed, again.Failed)
	}
	t.Errorf("seed %d: %s\nlast events:\n%s\nrun it again: make sim SEEDS=1 SEED=%d", r.Seed, r.Failed, tail(again.Tail, *lines), r.Seed)
}

func tail(s string, n int) string {
	at := len(s)
	for ; n > 0 && at > 0; n-- {
		at--
		for at > 0 && s[at-1] != '\n' {
			at--
		}
	}
	return s[at:]
}

// TestSeeds runs many seeds.
func TestSeeds(t *testing.T) {
	began := time.Now()
	n := *seeds
	if testing.Short() {
		n = min(n, 50)
	}
	from := *first
	if from == 0 {
		from = 1
	}
	list := append([]uint64(nil), failedOnce...)
	for i := range n {
		list = append(list, from+uint64(i))
	}
	work := make(chan uint64)
	var mu sync.Mutex
	var bad []Result
	counts := map[string]int{}
	var simulated, events int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s := range work {
				r := Run(s, false)
				mu.Lock()
				if r.Failed != "" {
					bad = append(bad, r)
				}
				for k, v := range r.Counts {
					counts[k] += v
				}
				simulated += r.Time
				events += int64(r.Events)
				mu.Unlock()
			}
		})
	}
	for _, s := range list {
		mu.Lock()
		stop := len(bad) >= 20
		mu.Unlock()
		if stop {
			break
		}
		work <- s
	}
	close(work)
	wg.Wait()
	sort.Slice(bad, func(i, j int) bool { return bad[i].Seed < bad[j].Seed })
	for i, r := range bad {
		if i < 3 {
			report(t, r)
		} else {
			t.Errorf("seed %d: %.300s", r.Seed, r.Failed)
		}
	}
	t.Logf("%d seeds, %.1f simulated hours, %d events, %.1f s", len(list), float64(simulated)/3600e9, events, time.Since(began).Seconds())
	keys := make([]string, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	s := ""
	for _, k := range keys {
		s += fmt.Sprintf("%s %d, ", k, counts[k])
	}
	t.Log(s)
}

// TestRepeatable runs a seed twice and compares every event.
func TestRepeatable(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := Run(seed, true), Run(seed, true)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d gives two runs: %d and %d events, %q and %q", seed, a.Events, b.Events, a.Failed, b.Failed)
		}
	}
}

// TestTrace shows all events of the run of -seed.
func TestTrace(t *testing.T) {
	if *first == 0 {
		t.Skip("needs -seed")
	}
	r := Run(*first, true)
	fmt.Println(tail(r.Tail, *lines))
	if r.Failed != "" {
		t.Errorf("seed %d: %s", r.Seed, r.Failed)
	}
}
