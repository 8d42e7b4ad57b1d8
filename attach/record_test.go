package attach

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"
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
	r := Record{Volume: "crm", Method: MethodFUSE, Device: "/dev/loop99", Token: newToken(), Since: time.Unix(1, 0).UTC(), Boot: bootID(), Helper: self}
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
	r := Record{Method: MethodFUSE, Boot: bootID(), Helper: p}
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
	for _, tt := range []struct {
		method Method
		device string
	}{{"iscsi", ""}, {MethodFUSE, "/dev/sda"}, {"", "/dev/null"}} {
		if m, err := pick(tt.method, tt.device); err == nil {
			t.Errorf("%q on %q: %s", tt.method, tt.device, m)
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
