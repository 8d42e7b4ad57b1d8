package cluster

import (
	"testing"
	"time"
)

func TestPrimariesJudge(t *testing.T) {
	const none, a, b, both = 0, 1, 2, 3
	bits := func(n int) []bool { return []bool{n&a != 0, n&b != 0} }
	for _, c := range []struct {
		name   string
		rounds []int
		faults bool
	}{
		{"one", []int{a, a, a}, false},
		{"moved between the looks of a round", []int{a, both, b}, false},
		{"moved back", []int{b, a, b}, false},
		{"nobody", []int{a, none, none, b}, false},
		{"both for two rounds", []int{a, both, both, b}, true},
		{"both, the second gives in", []int{a, both, a}, true},
		{"both, the first comes again", []int{b, both, b}, true},
	} {
		p := &Primaries{nodes: []string{"alpha", "beta"}}
		var before []bool
		for _, r := range c.rounds {
			p.judge(before, bits(r), time.Millisecond)
			before = bits(r)
		}
		if got := len(p.Faults()) > 0; got != c.faults {
			t.Errorf("%s: %v, want faults %v", c.name, p.Faults(), c.faults)
		}
	}
}
