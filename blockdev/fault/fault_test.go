package fault_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/blockdevtest"
	"github.com/qrbd/qrbd/blockdev/fault"
)

const size = 4 << 20

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	t.Run("no rules", func(t *testing.T) {
		blockdevtest.Run(t, func(*testing.T) blockdev.Device { return fault.New(blockdev.NewMemory(size), 1) })
	})
	t.Run("no script", func(t *testing.T) {
		blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
			d, err := fault.FromFile(blockdev.NewMemory(size), filepath.Join(t.TempDir(), "none"))
			must(t, err)
			return d
		})
	})
	t.Run("rules that never apply", func(t *testing.T) {
		blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
			return fault.New(blockdev.NewMemory(size), 1, fault.Rule{Any: true, Nth: 1 << 30},
				fault.Rule{Any: true, Action: fault.Delay})
		})
	})
}

func parse(t *testing.T, script string) []fault.Rule {
	t.Helper()
	rules, err := fault.Parse(strings.NewReader(script))
	must(t, err)
	return rules
}

// apply performs the named operation on 4 KiB at off.
func apply(d blockdev.Device, op string, off int64) error {
	p := make([]byte, 4096)
	switch op {
	case "read":
		return d.ReadAt(p, off)
	case "write":
		return d.WriteAt(p, off, 0)
	case "zero":
		return d.Zero(off, 4096, 0)
	case "trim":
		return d.Trim(off, 4096, 0)
	case "flush":
		return d.Flush()
	}
	panic(op)
}

func TestRules(t *testing.T) {
	type step struct {
		op   string
		off  int64
		want error
	}
	tests := []struct {
		script string
		steps  []step
	}{
		{"write error", []step{{"read", 0, nil}, {"flush", 0, nil}, {"write", 0, unix.EIO},
			{"write", 0, blockdev.ErrFailed}, {"read", 0, blockdev.ErrFailed}, {"flush", 0, blockdev.ErrFailed}}},
		{"read error", []step{{"read", 0, unix.EIO}, {"read", 0, unix.EIO}, {"write", 0, nil}}},
		{"flush error nth=2", []step{{"flush", 0, nil}, {"flush", 0, unix.EIO}, {"flush", 0, blockdev.ErrFailed}}},
		{"zero error", []step{{"write", 0, nil}, {"trim", 0, nil}, {"zero", 0, blockdev.ErrFailed}}},
		{"trim error", []step{{"zero", 0, nil}, {"trim", 0, blockdev.ErrFailed}}},
		{"any nospace count=2", []step{{"write", 0, unix.ENOSPC}, {"zero", 0, blockdev.ErrNoSpace}, {"write", 0, nil}}},
		{"read error range=8192+1", []step{{"read", 0, nil}, {"read", 4096, nil}, {"read", 8192, unix.EIO},
			{"read", 5000, unix.EIO}, {"read", 8193, nil}}},
		{"read error nth=1\nread nospace", []step{{"read", 0, unix.EIO}, {"read", 0, unix.ENOSPC}}},
		{"write short", []step{{"write", 0, blockdev.ErrFailed}}},
		{"flush short", []step{{"flush", 0, blockdev.ErrFailed}}},
		{"# nothing\n\n  # at all", []step{{"write", 0, nil}}},
	}
	for _, tt := range tests {
		t.Run(tt.script, func(t *testing.T) {
			d := fault.New(blockdev.NewMemory(size), 1, parse(t, tt.script)...)
			for i, s := range tt.steps {
				if err := apply(d, s.op, s.off); !errors.Is(err, s.want) {
					t.Fatalf("step %d, %s at %d: %v, want %v", i, s.op, s.off, err, s.want)
				}
			}
		})
	}
}

func TestShortWriteWritesHalf(t *testing.T) {
	below := blockdev.NewMemory(size)
	d := fault.New(below, 1, parse(t, "write short")...)
	if err := d.WriteAt(bytes.Repeat([]byte{1}, 4096), 0, 0); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	must(t, below.ReadAt(p, 0))
	if n := bytes.Count(p, []byte{1}); n != 2048 {
		t.Errorf("%d bytes written, want 2048", n)
	}
}

func TestProbability(t *testing.T) {
	count := func(seed uint64) (n int) {
		d := fault.New(blockdev.NewMemory(size), seed, parse(t, "read error p=0.25")...)
		for range 1000 {
			if d.ReadAt(make([]byte, 1), 0) != nil {
				n++
			}
		}
		return n
	}
	a := count(1)
	if a < 180 || a > 320 {
		t.Errorf("%d of 1000 reads failed, want about 250", a)
	}
	if a != count(1) {
		t.Error("one seed, two outcomes")
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fault.New(blockdev.NewMemory(size), 1, parse(t, "read delay 50ms")...)
		start := time.Now()
		must(t, apply(d, "read", 0))
		if took := time.Since(start); took != 50*time.Millisecond {
			t.Errorf("took %v", took)
		}
		must(t, apply(d, "write", 0))
		if took := time.Since(start); took != 50*time.Millisecond {
			t.Errorf("the write waited too: %v", took)
		}
	})
}

func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fault.New(blockdev.NewMemory(size), 1, parse(t, "write hang")...)
		done := make(chan error, 1)
		go func() { done <- apply(d, "write", 0) }()
		time.Sleep(time.Hour) // synctest's clock
		if d.Waiting() != 1 {
			t.Fatal("the write does not hang")
		}
		d.Set(parse(t, "flush error\nwrite hang")...)
		synctest.Wait()
		if d.Waiting() != 1 {
			t.Fatal("the write goes on though its rule is still there")
		}
		d.Set()
		must(t, <-done)

		d.Set(parse(t, "write hang")...)
		go func() { done <- apply(d, "write", 0) }()
		synctest.Wait()
		must(t, d.Close())
		if err := <-done; !errors.Is(err, blockdev.ErrClosed) {
			t.Errorf("hung write after Close: %v", err)
		}
	})
}

func TestScriptFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	put := func(script string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(script), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	d, err := fault.FromFile(blockdev.NewMemory(size), path)
	must(t, err)
	must(t, apply(d, "read", 0))
	put("read error\n")
	if err := apply(d, "read", 0); !errors.Is(err, unix.EIO) {
		t.Fatalf("after the script came: %v", err)
	}
	put("read sing\n")
	if err := apply(d, "read", 0); !errors.Is(err, unix.EIO) {
		t.Fatalf("a wrong script must leave the rules: %v", err)
	}
	if err := d.ScriptError(); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Fatalf("script error: %v", err)
	}
	put("write hang\n")
	must(t, apply(d, "read", 0))
	must(t, d.ScriptError())
	done := make(chan error, 1)
	go func() { done <- apply(d, "write", 0) }()
	for d.Waiting() == 0 && len(done) == 0 {
		must(t, d.Flush()) // time passes
	}
	must(t, os.Remove(path))
	must(t, <-done)
	must(t, d.Close())

	put("boil error\n")
	if _, err := fault.FromFile(blockdev.NewMemory(size), path); err == nil {
		t.Error("a wrong script is taken at start")
	}
}

func TestParseErrors(t *testing.T) {
	for _, script := range []string{
		"read", "sing error", "read sing", "read delay", "read delay x", "read delay -1s", "read error nth=0",
		"read error count=x", "read error p=2", "read error p=0", "read error p=NaN", "read error range=1",
		"read error range=-1+5", "read error range=0+0", "read error range=9223372036854775807+9", "read error loud",
	} {
		if _, err := fault.Parse(strings.NewReader("write error\n" + script)); err == nil ||
			!strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", script, err)
		}
	}
}

func TestRuleString(t *testing.T) {
	for _, line := range []string{"any error", "read delay 50ms p=0.5", "write hang range=0+4096 nth=3 count=2", "flush short", "trim nospace", "zero error"} {
		if got := parse(t, line)[0].String(); got != line {
			t.Errorf("%q became %q", line, got)
		}
	}
}

// FuzzParse: no script makes the parser panic, and what it takes, it can say.
func FuzzParse(f *testing.F) {
	f.Add("write error nth=3 count=2 p=0.5 range=0+4096\nany delay 5ms # slow")
	f.Fuzz(func(t *testing.T, script string) {
		rules, err := fault.Parse(strings.NewReader(script))
		if err != nil {
			return
		}
		for _, r := range rules {
			again, err := fault.Parse(strings.NewReader(r.String()))
			if err != nil || len(again) != 1 || again[0] != r {
				t.Errorf("%+v says %q, which is %+v (%v)", r, r, again, err)
			}
		}
	})
}
