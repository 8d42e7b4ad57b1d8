package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestAgentProcess: the agent starts itself again with a setting of the runtime that
// keeps writes short; to the host it is one process all the same, by pid and name, and
// what the administrator set for the runtime is kept.
func TestAgentProcess(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=0")
	c := cluster.New(t, cluster.Options{})
	alpha := c.Nodes[0]
	alpha.Start()
	read := func(file string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", alpha.Pid(), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(bytes.TrimSpace(b))
	}
	if name := read("comm"); name != "qrbd" {
		t.Errorf("the agent's process is called %q", name)
	}
	settings := ""
	for _, v := range strings.Split(read("environ"), "\x00") {
		if s, ok := strings.CutPrefix(v, "GODEBUG="); ok {
			settings = s
		}
	}
	if settings != "panicnil=0,schedtrace=2147483647" {
		t.Errorf("the agent runs with GODEBUG=%q", settings)
	}
	if args := strings.Split(read("cmdline"), "\x00"); len(args) < 2 || args[1] != "agent" {
		t.Errorf("the agent's command line is %q", args)
	}
}
