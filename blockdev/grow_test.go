package blockdev

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestGrowFile: what is in use stays, all behind it reads as zeroes, also where the file
// was longer than what is in use; a store that is open is none the wiser.
func TestGrowFile(t *testing.T) {
	for _, c := range []struct {
		name          string
		has, from, to int64
	}{
		{"longer", 1 << 20, 1 << 20, 3 << 20},
		{"was longer and not empty", 2 << 20, 1<<20 + 512, 3 << 20},
		{"long enough", 4 << 20, 1 << 20, 3 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crm.img")
			if err := os.WriteFile(path, bytes.Repeat([]byte{7}, int(c.has)), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := Grow(path, c.from, c.to); err != nil {
				t.Fatal(err)
			}
			if err := f.WriteAt([]byte{8}, 0, FUA); err != nil || f.Size() != c.has {
				t.Errorf("the open store: %v, %d bytes", err, f.Size())
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, max(c.has, c.to))
			copy(want, bytes.Repeat([]byte{7}, int(c.from)))
			copy(want[c.to:], bytes.Repeat([]byte{7}, len(want)))
			want[0] = 8
			if !bytes.Equal(got, want) {
				t.Error("wrong content")
			}
		})
	}
	if err := Grow(filepath.Join(t.TempDir(), "nothing"), 0, 1); err == nil {
		t.Error("nothing was enlarged")
	}
}
