package linear

import (
	"os"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }
