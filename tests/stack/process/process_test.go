package process

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell starts a shell script and waits until it has printed "ready".
func shell(t *testing.T, script string) *Process {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start(Options{Name: "script", Args: []string{"/bin/sh", "-c", script}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Kill(p) })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if out, _ := os.ReadFile(log); strings.Contains(string(out), "ready") {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatal("the script is not ready after 10 s")
		}
	}
}

func TestKillReachesDescendantsInOtherGroups(t *testing.T) {
	p := shell(t, "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 0.2; echo ready; wait")
	pids := Descendants(p.PID())
	if len(pids) < 3 {
		t.Fatalf("descendants %v, want the inner shell and its two sleeps", pids)
	}
	Kill(p, nil)
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("descendant %d is alive", pid)
		}
	}
	if err := p.Err(); !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "ready") {
		t.Errorf("Err() = %q, want the signal and the last words", err)
	}
	Kill(p) // of the dead: nothing to do
}

func TestStop(t *testing.T) {
	obedient := shell(t, "echo ready; exec sleep 1000")
	if err := obedient.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
		t.Error(err)
	}
	stubborn := shell(t, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	if err := stubborn.Stop(syscall.SIGTERM, 50*time.Millisecond); err == nil {
		t.Error("a process that ignores SIGTERM was stopped without a word")
	}
	if !gone(stubborn.PID()) {
		t.Error("the stubborn process is alive")
	}
}

func TestRun(t *testing.T) {
	out, err := Run(context.Background(), Options{Args: []string{"/bin/sh", "-c", "echo good"}})
	if err != nil || out != "good\n" {
		t.Errorf("Run = %q, %v", out, err)
	}
	_, err = Run(context.Background(), Options{Args: []string{"/bin/sh", "-c", "echo the cause >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "the cause") {
		t.Errorf("a failed run says %v, want its output", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err = Run(ctx, Options{Args: []string{"/bin/sleep", "1000"}}); err == nil {
		t.Error("a run outlived its context")
	}
}
