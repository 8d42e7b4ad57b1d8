package main

import (
	"io"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHunt(t *testing.T) {
	failsAt := func(bad ...uint64) func(uint64) string {
		return func(seed uint64) string {
			for _, b := range bad {
				if seed == b {
					return "C9: broken"
				}
			}
			return ""
		}
	}
	tests := []struct {
		name     string
		bad      []uint64
		first    uint64
		n        int
		wantSeed uint64
		wantRan  int
	}{
		{"none", nil, 1, 50, 0, 50},
		{"the first", []uint64{1}, 1, 50, 1, 1},
		{"the lowest of several", []uint64{31, 30, 29}, 1, 50, 29, 29},
		{"the last", []uint64{50}, 1, 50, 50, 50},
		{"one too far", []uint64{51}, 1, 50, 0, 50},
		{"not from 1 on", []uint64{105}, 101, 50, 105, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, workers := range []int{1, 4} {
				p := hunt(failsAt(tt.bad...), tt.first, tt.n, workers, io.Discard)
				if p.Seed != tt.wantSeed || p.Ran != tt.wantRan {
					t.Errorf("%d workers: seed %d after %d, want %d after %d", workers, p.Seed, p.Ran, tt.wantSeed, tt.wantRan)
				}
				if p.Seed != 0 && p.checker() != "C9" {
					t.Errorf("caught by %q", p.checker())
				}
			}
		})
	}
}
