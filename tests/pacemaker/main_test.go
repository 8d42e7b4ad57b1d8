package pacemaker

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

func TestMain(m *testing.M) {
	sweep()
	os.Exit(cluster.Main(m))
}

// sweep takes away the loop devices of test processes that were killed; cluster.Main does
// so with the rest.
func sweep() {
	tops, err := filepath.Glob("/dev/shm/qrbd-e2e-*-*/*")
	if err != nil {
		return
	}
	for _, top := range tops {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(filepath.Dir(top)), "qrbd-e2e-%d-", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !os.IsNotExist(err) {
			continue
		}
		if err := loseDevices(top); err != nil {
			fmt.Fprintln(os.Stderr, "left by a killed test:", err)
		}
	}
}

// allEnv has every fault tried on every kind of cluster.
const allEnv = "QRBD_PACEMAKER"

func all() bool { return os.Getenv(allEnv) == "all" }
