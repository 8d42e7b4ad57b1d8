package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/mount"
)

// programs builds qrbd and the demo once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "qrbd-programs-")
	if err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{"qrbd": "../../cmd/qrbd", "demo": "."} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg).CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	mount.Alone()
	code := m.Run()
	if dir, _ := programs(); dir != "" { // an error was reported by the test that met it
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// told is a demo that runs in a directory of its own.
type told struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string // its TMPDIR
	lines  *bufio.Scanner
	output strings.Builder
}

// tell starts a short demo with more flags. qrbd "": the real one.
func tell(t *testing.T, qrbd string, flags ...string) *told {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	if qrbd == "" {
		qrbd = filepath.Join(bin, "qrbd")
	}
	d := &told{t: t}
	if d.dir, err = os.MkdirTemp("", "qrbd-told-"); err != nil { // t.TempDir is closed to databases
		t.Fatal(err)
	}
	if err := os.Chmod(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	d.cmd = exec.CommandContext(ctx, filepath.Join(bin, "demo"), append([]string{"--qrbd", qrbd, "--load", "3s", "--after", "1s"}, flags...)...)
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(os.Interrupt) }
	d.cmd.WaitDelay = 30 * time.Second
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.dir)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = os.Stderr
	d.lines = bufio.NewScanner(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Wait() // the test has failed already
		}
		os.Remove(d.dir) // an empty one only: it may be a mount's
	})
	return d
}

// until reads the output up to a line with these words, which must come.
func (d *told) until(words string) {
	d.t.Helper()
	for d.lines.Scan() {
		d.output.WriteString(d.lines.Text() + "\n")
		if strings.Contains(d.lines.Text(), words) {
			return
		}
	}
	d.t.Fatalf("the demo ended without a line %q:\n%s", words, d.output.String())
}

// end reads the rest of the output, and expects an exit code and nothing left of
// the demo on this machine.
func (d *told) end(code int) string {
	d.t.Helper()
	for d.lines.Scan() {
		d.output.WriteString(d.lines.Text() + "\n")
	}
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	if got := d.cmd.ProcessState.ExitCode(); got != code {
		d.t.Errorf("exit code %d, want %d:\n%s", got, code, d.output.String())
	}
	d.clean()
	return d.output.String()
}

// clean looks for mounts, loop devices, processes and files of the demo.
func (d *told) clean() {
	d.t.Helper()
	if left := mount.Below(d.dir); len(left) != 0 {
		d.t.Errorf("still mounted: %v", left)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		if back, _ := os.ReadFile(f); strings.HasPrefix(string(back), d.dir) { // it may be detached meanwhile
			d.t.Errorf("loop device left: %s is on %s", f, back)
		}
	}
	files, err = filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		if line, _ := os.ReadFile(f); strings.Contains(string(line), d.dir) { // it may have ended meanwhile
			d.t.Errorf("process left: %s is %q", f, line)
		}
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil || len(entries) != 0 {
		d.t.Errorf("files left: %v, %v", entries, err)
	}
}

// needRoot skips what mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
}

func TestDatabaseStory(t *testing.T) {
	needRoot(t)
	for _, db := range []string{"postgres", "mariadb"} {
		t.Run(db, func(t *testing.T) {
			out := tell(t, "", "--db", db).end(0)
			for _, words := range []string{"PASSED", "0 lost", "e2fsck -fn: clean", "equal, all 2048 MiB compared", "recognised as outdated: true"} {
				if !strings.Contains(out, words) {
					t.Errorf("the report does not say %q:\n%s", words, out)
				}
			}
		})
	}
}

func TestBlockStory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	out := tell(t, "", "--block").end(0)
	for _, words := range []string{"PASSED", "left out", "0 lost, torn or stale", "equal, all 2048 MiB compared"} {
		if !strings.Contains(out, words) {
			t.Errorf("the report does not say %q:\n%s", words, out)
		}
	}
}

// TestNoticesLoss lets the survivor lose a MiB of what was acknowledged.
func TestNoticesLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	liar := filepath.Join(t.TempDir(), "qrbd")
	script := `#!/bin/sh
case "$*" in
"promote crm --peer-fenced "*)
	` + bin + `/qrbd "$@" || exit
	for config; do :; done
	dd if=/dev/zero of="${config%/*}/crm.img" bs=1M count=1 conv=notrunc status=none ;;
*)
	exec ` + bin + `/qrbd "$@" ;;
esac
`
	if err := os.WriteFile(liar, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	out := tell(t, liar, "--block").end(1)
	if !strings.Contains(out, "FAILED  writes, after the death") {
		t.Errorf("the report does not name the loss:\n%s", out)
	}
}

// TestInterrupted interrupts the demo where it has most to clean up.
func TestInterrupted(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		signal os.Signal
		at     string
	}{
		{os.Interrupt, "makes its data directory"},
		{syscall.SIGTERM, "clients work"},
		{os.Interrupt, "the load goes on against beta"},
	} {
		t.Run(tt.at, func(t *testing.T) {
			d := tell(t, "")
			d.until(tt.at)
			if err := d.cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			if out := d.end(130); !strings.Contains(out, "interrupted") {
				t.Errorf("the demo does not say that it was interrupted:\n%s", out)
			}
		})
	}
}

// TestUsage gives the demo what it cannot use.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--db", "oracle"}, {"--clients", "0"}, {"more"}, {"--size", "3"}, {"--nonsense"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("parse(%q) took it", args)
		}
	}
}
