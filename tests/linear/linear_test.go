package linear

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// fault is something that happens to a run.
type fault struct {
	name string
	do   func(x *run)
}

var (
	failOver       = fault{"fail over", (*run).failOver}
	restartPrimary = fault{"restart the primary", (*run).restartPrimary}
	fromPaused     = fault{"fail over from a stopped primary", (*run).failOverFromPaused}
	acrossACut     = fault{"fail over across a cut", (*run).failOverAcrossACut}
	killSecondary  = fault{"kill a secondary", (*run).killSecondary}
	pausePrimary   = fault{"stop the primary for a while", (*run).pausePrimary}
	pauseSecondary = fault{"stop a secondary for a while", (*run).pauseSecondary}
	cutLink        = fault{"cut a link", (*run).cut}
	switchOver     = fault{"switch over", (*run).switchOver}
	demoteByForce  = fault{"demote by force", (*run).demoteByForce}
	loseTwo        = fault{"lose a secondary, then the primary", (*run).loseTwo}
	powerCut       = fault{"power cut everywhere", (*run).powerCut}
)

// TestLinear: each fault happens once under load, in an order from the seed; then the
// history is checked, and the copies are compared. QRBD_LINEAR=10m goes on for so long,
// QRBD_LINEAR_SEED=s takes the order from s.
func TestLinear(t *testing.T) {
	one := []fault{failOver, restartPrimary, fromPaused, acrossACut, killSecondary, pausePrimary, pauseSecondary, cutLink, switchOver, demoteByForce}
	two := []string{"alpha", "beta"}
	three := []string{"alpha", "beta", "gamma"}
	for _, k := range []struct {
		name   string
		o      cluster.Options
		faults []fault
	}{
		{"two", cluster.Options{Nodes: two, Links: true}, one},
		{"three", cluster.Options{Nodes: three, Links: true}, append(one[:len(one):len(one)], loseTwo)},
		{"power", cluster.Options{Nodes: two, Program: cluster.CrashAgent}, []fault{powerCut, failOver, powerCut, killSecondary, powerCut, switchOver, powerCut}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			seed, length := settings(t)
			t.Log("seed", seed)
			x := newRun(t, seed, k.o)
			for end := time.Now().Add(length); ; {
				x.begin()
				for _, i := range x.rnd.Perm(len(k.faults)) {
					x.within(200*time.Millisecond, 600*time.Millisecond)
					f := k.faults[i]
					began := time.Now()
					f.do(x)
					x.mended()
					t.Logf("%s: %v, %s is primary", f.name, time.Since(began).Round(time.Millisecond), x.primary.Name)
				}
				x.judge()
				if time.Now().After(end) {
					break
				}
			}
			t.Logf("in all: %+v", x.total)
		})
	}
}

func settings(t *testing.T) (seed uint64, length time.Duration) {
	t.Helper()
	seed = rand.Uint64()
	var err error
	if s := os.Getenv("QRBD_LINEAR_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("QRBD_LINEAR"); s != "" {
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	return seed, length
}
