package blockdev_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
)

// TestGrowBlock: a device that is claimed gets its tail zeroed; one that is too small is
// refused and left alone.
func TestGrowBlock(t *testing.T) {
	needRoot(t, "losetup")
	path := filepath.Join(t.TempDir(), "backing")
	must(t, os.WriteFile(path, bytes.Repeat([]byte{7}, 4<<20), 0o600))
	dev := loopOn(t, path)
	f, err := blockdev.OpenBlock(dev)
	must(t, err)
	defer f.Close()
	if err := blockdev.Grow(dev, 1<<20, 8<<20); !errors.Is(err, blockdev.ErrTooSmall) {
		t.Errorf("a device of 4 MiB grew to 8: %v", err)
	}
	must(t, blockdev.Grow(dev, 1<<20+512, 3<<20))
	got := make([]byte, 4<<20)
	must(t, f.ReadAt(got, 0))
	want := bytes.Repeat([]byte{7}, 4<<20)
	clear(want[1<<20+512 : 3<<20])
	if !bytes.Equal(got, want) {
		t.Error("wrong content")
	}
	must(t, f.WriteAt([]byte{8}, 0, blockdev.FUA))
}
