package main

import (
	"math"
	"testing"
)

func TestFigureOf(t *testing.T) {
	tests := []struct {
		values []float64
		want   figure
	}{
		{nil, figure{}},
		{[]float64{4}, figure{median: 4, n: 1}},
		{[]float64{9, 10, 12, 11, 8}, figure{median: 10, noise: 0.2, n: 5}},
		{[]float64{1, 3, 5, 7}, figure{median: 4, noise: 0.75, n: 4}},
		{[]float64{0, 0}, figure{n: 2}},
	}
	for _, test := range tests {
		if got := figureOf(test.values); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.values, got, test.want)
		}
	}
}

// The expected probabilities are those of the U statistic's published tables: 2/252 for two disjoint sets of five.
func TestRankTest(t *testing.T) {
	tests := []struct {
		name string
		a, b []float64
		want float64
	}{
		{"disjoint", []float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 2.0 / 252},
		{"disjoint, the other way", []float64{6, 7, 8, 9, 10}, []float64{1, 2, 3, 4, 5}, 2.0 / 252},
		{"one swapped", []float64{1, 2, 3, 4, 6}, []float64{5, 7, 8, 9, 10}, 4.0 / 252},
		{"equal", []float64{3, 3, 3}, []float64{3, 3, 3}, 1},
		{"three and three cannot differ enough", []float64{1, 2, 3}, []float64{7, 8, 9}, 0.1},
		{"nothing to compare with", []float64{1, 2, 3}, nil, 1},
	}
	for _, test := range tests {
		if got := rankTest(test.a, test.b); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	var low, high []float64
	for i := range 15 {
		low, high = append(low, float64(i)), append(high, float64(100+i))
	}
	if p := rankTest(low, high); p > 1e-4 {
		t.Errorf("fifteen against fifteen, disjoint: %v", p)
	}
}
