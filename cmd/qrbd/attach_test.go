package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/volume"
)

func TestAttachCommands(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{status: control.NodeStatus{Node: "alpha", Volumes: []volume.Status{
		{Name: "crm", Role: "secondary", Peers: []volume.PeerStatus{{Name: "beta", Role: "primary"}}},
		{Name: "web", Role: "secondary"}}}}
	check := func(line string, code int, parts ...string) {
		t.Helper()
		got, out, errs := b.run(line + " --config {config}")
		if got != code {
			t.Errorf("%s: code %d, %s%s", line, got, out, errs)
		}
		for _, part := range parts {
			if !strings.Contains(out+errs, part) {
				t.Errorf("%s: %q is not in\n%s%s", line, part, out, errs)
			}
		}
	}
	check("attach crm", 1, "the agent is not running")
	b.agent(node)
	check("attach crm", 1, "secondary here", "its primary is beta", "qrbd switchover crm --to alpha there")
	check("attach web", 1, "secondary here", "qrbd promote web --attach")
	check("attach erp", 1, `no volume "erp"`)
	check("attach", 2, "argument is missing")
	check("detach crm", 1, "volume crm is not attached")
	check("detach /dev/loop77", 1, "/dev/loop77 is no device of an attached volume")
	check("attached", 0)
	check("attached --json", 0, "[]")
	check("help attach", 0, "--method", "nbd", "fuse")
	if _, out, _ := b.run("--help"); strings.Contains(out, helperName) {
		t.Error("the helper's command is shown")
	}

	// What an earlier start of the host has left.
	cfg, err := config.Load(filepath.Join(b.dir, "qrbd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	record := attach.Record{Volume: "crm", Method: attach.MethodFUSE, Device: "/dev/loop77", Link: filepath.Join(b.dir, "dev/crm"), Boot: "another"}
	if err := attach.WriteJSON(filepath.Join(attach.Dir(cfg.Node.State), "crm.json"), record); err != nil {
		t.Fatal(err)
	}
	check("attached", 0, "VOLUME", "/dev/loop77", "fuse", "gone", "not in use")
	check("attached --json", 0, `"state":"gone"`, `"mounts":[]`)
	if os.Geteuid() == 0 {
		check("detach /dev/loop77", 0, "volume crm is detached")
		check("attached --json", 0, "[]")
	}
}
