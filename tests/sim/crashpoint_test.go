package sim

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestCrashPoints crashes at every point of every sequence of up to three steps (-short:
// two). The points of a sequence's beginning are those of the shorter one, in which
// the same happens up to there: each point is tried once. All of it happens twice, with
// stores that are faster than the network, and slower.
func TestCrashPoints(t *testing.T) {
	began := time.Now()
	length := 3
	if testing.Short() {
		length = 2
	}
	var all [][]step
	for grown := [][]step{nil}; length > 0; length-- {
		var next [][]step
		for _, s := range grown {
			for k := range steps {
				next = append(next, append(append([]step(nil), s...), k))
			}
		}
		all = append(all, next...)
		grown = next
	}
	work := make(chan []step)
	var mu sync.Mutex
	var found, tried, runs, bad int
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s := range work {
				for _, slow := range []bool{false, true} {
					p, q, r, failures := crashSequence(s, slow)
					mu.Lock()
					found, tried, runs = found+p, tried+q, runs+r
					for _, f := range failures {
						if bad++; bad <= 3 {
							_, failed, events := f.Run(true)
							t.Errorf("%v: %s\n%s", f, failed, tail(events, *lines))
						}
					}
					mu.Unlock()
				}
			}
		})
	}
	for _, s := range all {
		mu.Lock()
		stop := bad > 20
		mu.Unlock()
		if stop {
			break
		}
		work <- s
	}
	close(work)
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d runs failed", bad)
	}
	if found != tried {
		t.Errorf("crash points: only %d of %d", tried, found)
	}
	t.Logf("crash points: %d of %d, in %d sequences; %d runs, %.1f s", tried, found, len(all), runs, time.Since(began).Seconds())
}

// crashSequence tries every point of a sequence's last step in every way.
func crashSequence(s []step, slow bool) (found, tried, runs int, failures []CrashRun) {
	points, failed, _ := CrashRun{Steps: s, Slow: slow, Point: -1}.Run(false)
	if runs++; failed != "" {
		return 0, 0, runs, []CrashRun{{Steps: s, Slow: slow, Point: -1}}
	}
	for i := range points {
		if points[i].step != len(s)-1 {
			continue
		}
		found++
		ok := true
		for _, kind := range points[i].tries() {
			for q := range sequels {
				r := CrashRun{Steps: s, Slow: slow, Point: i, Kind: kind, Sequel: q}
				reached, failed, _ := r.Run(false)
				if runs++; failed != "" {
					failures = append(failures, r)
					continue
				}
				ok = ok && len(reached) == i+1 && reached[i] == points[i]
			}
		}
		if ok {
			tried++
		}
	}
	return found, tried, runs, failures
}
