package failover

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
)

// machine is a host on which systemctl and qrbd are scripts that note how they are called.
type machine struct {
	t       *testing.T
	dir     string
	device  Device
	started bool
	h       *Host
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir()}
	m.h = &Host{Volume: "crm", Node: "alpha", Config: "/etc/qrbd/qrbd.toml", Export: "unix:/s", Link: "/dev/qrbd/crm", Log: filepath.Join(m.dir, "log"),
		Qrbd: m.script("qrbd", `[ ! -e fail-$1 ]`), Systemctl: m.script("systemctl", `case "$1 $2" in
"show --property=LoadState") cat load;;
"show --property=ActiveState") cat active;;
esac
[ ! -e fail-$1 ]`),
		Device: func() Device { return m.device }, Started: func() bool { return m.started },
		SaveStarted: func(on bool) error { m.started = on; return nil }}
	m.put("load", "loaded")
	m.put("active", "inactive")
	return m
}

func (m *machine) put(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// script makes a command that notes its call, then does what body says, in dir.
func (m *machine) script(name, body string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name+".sh")
	text := "#!/bin/sh\ncd " + m.dir + "\necho \"" + name + " $*\" >> calls\n" + body + "\n"
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// calls returns what was called since the last time, but questions.
func (m *machine) calls() []string {
	text, _ := os.ReadFile(filepath.Join(m.dir, "calls")) // none: nothing was called
	_ = os.Remove(filepath.Join(m.dir, "calls"))
	return slices.DeleteFunc(strings.Split(strings.ReplaceAll(string(text), " \n", "\n"), "\n"), func(l string) bool { return l == "" || strings.HasPrefix(l, "systemctl show") })
}

func (m *machine) want(what string, err error, fails string, calls ...string) {
	m.t.Helper()
	if (err != nil) != (fails != "") || err != nil && !strings.Contains(err.Error(), fails) {
		m.t.Errorf("%s: %v, want %q", what, err, fails)
	}
	if got := m.calls(); !slices.Equal(got, calls) {
		m.t.Errorf("%s: called %q, want %q", what, got, calls)
	}
}

func TestUnit(t *testing.T) {
	m := newMachine(t)
	s := usual()
	s.Unit, s.Attach = "crm.target", true
	l := NewStack(m.h, s)
	ctx := t.Context()
	for _, c := range []struct {
		active string
		device Device
		want   Top
	}{
		{"inactive", DeviceNone, TopStopped}, {"failed", DeviceNone, TopStopped}, {"active", DeviceLive, TopRunning}, {"activating", DeviceLive, TopRunning},
		{"deactivating", DeviceLive, TopUnknown}, {"inactive", DeviceLive, TopBroken}, {"active", DeviceNone, TopBroken}, {"active", DeviceDead, TopBroken},
	} {
		m.put("active", c.active)
		m.device = c.device
		if got := l.State(ctx); got != c.want {
			t.Errorf("%s, device %d: %v, want %v", c.active, c.device, got, c.want)
		}
	}
	m.device = DeviceNone
	m.want("start", l.Start(ctx), "", "systemctl start -- qrbd-attach@crm.service", "systemctl start -- crm.target")
	m.device = DeviceLive
	m.want("start again", l.Start(ctx), "", "systemctl start -- crm.target")
	m.want("stop", l.Stop(ctx, false), "", "systemctl stop -- crm.target", "systemctl stop -- qrbd-attach@crm.service")
	m.put("fail-stop", "")
	m.want("stop fails", l.Stop(ctx, false), "exit status 1", "systemctl stop -- crm.target")
	m.want("stop fails, by force", l.Stop(ctx, true), "exit status 1", "systemctl stop -- crm.target", "qrbd detach crm --config /etc/qrbd/qrbd.toml --force", "systemctl stop -- crm.target")
	if why := l.Unable(ctx); why != "" {
		t.Errorf("unable: %s", why)
	}
	m.put("load", "not-found")
	if why := l.Unable(ctx); !strings.Contains(why, "not-found") {
		t.Errorf("a unit that is not there: %q", why)
	}
	m.h.Systemctl = "/no/such/systemctl"
	if why := l.Unable(ctx); why == "" || l.State(ctx) == TopRunning {
		t.Error("without systemd it is able")
	}
}

func TestCommands(t *testing.T) {
	m := newMachine(t)
	s := usual()
	s.Attach, s.Method, s.Device = true, "fuse", "/dev/loop7"
	s.Start, s.Stop, s.Check = hook.Command{m.script("start", "echo made it; [ ! -e fail-start ]")}, hook.Command{m.script("stop", "[ ! -e fail-stop ]")}, hook.Command{m.script("check", "[ -e up ]")}
	l := NewStack(m.h, s)
	ctx := t.Context()
	if got := l.State(ctx); got != TopStopped {
		t.Errorf("at first %v", got)
	}
	m.calls()
	m.want("start", l.Start(ctx), "", "qrbd attach crm --config /etc/qrbd/qrbd.toml --method fuse /dev/loop7", "start")
	m.device = DeviceLive
	if got := l.State(ctx); got != TopBroken || !m.started {
		t.Errorf("started, and not up: %v", got)
	}
	m.put("up", "")
	if got := l.State(ctx); got != TopRunning {
		t.Errorf("up: %v", got)
	}
	m.calls()
	m.put("fail-start", "")
	m.want("start fails", l.Start(ctx), "made it", "start")
	m.put("fail-stop", "")
	m.want("stop fails", l.Stop(ctx, false), "exit status 1", "stop")
	if !m.started {
		t.Error("what could not be stopped counts as stopped")
	}
	if err := os.Remove(filepath.Join(m.dir, "fail-stop")); err != nil {
		t.Fatal(err)
	}
	m.want("stop", l.Stop(ctx, false), "", "stop", "qrbd detach crm --config /etc/qrbd/qrbd.toml")
	if m.started {
		t.Error("stopped, and counts as started")
	}
	if why := l.Unable(ctx); why != "" {
		t.Errorf("unable: %s", why)
	}
	if err := os.Chmod(s.Check[0], 0o600); err != nil {
		t.Fatal(err)
	}
	if why := l.Unable(ctx); !strings.Contains(why, "not executable") {
		t.Errorf("a check that is not executable: %q", why)
	}
}

// TestRuns: time limits, an agent that ends, and what is left in the background.
func TestRuns(t *testing.T) {
	dir := t.TempDir()
	r := runner{log: filepath.Join(dir, "log"), env: []string{"QRBD_VOLUME=crm"}}
	sh := func(text string) hook.Command { return hook.Command{"/bin/sh", "-c", text} }
	began := time.Now()
	if err := r.run(t.Context(), "start", 100*time.Millisecond, sh("sleep 60 & sleep 60")); err == nil || !strings.Contains(err.Error(), "was killed") || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := r.run(ctx, "start", time.Minute, sh("sleep 60")); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	began = time.Now()
	mark := filepath.Join(dir, "mark")
	if err := r.run(t.Context(), "start", time.Minute, sh("setsid sh -c 'sleep 1; echo $QRBD_VOLUME $QRBD_EVENT; touch "+mark+"' & exit 0")); err != nil || time.Since(began) > 900*time.Millisecond {
		t.Errorf("with something in the background: %v after %v", err, time.Since(began))
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(mark); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("what was put into the background has ended with the command")
		}
	}
	text, err := os.ReadFile(r.log)
	if err != nil || !strings.Contains(string(text), "crm start\n") {
		t.Errorf("%q, %v", text, err)
	}
	if err := r.run(t.Context(), "check", time.Minute, hook.Command{"/no/such"}); err == nil {
		t.Error("a program that is not there has run")
	}
	if err := os.WriteFile(r.log, make([]byte, logMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.run(t.Context(), "check", time.Minute, sh("echo new; exit 3")); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: new") {
		t.Errorf("%v", err)
	}
	if info, err := os.Stat(r.log); err != nil || info.Size() != 4 {
		t.Errorf("the file is not begun anew: %v, %v", info, err)
	}
}
