package architecture

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBinaryIsStatic builds the agent as `make build` does and looks for what a
// dynamic loader would need: an interpreter or a shared library.
func TestBinaryIsStatic(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the whole binary")
	}
	bin := filepath.Join(t.TempDir(), "qrbd")
	build := exec.Command("make", "-C", root, "--no-print-directory", "build", "BIN="+bin, "VERSION=v0.0.0-stamp")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	file, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, prog := range file.Progs {
		if prog.Type == elf.PT_INTERP {
			t.Errorf("%s asks for a dynamic loader", bin)
		}
	}
	libs, err := file.ImportedLibraries()
	if err != nil || len(libs) != 0 {
		t.Errorf("shared libraries %v, error %v, want none", libs, err)
	}
	out, err := exec.Command(bin, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "v0.0.0-stamp") {
		t.Errorf("--version says %q, error %v, want the stamped version v0.0.0-stamp", out, err)
	}
}
