package main

import (
	"fmt"
	"os/exec"
	"strings"
)

const (
	cableDevice = "vec0"
	hostDevice  = "eth0" // this machine's network: one end of a pair
	cardDevice  = "card" // the other, joined with the cable
	// queuePackets is more than any window here: netem is to drop what it is told to, and nothing else.
	queuePackets = 200_000

	// A second network on the same cable, toward which the kernel's TCP uses BBR: what cannot be told which to use (DRBD) goes there.
	plainNet = "10.9.0."
	bbrNet   = "10.9.1."
)

// linkModules are what a machine needs for its end of the link.
var linkModules = []string{"veth", "sch_ingress", "sch_netem", "cls_matchall", "act_mirred", "tcp_bbr"}

// run runs a program and returns an error with what it said.
func run(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runAll runs programs in order until one fails.
func runAll(list ...[]string) error {
	for _, argv := range list {
		if err := run(argv...); err != nil {
			return err
		}
	}
	return nil
}

// layLink prepares this machine's end; number is 1 for alpha and 2 for beta. The pair is there because the cable's device has no checksum offload,
// without which Linux cuts up no UDP: every packet of QUIC would be a system call of its own.
func layLink(number int) error {
	plain, bbr, other := fmt.Sprintf("%s%d", plainNet, number), fmt.Sprintf("%s%d", bbrNet, number), fmt.Sprintf("%s%d/32", bbrNet, 3-number)
	join := func(from, to string) [][]string {
		return [][]string{
			{"tc", "qdisc", "add", "dev", from, "ingress"},
			{"tc", "filter", "add", "dev", from, "parent", "ffff:", "protocol", "all", "matchall", "action", "mirred", "egress", "redirect", "dev", to},
		}
	}
	steps := [][]string{
		{"ip", "link", "add", hostDevice, "type", "veth", "peer", "name", cardDevice},
		{"ip", "addr", "flush", "dev", cableDevice},
		{"ethtool", "-K", cableDevice, "gro", "off"},
		{"ip", "link", "set", cardDevice, "txqueuelen", "100000", "up"},
		{"ip", "link", "set", hostDevice, "txqueuelen", "10000", "up"},
		{"tc", "qdisc", "add", "dev", cardDevice, "root", "netem", "limit", fmt.Sprint(queuePackets)},
		{"ip", "addr", "add", plain + "/24", "dev", hostDevice},
		{"ip", "addr", "add", bbr + "/24", "dev", hostDevice},
		{"ip", "route", "add", other, "dev", hostDevice, "src", bbr, "congctl", "bbr"},
	}
	steps = append(steps, join(cableDevice, cardDevice)...)
	return runAll(append(steps, join(cardDevice, cableDevice)...)...)
}

// setLink makes this end's part of a condition: half of the round trip, all of the loss.
func setLink(c condition) error {
	return run("tc", "qdisc", "replace", "dev", cardDevice, "root", "netem", "limit", fmt.Sprint(queuePackets),
		"delay", fmt.Sprintf("%gms", c.RTTms/2), "loss", fmt.Sprintf("%g%%", c.LossPct))
}
