package blockdev_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/blockdevtest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needRoot skips a test that makes devices or mounts where that cannot be done.
func needRoot(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s", tool)
		}
	}
}

// loopOn attaches a loop device to a file, until the end of the test.
func loopOn(t *testing.T, file string, options ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", append(options, "--find", "--show", file)...).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device to be had: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

func sparse(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "backing")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// tmpfs mounts a file system that holds size, until the end of the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func TestBlock(t *testing.T) {
	needRoot(t, "losetup")
	for _, sector := range []string{"512", "4096"} {
		t.Run(sector, func(t *testing.T) {
			dev := loopOn(t, sparse(t, t.TempDir(), 4<<20), "--sector-size", sector)
			blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
				f, err := blockdev.Open(dev)
				must(t, err)
				must(t, f.Zero(0, f.Size(), blockdev.FUA))
				return f
			})
		})
	}
}

func TestBlockGeometryAndClaim(t *testing.T) {
	needRoot(t, "losetup")
	dev := loopOn(t, sparse(t, t.TempDir(), 4<<20), "--sector-size", "4096")
	f, err := blockdev.OpenBlock(dev)
	must(t, err)
	if logical, physical := f.SectorSizes(); logical != 4096 || physical != 4096 || f.Size() != 4<<20 {
		t.Errorf("sectors of %d and %d in %d bytes", logical, physical, f.Size())
	}
	if _, err := blockdev.Open(dev); !errors.Is(err, blockdev.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := blockdev.OpenFile(dev); err == nil {
		t.Error("OpenFile took a device")
	}
	must(t, f.Close())
	f, err = blockdev.Open(dev)
	must(t, err)
	must(t, f.Close())
}

func TestBlockMounted(t *testing.T) {
	needRoot(t, "losetup", "mkfs.ext4")
	dev := loopOn(t, sparse(t, t.TempDir(), 16<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	_, err := blockdev.Open(dev)
	must(t, unix.Unmount(dir, 0))
	if !errors.Is(err, blockdev.ErrInUse) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("open of a mounted device: %v", err)
	}
}

func TestFileNoSpace(t *testing.T) {
	needRoot(t)
	dir := tmpfs(t, "1m")
	f, err := blockdev.CreateFile(filepath.Join(dir, "store"), 8<<20, false)
	must(t, err)
	defer f.Close()
	data := bytes.Repeat([]byte{1}, 4<<20)
	for _, flags := range []blockdev.Flags{0, blockdev.FUA} {
		if err := f.WriteAt(data, 0, flags); !errors.Is(err, blockdev.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("flags %d: %v", flags, err)
		}
		if err := f.Zero(4<<20, 4<<20, flags|blockdev.NoHole); !errors.Is(err, blockdev.ErrNoSpace) {
			t.Errorf("zero, flags %d: %v", flags, err)
		}
	}
	// Not a failed disk: room is made, and it goes on.
	must(t, f.Flush())
	must(t, f.Trim(0, 8<<20, 0))
	must(t, f.WriteAt(data[:512<<10], 0, blockdev.FUA))
}

// TestLostWriteBack fills the file below a loop device, so that writes succeed in
// the page cache and are lost on their way down. Everyone who asks for
// durability must hear of it, at the same time or later, though the kernel tells
// each description only once.
func TestLostWriteBack(t *testing.T) {
	needRoot(t, "losetup")
	for _, first := range []string{"flush", "fua", "many"} {
		t.Run(first, func(t *testing.T) {
			dev := loopOn(t, sparse(t, tmpfs(t, "1m"), 8<<20))
			f, err := blockdev.Open(dev)
			must(t, err)
			defer f.Close()
			must(t, f.WriteAt(bytes.Repeat([]byte{1}, 6<<20), 0, 0))
			fua := func() error { return f.WriteAt(make([]byte, 4096), 7<<20, blockdev.FUA) }
			switch first {
			case "flush":
				err = f.Flush()
			case "fua":
				if err = fua(); err == nil { // its own range may have fitted
					err = f.Flush()
				}
			case "many":
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						if err := f.Flush(); !errors.Is(err, blockdev.ErrFailed) {
							t.Errorf("one of many flushes: %v", err)
						}
					})
					wg.Go(func() { fua() })
				}
				wg.Wait()
				err = f.Failed()
			}
			if !errors.Is(err, blockdev.ErrFailed) {
				t.Fatalf("lost write: %v", err)
			}
			for range 2 {
				if err := f.Flush(); !errors.Is(err, blockdev.ErrFailed) {
					t.Errorf("flush after the loss: %v", err)
				}
			}
			if err := fua(); !errors.Is(err, blockdev.ErrFailed) {
				t.Errorf("FUA after the loss: %v", err)
			}
		})
	}
}
