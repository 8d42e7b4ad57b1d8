package pacemaker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// allEnv has more tried than by default: all, or the faults that have one of the words in
// their names, "cut,pause".
const allEnv = "QRBD_PACEMAKER"

// wanted reports whether a fault is to be tried.
func wanted(name string) bool {
	for word := range strings.SplitSeq(os.Getenv(allEnv), ",") {
		if word == "all" || word != "" && strings.Contains(name, word) {
			return true
		}
	}
	return false
}
