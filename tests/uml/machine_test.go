package uml

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// need skips a test where no machine can be had.
func need(t *testing.T, modules ...string) {
	t.Helper()
	if missing := Missing(modules...); missing != "" {
		t.Skip("needs " + missing)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// within is a context that ends before the test binary's own limit does.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestMachine(t *testing.T) {
	need(t, "nbd")
	m := &Machine{Name: "one", Memory: "256M", Modules: []string{"nbd nbds_max=2"}, Env: []string{"WORD=it's here"}, Dir: t.TempDir(),
		Command: []string{"/bin/sh", "-c", `uname -n; echo "$WORD"; ls -d /sys/block/nbd1 /sys/block/nbd2; exit 7`}}
	var out bytes.Buffer
	code, err := m.Run(within(t, time.Minute), &out)
	if err != nil || code != 7 {
		t.Fatalf("Run: %d, %v; want the command's 7\n%s", code, err, out.Bytes())
	}
	for _, want := range []string{"one", "it's here", "/sys/block/nbd1\n", "cannot access '/sys/block/nbd2'"} {
		if !strings.Contains(strings.ReplaceAll(out.String(), "\r", ""), want) {
			t.Errorf("the output lacks %q:\n%s", want, out.Bytes())
		}
	}
}

func TestSwitchedOff(t *testing.T) {
	need(t)
	m := &Machine{Name: "sleeper", Memory: "256M", Dir: t.TempDir(), Command: []string{"/bin/sleep", "600"}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var out bytes.Buffer
	if _, err := m.Run(ctx, &out); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run: %v, want that the time was over", err)
	}
}

func TestNoVerdict(t *testing.T) {
	need(t)
	m := &Machine{Name: "broken", Memory: "256M", Dir: t.TempDir(), Command: []string{"/bin/sh", "-c", "poweroff -f"}}
	var out bytes.Buffer
	if _, err := m.Run(within(t, time.Minute), &out); !errors.Is(err, errNoVerdict) {
		t.Errorf("Run: %v, want %v", err, errNoVerdict)
	}
}

// TestCable: two machines reach each other.
func TestCable(t *testing.T) {
	need(t)
	a, b, err := Cable()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	const talk = `for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		ip neigh flush all; bash -c "echo hello > /dev/udp/$OTHER/9" 2>/dev/null; sleep 0.2; ip neigh show | grep -q lladdr && exit 0; done; ip neigh show; exit 1`
	var wg sync.WaitGroup
	for _, m := range []*Machine{
		{Name: "left", Cable: a, Address: "10.9.0.1/24", Env: []string{"OTHER=10.9.0.2"}},
		{Name: "right", Cable: b, Address: "10.9.0.2/24", Env: []string{"OTHER=10.9.0.1"}},
	} {
		m.Memory, m.Dir, m.Command = "256M", t.TempDir(), []string{"/bin/sh", "-c", talk + "\n"}
		wg.Go(func() {
			var out bytes.Buffer
			if code, err := m.Run(within(t, time.Minute), &out); code != 0 || err != nil {
				t.Errorf("%s: %d, %v\n%s", m.Name, code, err, out.Bytes())
			}
		})
	}
	wg.Wait()
}
