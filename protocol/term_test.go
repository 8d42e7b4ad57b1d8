package protocol

import (
	"math"
	"testing"
)

func TestTerms(t *testing.T) {
	for _, known := range []uint64{0, 1, 1<<16 - 1, 1 << 16, 7<<16 | 9, 1 << 40, 1<<63 - 1} {
		next := NextTerm(known, math.MaxUint64)
		if low := NextTerm(known, 0); low <= known || next <= known || low>>16 != next>>16 {
			t.Errorf("after %x: %x to %x", known, low, next)
		}
		over := ForcedOver(known)
		// What is promoted elsewhere meanwhile, by those who know no more.
		if over < next || NextTerm(next, math.MaxUint64) > over || NextTerm(over, 0) <= over {
			t.Errorf("by force over %x: %x; next %x, then %x", known, over, next, NextTerm(over, 0))
		}
	}
	if got := ForcedOver(math.MaxUint64); got != math.MaxUint64 {
		t.Errorf("over the last term: %x", got)
	}
	for _, c := range []struct {
		term, over uint64
		want       bool
	}{{0, 0, false}, {0, 9, false}, {1, 0, false}, {9, 9, true}, {10, 9, false}} {
		if got := (&Claim{Overruled: c.over}).Overrules(c.term); got != c.want {
			t.Errorf("over %d, term %d: %v", c.over, c.term, got)
		}
	}
}
