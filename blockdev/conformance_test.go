package blockdev_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/blockdevtest"
)

func TestMemory(t *testing.T) {
	for _, size := range []int64{8 << 20, 2<<20 + 1000} {
		blockdevtest.Run(t, func(t *testing.T) blockdev.Device { return blockdev.NewMemory(size) })
	}
}

// fileDirs returns a directory on the working file system and, where there is
// one, on tmpfs, which lacks some of what others can.
func fileDirs(t *testing.T) map[string]string {
	dirs := map[string]string{"disk": t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "blockdev"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	return dirs
}

func TestFile(t *testing.T) {
	for name, dir := range fileDirs(t) {
		for _, size := range []int64{8 << 20, 2<<20 + 1000} {
			t.Run(name, func(t *testing.T) {
				blockdevtest.Run(t, func(t *testing.T) blockdev.Device {
					f, err := blockdev.CreateFile(filepath.Join(dir, "store"), size, true)
					if err != nil {
						t.Fatal(err)
					}
					return f
				})
			})
		}
	}
}
