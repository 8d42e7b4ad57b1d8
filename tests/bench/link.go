package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	linkBits   = 1_000_000_000 // per second, of the link of a resync
	linkVolume = 512 << 20     // bytes: 4 GiB would take most of a minute, twice
)

// errNoLink says why a link of a known rate cannot be made here.
var errNoLink = errors.New("a link of a known rate needs root (network namespaces) and tc (apt install iproute2)")

// overLink runs f where the loopback is a link of so many bits per second: in a network namespace of
// its own, which ends with f's processes. What f starts, and the sockets it opens itself,
// are there as long as f does both in its own goroutine.
//
// Source: the namespace is the thread's, and a child has that of the thread that
// started it (network_namespaces(7), clone(2)).
func overLink(ctx context.Context, bits int64, f func() error) error {
	ended := make(chan error, 1)
	go func() { // ends with f
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ended <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("%w: %w", errNoLink, err)
			}
			for _, argv := range [][]string{
				{"ip", "link", "set", "lo", "up"},
				{"tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "tbf", "rate", fmt.Sprintf("%dbit", bits), "burst", "512k", "latency", "20ms"},
				// The queue that a network card has, by default, where there is no fair one.
				{"tc", "qdisc", "add", "dev", "lo", "parent", "1:1", "handle", "10:", "pfifo_fast"},
			} {
				if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %v: %w: %s", errNoLink, argv, err, lastLine(out))
				}
			}
			return f()
		}()
	}()
	return <-ended
}

// canLink reports whether overLink can work here.
func canLink() bool {
	_, err := exec.LookPath("tc")
	return err == nil && os.Geteuid() == 0
}
