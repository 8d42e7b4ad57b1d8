package sim

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain has the collector run seldom: a run holds a few megabytes and makes
// much that is soon forgotten.
func TestMain(m *testing.M) {
	debug.SetGCPercent(1000)
	debug.SetMemoryLimit(1 << 30)
	os.Exit(m.Run())
}
