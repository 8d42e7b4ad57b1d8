package uml

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestAttach runs the tests of attached volumes, which go by way of FUSE on this host,
// on a kernel's own NBD client. QRBD_UML=all runs all of them, which takes minutes;
// QRBD_UML=REGEXP those; QRBD_ATTACH_KILLS says how often the agent is killed.
func TestAttach(t *testing.T) {
	need(t, "nbd", "dm-mod")
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	m := &Machine{
		Name: "attach", Memory: "3G", Dir: t.TempDir(),
		Modules: []string{"nbd nbds_max=16 max_part=8", "dm-mod"},
		Env:     []string{"QRBD_ATTACH_METHOD=nbd", "QRBD_ATTACH_KILLS=" + cmp.Or(os.Getenv("QRBD_ATTACH_KILLS"), "1")},
	}
	m.Env = append(m.Env, cluster.PrebuiltEnv+"="+m.Dir)
	build := func(out, pkg string, flags ...string) {
		t.Helper()
		cmd := exec.Command("go", append(flags, "-o", filepath.Join(m.Dir, out), "github.com/qrbd/qrbd/"+pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, text)
		}
	}
	build("qrbd", "cmd/qrbd", "build")
	build("qrbd-another-build", "cmd/qrbd", "build", "-ldflags", "-X main.version=another-build")
	build("storeagent", "tests/e2e/storeagent", "build")
	build("attach.test", "tests/attach", "test", "-c")

	which, wants := "TestKilledUnderFileSystem/ext4|TestGrow", []string{"TestKilledUnderFileSystem/ext4", "TestGrow"}
	switch asked := os.Getenv("QRBD_UML"); asked {
	case "":
	case "all":
		which = ""
		wants = append(wants, "TestAttach", "TestKilledUnderFileSystem/xfs", "TestDevice/built_on/LVM", "TestPeerAway", "TestFlushReachesBothDisks")
	default:
		which, wants = asked, nil
	}
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("QRBD_ATTACH_KILLS"), "1"))
	if err != nil {
		t.Fatalf("QRBD_ATTACH_KILLS: %v", err)
	}
	// After a kill the kernel sends again what was under way when its own time, 30 s, is over.
	limit := 8*time.Minute + time.Duration(kills)*time.Minute
	m.Command = []string{filepath.Join(m.Dir, "attach.test"), "-test.v", "-test.run", which, "-test.parallel", "1", "-test.timeout", limit.String()}
	var out bytes.Buffer
	code, err := m.Run(within(t, limit+30*time.Second), &out)
	text := strings.ReplaceAll(out.String(), "\r", "")
	if code != 0 || err != nil {
		t.Fatalf("exit %d, %v\n%s", code, err, text)
	}
	for _, want := range wants {
		if !strings.Contains(text, "--- PASS: "+want+" ") {
			t.Errorf("%s did not pass", want)
		}
	}
	t.Log(text)
}
