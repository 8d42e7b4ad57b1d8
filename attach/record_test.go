package attach

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev/nbd/kernel"
)

func TestRecord(t *testing.T) {
	state := t.TempDir()
	if _, err := Load(state, "crm"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("nothing there: %v", err)
	}
	if list, err := List(state); len(list) != 0 || list == nil || err != nil {
		t.Errorf("nothing there: %v, %v", list, err)
	}
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Volume: "crm", Method: MethodFUSE, Device: "/dev/loop99", Token: newToken(), Since: time.Unix(1, 0).UTC(), Boot: BootID(), Helper: self}
	if err := r.save(state); err != nil {
		t.Fatal(err)
	}
	got, err := Load(state, "crm")
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(Dir(state), "web.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := List(state); len(list) != 1 || err == nil {
		t.Errorf("with a broken record: %v, %v", list, err)
	}
	if err := r.remove(state); err != nil {
		t.Error(err)
	}
	if _, err := Load(state, "crm"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("removed: %v", err)
	}
}

// TestLive: a record stands for a device only while its helper, and no process with the
// same id, is there, since the same start of the host.
func TestLive(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Method: MethodFUSE, Boot: BootID(), Helper: p}
	if !r.Live() {
		t.Error("the helper runs")
	}
	later, rebooted := r, r
	later.Helper.Start++
	rebooted.Boot = "another"
	if later.Live() || rebooted.Live() {
		t.Error("another process, or another start of the host, counts as it")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for p.alive() { // also while nobody has waited for it
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Wait() // killed
	if r.Live() {
		t.Error("the helper is dead")
	}
}

func TestPick(t *testing.T) {
	none := errors.New("none")
	tests := []struct {
		name         string
		method       Method
		device       string
		driver, fuse error
		want         Method // "": refused
	}{
		{"kernel first", "", "", nil, nil, MethodNBD},
		{"no kernel's client", "", "", kernel.ErrNoDriver, nil, MethodFUSE},
		{"fuse where both are", MethodFUSE, "", nil, nil, MethodFUSE},
		{"by a loop device", "", "/dev/loop7", nil, nil, MethodFUSE},
		{"by an nbd device", "", "/dev/nbd2", nil, none, MethodNBD},
		{"an nbd device without driver", "", "/dev/nbd2", kernel.ErrNoDriver, nil, ""},
		{"nbd without driver", MethodNBD, "", kernel.ErrNoDriver, nil, ""},
		{"neither", "", "", kernel.ErrNoDriver, none, ""},
		{"another method", "iscsi", "", nil, nil, ""},
		{"another device", "", "/dev/sda", nil, nil, ""},
		{"one method, the other's device", MethodFUSE, "/dev/nbd0", nil, nil, ""},
	}
	for _, tt := range tests {
		h := hosts{root: true, driver: func() error { return tt.driver }, fuse: func() error { return tt.fuse }}
		got, err := h.pick(tt.method, tt.device)
		if (err == nil) != (tt.want != "") || err == nil && got != tt.want {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
		h.root = false
		if _, err := h.pick(tt.method, tt.device); err == nil {
			t.Errorf("%s: without root", tt.name)
		}
	}
}

func TestNBDIndex(t *testing.T) {
	for device, want := range map[string]int{"/dev/nbd0": 0, "/dev/nbd15": 15, "nbd3": 3} {
		if n, err := nbdIndex(device); n != want || err != nil {
			t.Errorf("%s: %d, %v", device, n, err)
		}
	}
	for _, bad := range []string{"", "/dev/nbd", "/dev/nbd-1", "/dev/nbd0p1", "/dev/loop0"} {
		if n, err := nbdIndex(bad); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

func TestLinks(t *testing.T) {
	link := filepath.Join(t.TempDir(), "dev/crm")
	if err := checkLink(link); err != nil {
		t.Error(err)
	}
	for _, to := range []string{"/dev/loop98", "/dev/loop99"} { // the second replaces a stale one
		if err := errors.Join(setLink(link, to), checkLink(link)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(link); err != nil || got != to {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := errors.Join(os.Remove(link), os.WriteFile(link, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := checkLink(link); err == nil {
		t.Error("a file in its place is overwritten")
	}
}
