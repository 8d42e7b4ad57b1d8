package mount

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// loop makes a loop device on a file of 256 MiB, which is made if missing.
func loop(t *testing.T, file string) string {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	out, err := run(t.Context(), "losetup", "--find", "--show", file)
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(out)
	t.Cleanup(func() {
		if _, err := run(context.Background(), "losetup", "--detach", device); err != nil {
			t.Error(err)
		}
	})
	return device
}

// TestCrashAndReplay writes a file and mounts what the device held at that moment, as
// another host would after a crash.
func TestCrashAndReplay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	backing := filepath.Join(dir, "backing")
	first, err := New(filepath.Join(dir, "first"), loop(t, backing))
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
	copied := filepath.Join(dir, "copy")
	if _, err := run(ctx, "cp", "--sparse=always", backing, copied); err != nil {
		t.Fatal(err)
	}
	if err := first.Crash(ctx); err != nil {
		t.Error(err)
	}
	if left := Below(dir); len(left) != 0 {
		t.Errorf("mounts left after the crash: %v", left)
	}

	second, err := New(filepath.Join(dir, "second"), loop(t, copied))
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
	if left := Below(dir); len(left) != 0 {
		t.Errorf("mounts left after Unmount: %v", left)
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

func TestMain(m *testing.M) {
	Alone()
	os.Exit(m.Run())
}
