package main

import (
	"math"
	"slices"
)

// figure is a quantity measured several times.
type figure struct {
	median float64
	noise  float64 // half the distance of the smallest from the largest value, as a share of the median
	n      int     // number of values; 0: nothing was measured
}

// figureOf sums up the values.
func figureOf(values []float64) figure {
	if len(values) == 0 {
		return figure{}
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	median := sorted[mid]
	if len(sorted)%2 == 0 {
		median = (sorted[mid-1] + sorted[mid]) / 2
	}
	f := figure{median: median, n: len(sorted)}
	if median != 0 {
		f.noise = (sorted[len(sorted)-1] - sorted[0]) / 2 / median
	}
	return f
}

// rankTest returns the probability that two sets of values differ by chance at least as much as they do
// (Mann-Whitney U test, two-sided, exact: every way of dealing the pooled values out to the two sets is tried).
// REQUIRES: len(a)+len(b) <= 20, so that there are at most 184,756 ways; beyond that the normal approximation is used.
// Source: H. B. Mann, D. R. Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger", 1947.
func rankTest(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	ranks := pooledRanks(a, b)
	var sumA, mean float64
	for _, r := range ranks[:len(a)] {
		sumA += r
	}
	mean = float64(len(a)) * float64(len(ranks)+1) / 2
	distance := math.Abs(sumA - mean)
	if len(ranks) > 20 {
		deviation := math.Sqrt(mean * float64(len(b)) / 6)
		return math.Erfc(distance / deviation / math.Sqrt2)
	}
	var all, extreme int
	var deal func(next, left int, sum float64)
	deal = func(next, left int, sum float64) {
		if left == 0 {
			all++
			if math.Abs(sum-mean) >= distance-1e-9 {
				extreme++
			}
			return
		}
		for i := next; i <= len(ranks)-left; i++ {
			deal(i+1, left-1, sum+ranks[i])
		}
	}
	deal(0, len(a), 0)
	return float64(extreme) / float64(all)
}

// pooledRanks returns the rank of each value of a, then of b, among all of them; equal values share their mean rank.
func pooledRanks(a, b []float64) []float64 {
	pool := slices.Concat(a, b)
	ranks := make([]float64, len(pool))
	for i, x := range pool {
		var less, equal int
		for _, y := range pool {
			switch {
			case y < x:
				less++
			case y == x:
				equal++
			}
		}
		ranks[i] = float64(less) + float64(equal+1)/2
	}
	return ranks
}
