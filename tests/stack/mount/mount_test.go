package mount

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// serve exports a sparse file of 256 MiB through nbdkit and returns the server
// and the export's URI.
func serve(t *testing.T, dir string) (*process.Process, string) {
	t.Helper()
	backing := filepath.Join(dir, "backing")
	if _, err := os.Stat(backing); err != nil {
		if err := os.WriteFile(backing, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(backing, 256<<20); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "nbd")
	p, err := process.Start(process.Options{Args: []string{"nbdkit", "-f", "-U", socket, "file", backing}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Kill(p) })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return p, "nbd+unix:///?socket=" + socket
		}
		if time.Now().After(deadline) {
			t.Fatal("nbdkit has no socket after 10 s")
		}
	}
}

// TestCrashAndReplay writes a file, kills the whole stack with its server, and
// reads the file on a second stack over the same backing store.
func TestCrashAndReplay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	server, uri := serve(t, dir)
	first, err := Open(ctx, filepath.Join(dir, "first"), uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Format(ctx); err != nil {
		t.Fatal(err)
	}
	if err := first.Mount(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Check(ctx); err == nil {
		t.Error("a mounted file system was checked")
	}
	writeSynced(t, filepath.Join(first.Dir(), "order"), "42")
	device := first.Device()
	process.Kill(append(first.Processes(), server)...)
	if err := first.Crash(ctx); err != nil {
		t.Error(err)
	}
	if left := Below(dir); len(left) != 0 {
		t.Errorf("mounts left after the crash: %v", left)
	}

	_, uri = serve(t, dir)
	second, err := Open(ctx, filepath.Join(dir, "second"), uri)
	if err != nil {
		t.Fatal(err)
	}
	if replay, err := second.NeedsReplay(ctx); err != nil || !replay {
		t.Errorf("after the crash, NeedsReplay = %t, %v", replay, err)
	}
	if err := second.Mount(ctx); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(second.Dir(), "order")); err != nil || string(data) != "42" {
		t.Errorf("the synced file reads %q, %v", data, err)
	}
	if err := second.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if replay, err := second.NeedsReplay(ctx); err != nil || replay {
		t.Errorf("after unmount, NeedsReplay = %t, %v", replay, err)
	}
	if sum, err := second.Check(ctx); err != nil || !strings.Contains(sum, "files") {
		t.Errorf("e2fsck says %q, %v", sum, err)
	}
	device2 := second.Device()
	if err := second.Close(ctx); err != nil {
		t.Error(err)
	}
	if left := Below(dir); len(left) != 0 {
		t.Errorf("mounts left after Close: %v", left)
	}
	loops, err := run(ctx, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(loops, dir) {
		t.Errorf("loop devices left (%s, %s were ours):\n%s", device, device2, loops)
	}
}

func TestOpenOfNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir := t.TempDir()
	if _, err := Open(ctx, filepath.Join(dir, "m"), "nbd+unix:///?socket="+filepath.Join(dir, "none")); err == nil ||
		!strings.Contains(err.Error(), "nbdfuse ended") {
		t.Errorf("Open without a server says %v", err)
	}
	if left := Below(dir); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
}

func writeSynced(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}
