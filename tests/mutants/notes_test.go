package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestNotes: what a run has found is known to the next one of the same commit, of the same
// mutant and of as many seeds, and to no other.
func TestNotes(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=q", "-c", "user.email=q@example.org"}, args...)...)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, b)
		}
	}
	git("init", "-q")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.go", "one")
	git("add", "a.go")
	git("commit", "-q", "-m", "one")

	path := filepath.Join(dir, "state")
	open := func(seeds int) *notes {
		t.Helper()
		b, err := openNotes(context.Background(), path, dir, seeds, 1)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	m := &Mutant{Name: "a", Edits: []Edit{{"a.go", "one", "1"}}}
	want := note{Mutant: "a", Sum: m.sum(), Prey: prey{7, 7, "C1: gone"}, Took: time.Second, Control: []asItIs{{5, "C2: too"}, {7, ""}}}
	if _, known := open(10).of(m); known {
		t.Error("known before anything was found")
	}
	write("state", `{"of":"cut sh`)
	if err := open(10).add(want); err != nil {
		t.Fatal(err)
	}
	b := open(10)
	got, known := b.of(m)
	if want.Of = b.key; !known || !reflect.DeepEqual(got, want) {
		t.Errorf("known %v: %+v, want %+v", known, got, want)
	}
	if c := b.control(); len(c) != 2 || c[5] != "C2: too" || c[7] != "" {
		t.Errorf("of the code as it is: %v", c)
	}
	if _, known := b.of(&Mutant{Name: "a", Edits: []Edit{{"a.go", "one", "2"}}}); known {
		t.Error("another mutant of that name is known")
	}
	if _, known := open(11).of(m); known {
		t.Error("known for another number of seeds")
	}
	write("a.go", "two")
	if _, err := openNotes(context.Background(), path, dir, 10, 1); err == nil || !strings.Contains(err.Error(), "a.go") {
		t.Errorf("with changes that no commit has: %v", err)
	}
	git("commit", "-q", "-a", "-m", "two")
	if _, known := open(10).of(m); known {
		t.Error("known for another commit")
	}
}

// TestHuntAll: what the notes know is not hunted, and an end is one.
func TestHuntAll(t *testing.T) {
	m := &Mutant{Name: "a", Edits: []Edit{{"a.go", "one", "1"}}}
	book := &notes{list: []note{{Mutant: "a", Sum: m.sum(), Prey: prey{7, 7, "C1: gone"}}}}
	opt := &options{beside: 2}
	tab := &table{out: io.Discard}
	w := &workshop{root: t.TempDir(), dir: t.TempDir()}
	if err := w.huntAll(context.Background(), []*Mutant{m}, opt, book, tab); err != nil || tab.caught != 1 {
		t.Errorf("caught %d, %v", tab.caught, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.huntAll(ctx, []*Mutant{m}, opt, book, tab); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}
