package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Program is what runs as a node's agent. The command line is always qrbd's.
type Program struct {
	pkg string
	arg string // its first argument
}

// The agents.
var (
	Qrbd           = Program{"./cmd/qrbd", "agent"}
	CrashAgent     = Program{"./tests/e2e/storeagent", "volatile"}      // what is not flushed lives in its memory only
	MetaCrashAgent = Program{"./tests/e2e/storeagent", "volatile-meta"} // the same, of the metadata alone
	FaultAgent     = Program{"./tests/e2e/storeagent", "fault"}         // a store obeys the script beside it, Node.Faults; so does a CrashAgent's
)

// Path returns the program's path; it is built on first use.
func (p Program) Path(t testing.TB) string {
	t.Helper()
	return binary(t, p.pkg)
}

var built struct {
	sync.Mutex
	dir  string
	path map[string]string // by package
}

// binary returns the path of a main package's program, built on first use.
func binary(t testing.TB, pkg string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if path := built.path[pkg]; path != "" {
		return path
	}
	if path := Prebuilt(filepath.Base(pkg)); path != "" {
		return path
	}
	if built.dir == "" {
		built.dir, built.path = newDir(t, os.TempDir()), map[string]string{}
	}
	path := filepath.Join(built.dir, filepath.Base(pkg))
	args := []string{"build", "-o", path}
	if os.Getenv("QRBD_E2E_RACE") != "" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = moduleRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	built.path[pkg] = path
	return path
}

// PrebuiltEnv names a directory of programs that are used instead of building them, for
// tests that run where there is no compiler.
const PrebuiltEnv = "QRBD_E2E_BIN"

// Prebuilt returns the path of a program in that directory; "" if there is none.
func Prebuilt(name string) string {
	dir := os.Getenv(PrebuiltEnv)
	if dir == "" {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == "/" {
			t.Fatal("no go.mod above the test")
		}
	}
}
