package interop

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// MinSize is the least size in bytes of an export that Run can work on.
const MinSize = 256 << 20

// programTimeout ends a client that hangs. The longest check writes and reads
// some hundred MiB.
const programTimeout = 2 * time.Minute

// Target is a writable export of at least MinSize bytes.
type Target struct {
	// Addr is unix:/path or tcp:host:port.
	Addr string
	// Export is its name.
	Export string
}

// URI returns the target as clients take it.
func (x Target) URI() string {
	if path, ok := strings.CutPrefix(x.Addr, "unix:"); ok {
		return "nbd+unix:///" + url.PathEscape(x.Export) + "?socket=" + url.QueryEscape(path)
	}
	return "nbd://" + strings.TrimPrefix(x.Addr, "tcp:") + "/" + url.PathEscape(x.Export)
}

// Run makes every check, each as a subtest.
func Run(t *testing.T, x Target) {
	checks := []struct {
		name  string
		check func(t *testing.T, x Target)
	}{
		{"nbdinfo", Info},
		{"nbd-client lists", List},
		{"nbdsh, commands and flags", Commands},
		{"nbdsh, requests that cannot be", BadRequests},
		{"nbdcopy", Copy},
		{"qemu-img", Convert},
		{"qemu-io", QemuIO},
		{"fio verifies", Verify},
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { c.check(t, x) })
	}
}

// need skips the test unless the programs are installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// run runs a program and returns its output; a failure ends the test.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		line, _, _ := strings.Cut(strings.Join(args, " "), "\n") // a script is long
		t.Fatalf("%s %s: %v\n%s", name, line, err, out)
	}
	return out
}

func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	// nbdsh takes the first python3 it finds; Debian's has the binding.
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("hung for %v: %w", programTimeout, err)
	}
	return string(out), err
}

// blank makes the whole export a hole and returns its size.
func blank(t *testing.T, x Target) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	c, err := client.Dial(ctx, x.Addr, x.Export, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() < MinSize {
		t.Fatalf("export of %d bytes, %d are needed", c.Size(), MinSize)
	}
	if err := c.Trim(0, c.Size(), 0); err != nil {
		t.Fatal(err)
	}
	return c.Size()
}
