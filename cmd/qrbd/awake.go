package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/qrbd/qrbd/attach"
)

// tracing is the GODEBUG setting that keeps the runtime's monitor thread out of its
// deep sleep, and lasts as long as it can: every 24.8 days of the host's uptime the
// runtime prints one line that begins with SCHED to stderr.
var tracing = fmt.Sprintf("schedtrace=%d", math.MaxInt32)

// keepMonitorAwake starts this process again, under the same pid, with a setting of
// the Go runtime that can be given at the start only.
//
// A thread of the runtime looks after the others. It sleeps deeply when all of
// them have nothing to do, and the first system call after that wakes it: for an
// agent with one request in flight that is twice per write on the primary and once on
// the secondary, each with two context switches on the CPUs that the request needs.
// With the setting it looks by itself, 100 times a second at rest. Measured on two
// CPUs, 4 KiB writes one at a time: 88 instead of 123 us, with a flush each 186
// instead of 255 us, and two thirds of the CPU time.
//
// GODEBUG of the environment that says something about schedtrace goes first.
func keepMonitorAwake(args []string) {
	set := os.Getenv("GODEBUG")
	if !slices.Contains(args[min(1, len(args)):], "agent") {
		return
	}
	if strings.Contains(set, "schedtrace=") {
		// Here again. What the agent starts need not know of it.
		forget(set)
		return
	}
	settings := tracing
	if set != "" {
		settings = set + "," + tracing
	}
	env := append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GODEBUG=") }), "GODEBUG="+settings)
	// It works without, only slower: an error is no reason to stop. By its path: the
	// process keeps its name.
	if path, err := os.Executable(); err == nil {
		// On the way: an agent below a mounted file system must not wait for that to be
		// written. Who may not become a flusher works without.
		_ = attach.BecomeFlusher()
		_ = syscall.Exec(path, args, env)
	}
}

// forget takes this program's own setting out of the environment.
func forget(set string) {
	rest := slices.DeleteFunc(strings.Split(set, ","), func(s string) bool { return s == tracing })
	if len(rest) == 0 {
		os.Unsetenv("GODEBUG")
		return
	}
	os.Setenv("GODEBUG", strings.Join(rest, ","))
}
