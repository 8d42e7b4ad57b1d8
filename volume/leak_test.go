package volume

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a volume leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
