package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What a test process makes on the machine carries its process id, so that a
// later one can remove it when the first was killed: directories qrbd-e2e-PID-…
// and namespaces qePIDn….

// Main runs m's tests, removes what earlier test processes left and what this one
// made for all its tests. It returns the exit code.
func Main(m *testing.M) int {
	sweep("/run/netns", "qe", "n", func(name, _ string) error { return run("ip", "netns", "del", name) })
	for _, parent := range []string{workParent(), os.TempDir()} {
		sweep(parent, "qrbd-e2e-", "-", func(_, path string) error { return os.RemoveAll(path) })
	}
	code := m.Run()
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, "remove binaries:", err)
		}
	}
	return code
}

// sweep removes entries of dir that are named prefix, process id, end, anything,
// where no process has that id.
func sweep(dir, prefix, end string, remove func(name, path string) error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // none were ever made
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		digits, _, complete := strings.Cut(rest, end)
		pid, err := strconv.Atoi(digits)
		if !ours || !complete || err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !os.IsNotExist(err) {
			continue
		}
		if err := remove(e.Name(), filepath.Join(dir, e.Name())); err != nil {
			fmt.Fprintln(os.Stderr, "left by a killed test:", err)
		}
	}
}

// newDir makes a directory that sweep finds.
func newDir(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("qrbd-e2e-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// workParent returns where clusters live: QRBD_E2E_DIR, or memory if there is
// enough, since a killed process loses no page cache wherever it is. The path is
// short, since a Unix socket's has at most 107 bytes.
func workParent() string {
	if dir := os.Getenv("QRBD_E2E_DIR"); dir != "" {
		return dir
	}
	if freeBytes("/dev/shm") > 4<<30 {
		return "/dev/shm"
	}
	return os.TempDir()
}
