package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	drbdPort = 7800
	// ramdiskKiB holds a volume and DRBD's metadata behind it.
	ramdiskKiB = volumeBytes>>10 + 4096
)

// drbdModules are what a machine needs for DRBD on a ramdisk for each column.
func (p *plan) drbdModules() []string {
	return []string{fmt.Sprintf("brd rd_nr=%d rd_size=%d", len(columnKinds), ramdiskKiB), fmt.Sprintf("drbd minor_count=%d", len(columnKinds))}
}

// minor is a column's place.
func (k columnKind) minor() int {
	return slices.IndexFunc(columnKinds, func(o columnKind) bool { return o.name == k.name })
}

// device is a column's DRBD device.
func (k columnKind) device() string { return fmt.Sprintf("/dev/drbd%d", k.minor()) }

// resource is a column's DRBD configuration. Everything that decides its speed is DRBD's default; the time limits are longer, so that a loss at
// the worst moment does not part the two.
func (k columnKind) resource() string {
	protocol, net := "C", plainNet
	if k.async {
		protocol = "A"
	}
	if k.bbr {
		net = bbrNet
	}
	var b strings.Builder
	fmt.Fprintf(&b, "resource r%d {\n\tnet { protocol %s; timeout 300; ping-timeout 100; connect-int 3; }\n\tdevice %s minor %d;\n\tdisk /dev/ram%d;\n\tmeta-disk internal;\n",
		k.minor(), protocol, k.device(), k.minor(), k.minor())
	for i, name := range []string{"alpha", "beta"} {
		fmt.Fprintf(&b, "\ton %s { address %s%d:%d; }\n", name, net, i+1, drbdPort+k.minor())
	}
	b.WriteString("}\n")
	return b.String()
}

// startDRBD brings a column's device up in this machine.
func (p *plan) startDRBD(k columnKind) error {
	path := filepath.Join(guestDir, fmt.Sprintf("r%d.res", k.minor()))
	text := "global { usage-count no; }\n" + k.resource()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	resource := fmt.Sprintf("r%d", k.minor())
	return runAll(
		[]string{"drbdadm", "-c", path, "--", "--force", "create-md", resource},
		[]string{"drbdadm", "-c", path, "up", resource},
	)
}

// promoteDRBD makes alpha primary of two ramdisks that are equal, being empty.
func (p *plan) promoteDRBD(ctx context.Context, k columnKind) error {
	path := filepath.Join(guestDir, fmt.Sprintf("r%d.res", k.minor()))
	resource := fmt.Sprintf("r%d", k.minor())
	if err := untilDone(ctx, func() error { return k.drbdState("cs:Connected") }); err != nil {
		return err
	}
	if err := runAll(
		[]string{"drbdadm", "-c", path, "--", "--clear-bitmap", "new-current-uuid", resource},
		[]string{"drbdadm", "-c", path, "primary", resource},
	); err != nil {
		return err
	}
	return untilDone(ctx, k.drbdReplicating)
}

// drbdReplicating returns an error unless a column's device has its peer, in sync.
func (k columnKind) drbdReplicating() error {
	return k.drbdState("cs:Connected", "ro:Primary/Secondary", "ds:UpToDate/UpToDate")
}

// drbdState returns an error unless /proc/drbd says all of want of a column's device.
func (k columnKind) drbdState(want ...string) error {
	text, err := os.ReadFile("/proc/drbd")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(strings.TrimSpace(line), fmt.Sprintf("%d: ", k.minor())) {
			continue
		}
		for _, w := range want {
			if !strings.Contains(line, w) {
				return fmt.Errorf("%s: %q lacks %s", k.name, strings.TrimSpace(line), w)
			}
		}
		return nil
	}
	return fmt.Errorf("%s: not in /proc/drbd", k.name)
}
