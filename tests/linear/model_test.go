package linear

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// script builds a history from lines: "NAME w|r|f [v]" begins, "NAME ok" ends; "end"
// ends the term and begins another; "lose", "cut" and "back" are losses. Values of
// writes are counted from 1; "r 2" finds 2. Names are clients' requests.
func script(t *testing.T, volatile bool, text string) *History {
	t.Helper()
	h := &History{Volatile: volatile}
	term := h.NewTerm()
	open := map[string]func(){}
	var back func()
	for line := range strings.SplitSeq(text, ";") {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "end":
			h.End(term)
			term = h.NewTerm()
		case f[0] == "lose":
			back = h.Lost(false)
		case f[0] == "cut":
			back = h.Lost(true)
		case f[0] == "back":
			back()
		case f[1] == "ok":
			open[f[0]]()
		case f[1] == "w", f[1] == "fua":
			_, open[f[0]] = h.write(0, term, 0, 1, f[1] == "fua")
		case f[1] == "f":
			open[f[0]] = h.flush(0, term)
		case f[1] == "r":
			answered := h.read(0, term, 0, 1)
			p := make([]byte, blockSize)
			if f[2] == "torn" {
				p[9] = 1
			} else {
				var v uint64
				if _, err := fmt.Sscan(f[2], &v); err != nil {
					t.Fatal(err)
				}
				fill(p, 0, v)
			}
			open[f[0]] = func() { answered(p) }
		default:
			t.Fatalf("script line %q", line)
		}
	}
	return h
}

func TestModel(t *testing.T) {
	const w1, w2 = "a w; a ok;", "b w; b ok;"
	rd := func(v string) string { return "x r " + v + "; x ok;" }
	tests := []struct {
		name     string
		volatile bool
		text     string
		ok       bool
	}{
		{"in order", false, rd("0") + w1 + rd("1") + w2 + rd("2"), true},
		{"stale", false, w1 + w2 + rd("1"), false},
		{"lost", false, w1 + rd("0"), false},
		{"never written", false, rd("7"), false},
		{"beside a write, either", false, w1 + "b w;" + rd("1") + rd("2") + "b ok;", true},
		{"beside a write, there and back", false, w1 + "b w;" + rd("2") + rd("1") + "b ok;", false},
		{"two writes at once, either order", false, "a w; b w; a ok; b ok;" + rd("1"), true},
		{"two writes at once, both orders", false, "a w; b w; a ok; b ok;" + rd("1") + rd("2"), false},

		{"unanswered and never seen", false, w1 + "b w;" + rd("1") + rd("1"), true},
		{"unanswered, later seen", false, w1 + "b w;" + rd("1") + rd("2"), true},
		{"unanswered, seen and gone", false, w1 + "b w;" + rd("2") + rd("1"), false},
		{"unanswered, first seen in the next term", false, w1 + "b w; end; lose; back;" + rd("2") + rd("2"), true},
		{"unanswered, comes after its term", false, w1 + "b w; end; lose; back;" + rd("1") + rd("2"), false},
		{"unanswered, seen once, lost with the copy", false, w1 + "b w;" + rd("2") + "end; lose; back;" + rd("1"), true},
		{"unanswered, seen twice, lost with the copy", false, w1 + "b w;" + rd("2") + rd("2") + "end; lose; back;" + rd("1"), false},
		{"acknowledged, lost with the copy", false, w1 + w2 + "end; lose; back;" + rd("1"), false},
		{"lost, and back again", false, w1 + "b w;" + rd("2") + "end; lose; back;" + rd("1") + rd("2"), false},
		{"answered late, by a process that is gone", false, w1 + "b w; end; lose; b ok; back;" + rd("2"), true},
		{"the same, and it is not there", false, w1 + "b w; end; lose; b ok; back;" + rd("1"), false},
		{"served after the end of its term", false, w1 + "end; lose; back;" + w2 + rd("1"), false},

		{"power cut, unflushed", true, w1 + w2 + "end; cut; back;" + rd("1"), true},
		{"power cut, all of it", true, w1 + w2 + "end; cut; back;" + rd("0"), true},
		{"power cut, flushed", true, w1 + "f f; f ok;" + w2 + "end; cut; back;" + rd("0"), false},
		{"power cut, flushed, the later one lost", true, w1 + "f f; f ok;" + w2 + "end; cut; back;" + rd("1"), true},
		{"power cut, flush unanswered", true, w1 + "f f; end; cut; back;" + rd("0"), true},
		{"power cut, flush sent before the answer", true, "a w; f f; a ok; f ok; end; cut; back;" + rd("0"), true},
		{"power cut, flush beside a write that was seen", true, "a w;" + rd("1") + "f f; f ok; a ok; end; cut; back;" + rd("0"), true},
		{"power cut, FUA", true, w1 + "b fua; b ok; end; cut; back;" + rd("1"), false},
		{"power cut, FUA unanswered", true, w1 + "b fua; end; cut; back;" + rd("1"), true},
		{"one copy, unflushed", true, w1 + w2 + "end; lose; back;" + rd("1"), false},
		{"one copy, then the other", true, w1 + w2 + "end; lose; back;" + rd("2") + "end; cut; back;" + rd("1"), true},

		{"torn beside a write", false, w1 + "x r torn; b w; b ok; x ok;", true},
		{"torn", false, w1 + "x r torn; x ok;", false},
		{"torn after an unanswered write's term", false, "a w; end; lose; back; x r torn; x ok;", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := script(t, tt.volatile, tt.text).Check(t.TempDir())
			if (err == nil) != tt.ok {
				t.Errorf("%q: %v", tt.text, err)
			}
		})
	}
}

// TestPicture: a failure leaves a picture and says where.
func TestPicture(t *testing.T) {
	dir := t.TempDir()
	err := script(t, false, "a w; a ok; x r 0; x ok").Check(dir)
	if !errors.Is(err, ErrNotLinear) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
}

func TestBlock(t *testing.T) {
	p, q := make([]byte, blockSize), make([]byte, blockSize)
	for _, v := range []uint64{0, 1, 1 << 40} {
		fill(p, 3, v)
		if got, whole := identify(p, 3); got != v || !whole {
			t.Errorf("value %d: %d, whole %v", v, got, whole)
		}
	}
	if _, whole := identify(p, 4); whole {
		t.Error("another block's content is whole")
	}
	fill(q, 3, 2)
	for at := sectorSize; at < blockSize; at += sectorSize {
		mixed := append(append([]byte(nil), p[:at]...), q[at:]...)
		if _, whole := identify(mixed, 3); whole {
			t.Errorf("a mixture at %d is whole", at)
		}
	}
}
