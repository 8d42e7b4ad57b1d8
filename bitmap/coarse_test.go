package bitmap

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestCoarse(t *testing.T) {
	s := NewSet(100000)
	if got := s.Coarse(4); got != nil {
		t.Errorf("empty: %v", got)
	}
	s.Set(5, 7)
	s.Set(10, 11)
	s.Set(5000, 5001)
	if got, want := s.Coarse(4), [][2]int64{{5, 7}, {10, 11}, {5000, 5001}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := s.Coarse(2), [][2]int64{{5, 11}, {5000, 5001}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := s.Coarse(1), [][2]int64{{5, 5001}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	all := NewSet(70000)
	all.SetAll()
	if got, want := all.Coarse(3), [][2]int64{{0, 70000}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestCoarseHoldsAll: whatever is set, the ranges are few, in order, apart, and every
// set bit is in one.
func TestCoarseHoldsAll(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		s := NewSet(50000)
		for range rnd.IntN(2000) {
			from := rnd.Int64N(50000)
			s.Set(from, min(from+rnd.Int64N(20), 50000))
		}
		limit := 1 + rnd.IntN(20)
		got := s.Coarse(limit)
		if len(got) > limit {
			t.Fatalf("%d ranges, at most %d", len(got), limit)
		}
		end, held := int64(-1), int64(0)
		for _, r := range got {
			if r[0] <= end || r[1] <= r[0] || !s.Test(r[0]) || !s.Test(r[1]-1) {
				t.Fatalf("ranges %v", got)
			}
			end = r[1]
			for b := r[0]; b < r[1]; b++ {
				if s.Test(b) {
					held++
				}
			}
		}
		if held != s.Count() {
			t.Fatalf("%d of %d set bits are in the ranges", held, s.Count())
		}
	}
}
