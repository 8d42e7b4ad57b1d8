package main

import (
	"context"
	"errors"
	"go/format"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestApply has every mutant match the code as it is today, and give Go code that is
// not the same.
func TestApply(t *testing.T) {
	seen := map[string]bool{}
	name := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	for i := range mutants {
		m := &mutants[i]
		if !name.MatchString(m.Name) || seen[m.Name] || m.Why == "" || len(m.Edits) == 0 {
			t.Errorf("mutant %q: its name is used twice or no file name, or it says nothing", m.Name)
		}
		seen[m.Name] = true
		if (m.Test == "") != (m.In == "") || (m.Test == "") != (m.But == "") {
			t.Errorf("mutant %s: a test that finds it has a name, a directory and a reason", m.Name)
		}
		if m.Test != "" && !defined(t, m.In, m.Test) {
			t.Errorf("mutant %s: there is no %s in %s", m.Name, m.Test, m.In)
		}
		files, err := m.Apply(root)
		if err != nil {
			t.Errorf("%v\nadapt it in tests/mutants: the code has moved on", err)
			continue
		}
		for file, text := range files {
			was, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				t.Fatal(err)
			}
			if string(was) == text {
				t.Errorf("mutant %s changes nothing in %s", m.Name, file)
			}
			if _, err := format.Source([]byte(text)); err != nil {
				t.Errorf("mutant %s: %s is no Go any more: %v", m.Name, file, err)
			}
		}
	}
}

// defined reports whether a test is in a directory of the module.
func defined(t *testing.T, dir, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "func "+test+"(t *testing.T)") {
			return true
		}
	}
	return false
}

// TestCompiles builds what each mutant touches.
func TestCompiles(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a compiler's time")
	}
	w := &workshop{root: root, dir: t.TempDir()}
	for i := range mutants {
		m := &mutants[i]
		var packages []string
		for _, e := range m.Edits {
			packages = append(packages, "./"+filepath.Dir(e.File))
		}
		if err := w.build(context.Background(), m, "", packages...); err != nil {
			t.Error(err)
		}
	}
}

func TestApplyRefusesStale(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte("one two two three"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		edits []Edit
		want  string // "": an error
	}{
		{"once", []Edit{{"a.go", "one", "1"}}, "1 two two three"},
		{"one after the other", []Edit{{"a.go", "one two", "12"}, {"a.go", "12 two", "122"}}, "122 three"},
		{"not there", []Edit{{"a.go", "four", "4"}}, ""},
		{"twice", []Edit{{"a.go", "two", "2"}}, ""},
		{"gone after the first", []Edit{{"a.go", "one", "1"}, {"a.go", "one", "2"}}, ""},
		{"no such file", []Edit{{"b.go", "one", "1"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files, err := (&Mutant{Name: "x", Edits: tt.edits}).Apply(dir)
			if tt.want == "" {
				if !errors.Is(err, ErrStale) {
					t.Errorf("got %v and %v, want ErrStale", files, err)
				}
				return
			}
			if err != nil || files["a.go"] != tt.want {
				t.Errorf("got %q and %v, want %q", files["a.go"], err, tt.want)
			}
		})
	}
}

func TestChosen(t *testing.T) {
	list := []Mutant{{Name: "ack-early"}, {Name: "mint-late"}, {Name: "mint-never"}}
	for only, want := range map[string]int{"": 3, "mint": 2, "late,ack": 2, "nothing": 0} {
		if got := chosen(list, only); len(got) != want {
			t.Errorf("%q chooses %d, want %d", only, len(got), want)
		}
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	tab := &table{out: &out}
	tab.row(&Mutant{Name: "a"}, prey{Seed: 7, Ran: 7, Failed: "C1: gone\nmore"}, 0, nil)
	if err := tab.verdict(1); err != nil {
		t.Errorf("all caught: %v", err)
	}
	tab.row(&Mutant{Name: "b"}, prey{Ran: 9}, 0, nil)
	tab.row(&Mutant{Name: "c"}, prey{}, 0, errors.New("no compiler"))
	if err := tab.verdict(3); err == nil || !strings.Contains(err.Error(), "b, c") {
		t.Errorf("two not caught: %v", err)
	}
	for _, want := range []string{"C1            7     0.0  gone\n", "ESCAPED", "NO VERDICT: no compiler", "mutants caught: 1 of 3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	sound := &table{out: &out}
	sound.control(map[uint64]string{2: "", 3: "C2: differ"})
	if err := sound.verdict(0); err == nil || !strings.Contains(err.Error(), "as it is FAILS with seed 3") {
		t.Errorf("the code as it is fails: %v", err)
	}
}
