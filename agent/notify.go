package agent

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
)

// Notify tells systemd the node's state (READY=1, STOPPING=1, or "" for none)
// and a line about its volumes. Without systemd it does nothing.
func Notify(state string, s control.NodeStatus) {
	text := "STATUS=" + summary(s)
	if state != "" {
		text = state + "\n" + text
	}
	// An error means that systemd is not there to be told.
	_, _ = daemon.SdNotify(false, text)
}

// summary is one line such as "2 volumes: crm primary, up-to-date; web …".
func summary(s control.NodeStatus) string {
	if len(s.Volumes) == 0 {
		return "no volume is configured"
	}
	parts := make([]string, len(s.Volumes))
	for i, v := range s.Volumes {
		parts[i] = fmt.Sprintf("%s %s, %s", v.Name, v.Role, v.Disk)
	}
	return count(len(s.Volumes), "volume") + ": " + strings.Join(parts, "; ")
}

// LimitMemory makes the collector keep the process near what it needs: a soft
// limit of the buffer pools, twice the bitmaps and room for the rest. GOGC and
// GOMEMLIMIT in the environment go first.
func LimitMemory(c *config.Config) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	limitMemory(c)
}

func limitMemory(c *config.Config) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(c))
	}
}

// LimitThreads leaves half of the CPUs to the database above: every wake-up of
// another thread costs more than what it would do in parallel. On two CPUs a
// replicated 4 KiB write takes half the context switches and four fifths of the CPU
// time with one thread running Go code than with two; blocking system calls have
// threads of their own in either case. GOMAXPROCS in the environment goes first.
func LimitThreads() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}

const (
	baseBytes = 128 << 20
	// A bitmap has one bit for each 4 KiB: 1/32768 of the volume.
	bitmapShare = 32768
)

func memoryLimit(c *config.Config) int64 {
	limit := int64(baseBytes)
	for _, v := range c.Volumes {
		bitmaps := v.Size / bitmapShare * int64(len(v.Peers))
		if limit > math.MaxInt64/4 || bitmaps > math.MaxInt64/4 {
			return math.MaxInt64
		}
		limit += 2 * bitmaps
	}
	return limit
}
