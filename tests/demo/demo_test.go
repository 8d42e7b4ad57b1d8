package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReportVerdict(t *testing.T) {
	tests := []struct {
		name string
		make func(*report)
		good bool
		want string
	}{
		{"empty", func(*report) {}, false, "FAILED"},
		{"all claims hold", func(r *report) { r.claim(true, "commits", "%d lost", 0) }, true, "PASSED"},
		{"one does not", func(r *report) { r.claim(true, "a", "x"); r.claim(false, "commits", "%d lost", 1) }, false, "FAILED  commits: 1 lost"},
		{"a step failed", func(r *report) { r.add("a", "x"); r.fail("step: %d", 7) }, false, "FAILED  step: 7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &report{title: "title"}
			tt.make(r)
			var out bytes.Buffer
			r.print(&out)
			if r.good() != tt.good || !strings.Contains(out.String(), tt.want) {
				t.Errorf("good = %t, want %t; %q in\n%s", r.good(), tt.good, tt.want, out.String())
			}
		})
	}
}

func TestDiffer(t *testing.T) {
	const size = 5<<20 + 100
	tests := []struct {
		name string
		a, b map[int64]byte // bytes that are not zero, in files of holes
		want int64
	}{
		{"both empty", nil, nil, -1},
		{"equal data", map[int64]byte{7: 1, 3 << 20: 2}, map[int64]byte{7: 1, 3 << 20: 2}, -1},
		{"zeroes against a hole", map[int64]byte{1 << 20: 0}, nil, -1},
		{"data against a hole", nil, map[int64]byte{4<<20 + 5: 1}, 4<<20 + 5},
		{"last byte", map[int64]byte{size - 1: 1}, map[int64]byte{size - 1: 2}, size - 1},
		{"two differences", map[int64]byte{9: 1, 2 << 20: 1}, nil, 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := differ(context.Background(), sparse(t, "a", size, tt.a), sparse(t, "b", size, tt.b))
			if err != nil || got != tt.want {
				t.Errorf("differ = %d, %v, want %d", got, err, tt.want)
			}
		})
	}
	if _, err := differ(context.Background(), sparse(t, "a", size, nil), sparse(t, "b", size+1, nil)); err == nil {
		t.Error("files of two sizes were compared")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := differ(ctx, sparse(t, "a", size, nil), sparse(t, "b", size, nil)); err == nil {
		t.Error("an interrupted comparison came to a result")
	}
}

// sparse makes a file of holes with some bytes in it.
func sparse(t *testing.T, name string, size int64, data map[int64]byte) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, b := range data {
		if _, err := f.WriteAt([]byte{b}, off); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -5000: "-5,000"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}
