package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 5000, "how many seeds TestSeeds runs")
	first = flag.Uint64("seed", 0, "the first seed of TestSeeds; with -seeds 1 its events are shown")
	state = flag.String("state", "", "a file that TestSeeds keeps its progress in, to go on where it has ended")
	lines = flag.Int("lines", 200, "how many of the last events a failure shows")
)

// failedOnce lists seeds that once found something, always run.
var failedOnce = []uint64{23, 34, 39, 45, 68, 94, 101, 130, 154, 189, 195, 202, 215, 281, 287, 291, 295, 332, 333, 337, 524, 535, 585, 699,
	1013, 1141, 1466, 1506, 1525, 1586, 1690, 1729, 1969, 2153, 2243, 2879, 3278, 3471, 3570, 6971, 6980, 7018, 7162, 62, 71, 164, 373, 1099, 1518, 1726, 1783, 1972, 2347, 2595, 2639, 3838, 4140, 4366, 4753, 4818, 40314, 2000369, 2000784, 2001057, 2001137, 2000149, 2002251, 2002288, 2003447, 2020134, 2030449, 2030850, 2031055,
	304, 410, 719, 984, 1986, 2523, 2713,
	20769, 700111, 2700064,
	52604, 2900229, 2900268, 2900557, 903705, 2902916, 2903425,
	2702007, 2702126,
	2710689,
	902657, 906041,
	2720669,
	1998, 3553,
	5652, 2910728, 100123, 6001087, 6015170, 6015857,
	6605, 2903392,
	12141, 14476, 2100905,
	20931, 20964, 2107612,
	25483, 30709, 5001279, 5001728, 5003305,
	32151, 33736, 2112510, 2114526, 2115257, 5001567, 5002205,
	36510, 2116280,
	2118551, 2118613, 6011818, 6014750, 6017294, 6017771, 2120487, 2126557, 6025167, 2135644, 2137324,
	116456, 117984, 119141,
	112651, 2142343,
	2300813, 2206578, 2301494, 2303531, 2304487, 2326334,
	101933, 138501, 145568,
	150432, 153014, 155379, 160483, 163338, 202735, 211089, 214865, 259222, 276252, 287135, 287796, 310438, 316533,
	371457, 398282, 358303, 386143, 402816, 435887, 466148, 468262, 468583, 544728, 9300524, 9302612, 9400914, 10030442,
}

func report(t *testing.T, r Failure) {
	t.Helper()
	again := Run(r.Seed, true)
	if again.Failed != r.What {
		t.Errorf("seed %d is not repeatable: %q, then %q", r.Seed, r.What, again.Failed)
	}
	t.Errorf("seed %d: %s\nlast events:\n%s\nrun it again: make sim SEEDS=1 SEED=%d", r.Seed, r.What, tail(again.Tail, *lines), r.Seed)
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

// chunk is how many seeds are run between two lines of progress.
const chunk = 2000

// TestSeeds runs the seeds that failed once and many more. With -state it goes on
// where an earlier run has ended.
func TestSeeds(t *testing.T) {
	n := uint64(*seeds)
	if testing.Short() {
		n = min(n, 50)
	}
	var sum Tally
	if !load(t, &sum) {
		sum.Next = max(*first, 1)
		runAll(&sum, failedOnce)
	}
	end := max(*first, 1) + n
	began, done := time.Now(), sum.Next
	for sum.Next < end && len(sum.Failed) < 20 {
		list := make([]uint64, 0, chunk)
		for s := sum.Next; s < end && len(list) < chunk; s++ {
			list = append(list, s)
		}
		runAll(&sum, list)
		sum.Next += uint64(len(list))
		save(t, &sum)
		if n > chunk {
			rate := float64(sum.Next-done) / time.Since(began).Seconds()
			t.Logf("%d of %d seeds, %.0f/s, %.0f min to go, %d failed", n-(end-sum.Next), n, rate, float64(end-sum.Next)/rate/60, len(sum.Failed))
		}
	}
	for i, r := range sum.Failed {
		if i < 3 {
			report(t, r)
		} else {
			t.Errorf("seed %d: %.300s", r.Seed, r.What)
		}
	}
	t.Logf("%s", sum.String())
}

// TestHangs: disks hang, are given up after the disk timeout, and land what they had
// while clients have gone on through a peer.
func TestHangs(t *testing.T) {
	runRange(t, hangsFrom, 150, 10)
}

// TestRestores: operators put back what was given up, while anything may happen.
func TestRestores(t *testing.T) {
	runRange(t, restoresFrom, 150, 10)
}

// TestSwitchovers: the role is handed over among three replicas, of which the third hears
// of the new primary before the old one's farewell.
func TestSwitchovers(t *testing.T) {
	runRange(t, switchoversFrom, 60, 10)
}

// runRange runs n seeds from the first of a range, or few when little time is wanted, and
// those of the range that once found something.
func runRange(t *testing.T, from, n, few uint64, failed ...uint64) {
	t.Helper()
	if testing.Short() {
		n = few
	}
	var sum Tally
	list := slices.Clone(failed)
	for s := range n {
		list = append(list, from+s)
	}
	runAll(&sum, list)
	for _, r := range sum.Failed {
		report(t, r)
	}
	t.Logf("%s", sum.String())
}

// TestGrows: volumes grow, node by node, while anything may happen.
func TestGrows(t *testing.T) {
	runRange(t, growsFrom, 100, 10)
}

// runAll runs seeds on all processors.
func runAll(sum *Tally, list []uint64) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				if len(list) == 0 {
					mu.Unlock()
					return
				}
				s := list[0]
				list = list[1:]
				mu.Unlock()
				r := Run(s, false)
				mu.Lock()
				sum.Add(&r)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// load reads what an earlier run has saved, if any.
func load(t *testing.T, sum *Tally) bool {
	if *state == "" {
		return false
	}
	b, err := os.ReadFile(*state)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(b, sum)
	}
	if err != nil {
		t.Fatalf("state of an earlier run: %v", err)
	}
	return true
}

func save(t *testing.T, sum *Tally) {
	if *state == "" {
		return
	}
	b, err := json.Marshal(sum)
	if err == nil {
		err = os.WriteFile(*state, b, 0o644)
	}
	if err != nil {
		t.Fatalf("saving the state: %v", err)
	}
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

// TestQuorum: clusters with a quorum, of three replicas or two and a witness.
func TestQuorum(t *testing.T) {
	runRange(t, quorumFrom, 300, 20, failedWithQuorum...)
}

// TestDrills: clusters whose votes are attacked on purpose.
func TestDrills(t *testing.T) {
	runRange(t, votesFrom, 150, 10)
}

// TestFencing: clusters with fencing, of two or three replicas, whose hooks switch the
// others off or outdate them, come late, hang, and some of which lie.
func TestFencing(t *testing.T) {
	runRange(t, fencingFrom, 150, 15, failedWithFencing...)
}

// failedWithFencing lists seeds from fencingFrom that once found something.
var failedWithFencing = []uint64{9011397, 9024762, 9025236}

// failedWithQuorum lists seeds from quorumFrom that once found something.
var failedWithQuorum = []uint64{8000147, 8000618, 8001237, 8003073, 8003486, 8003940, 8010164, 8030996, 8001054, 8001293, 8001899, 8003444, 8003758, 8003612, 8500189, 8500294, 8500347}

// TestThemes: what three rare things at once would take elsewhere (theme.go).
func TestThemes(t *testing.T) {
	for k := range uint64(themes) {
		var failed []uint64
		if theme(k+1) == carriers {
			failed = append(failed, 7200078)
		}
		runRange(t, themesFrom+k*themeSeeds, 12, 2, failed...)
	}
	runRange(t, staleFrom, 15, 2)
	runRange(t, restsFrom, 15, 2)
}

// TestAhead: primaries go ahead of peers behind slow links, whatever else happens.
func TestAhead(t *testing.T) {
	runRange(t, aheadFrom, 100, 10, failedAhead...)
}

// failedAhead lists seeds from aheadFrom that once found something.
var failedAhead = []uint64{11002312, 11002594, 11004095, 11004354}
