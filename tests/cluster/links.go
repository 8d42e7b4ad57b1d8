package cluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// links are nodes in network namespaces of their own, joined by a bridge in one
// more. Interfaces live inside, so removing the namespaces removes everything.
type links struct {
	t     testing.TB
	base  string // prefix of this cluster's namespaces: qe<pid>n<number>
	nodes []string
}

var linksMade atomic.Int64

// newLinks makes the namespaces, or skips the test and says what is missing.
func newLinks(t testing.TB, nodes []string) *links {
	t.Helper()
	for _, tool := range []string{"ip", "nft", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: needs %q to cut links between network namespaces", tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root to make network namespaces")
	}
	l := &links{t: t, base: fmt.Sprintf("qe%dn%d", os.Getpid(), linksMade.Add(1)), nodes: nodes}
	sw := l.base + "sw"
	if err := run("ip", "netns", "add", sw); err != nil {
		t.Skipf("skipped: no network namespaces here: %v", err)
	}
	t.Cleanup(l.close) // also when what follows fails
	must := func(args ...string) {
		t.Helper()
		if err := run(args...); err != nil {
			t.Fatal(err)
		}
	}
	must("ip", "-n", sw, "link", "add", "br0", "type", "bridge")
	must("ip", "-n", sw, "link", "set", "br0", "up")
	for i, name := range nodes {
		ns, port := l.base+name, fmt.Sprintf("p%d", i)
		must("ip", "netns", "add", ns)
		must("ip", "link", "add", "e0", "netns", ns, "type", "veth", "peer", "name", port, "netns", sw)
		must("ip", "-n", sw, "link", "set", port, "master", "br0", "up")
		must("ip", "-n", ns, "addr", "add", l.ip(i)+"/24", "dev", "e0")
		must("ip", "-n", ns, "link", "set", "e0", "up")
		must("ip", "-n", ns, "link", "set", "lo", "up")
		must("ip", "netns", "exec", ns, "nft", "add table inet cut; add set inet cut from { type ipv4_addr; };"+
			"add chain inet cut in { type filter hook input priority 0; };"+
			"add rule inet cut in ip saddr @from drop")
	}
	return l
}

// ip returns the i-th node's address, which only exists inside the namespaces.
func (l *links) ip(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

// prefix returns the command that runs another one on the node. Mounts are not its own,
// as they would be with ip netns exec: what a node's agent has mounted is there for the
// next agent, and no copy of it keeps a device busy.
func (l *links) prefix(node string) []string {
	return []string{"nsenter", "--net=/run/netns/" + l.base + node, "--"}
}

// pids returns the processes in the node's namespace.
func (l *links) pids(node string) ([]int, error) {
	out, err := exec.Command("ip", "netns", "pids", l.base+node).Output()
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", node, err)
	}
	var pids []int
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("processes of %s: %w", node, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (l *links) index(node string) int {
	for i, n := range l.nodes {
		if n == node {
			return i
		}
	}
	panic("no node " + node)
}

func (l *links) element(t testing.TB, verb, from, to string) {
	t.Helper()
	set := fmt.Sprintf("%s element inet cut from { %s }", verb, l.ip(l.index(from)))
	if err := run("ip", "netns", "exec", l.base+to, "nft", set); err != nil {
		t.Fatal(err)
	}
}

func (l *links) block(t testing.TB, from, to string) { t.Helper(); l.element(t, "add", from, to) }

// unblock is a no-op on an open way: adding first makes the deletion succeed.
func (l *links) unblock(t testing.TB, from, to string) {
	t.Helper()
	l.element(t, "add", from, to)
	l.element(t, "delete", from, to)
}

// close removes the namespaces. Agents in them have ended.
func (l *links) close() {
	for _, n := range append([]string{"sw"}, l.nodes...) {
		if _, err := os.Stat("/run/netns/" + l.base + n); err != nil {
			continue
		}
		if err := run("ip", "netns", "del", l.base+n); err != nil {
			l.t.Error(err)
		}
	}
}

func run(args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return nil
}
