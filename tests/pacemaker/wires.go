package pacemaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// network is one of the two that join the machines.
type network uint8

const (
	replication network = iota // 10.0.0.0/24
	clients                    // 10.0.1.0/24: corosync's, and the users'
)

// address is the i-th machine's on the network, as docs/PACEMAKER.md has it.
func (n network) address(i int) string { return fmt.Sprintf("10.0.%d.%d", n, i+1) }

// Where the users come from, and what they ask for.
const (
	usersAddress   = "10.0.1.254"
	serviceAddress = "10.0.1.100"
)

// wires are the machines' network namespaces and a bridge for each network, in a
// namespace where the users are, too.
type wires struct {
	base  string // prefix of the namespaces' names; cluster.Main knows it
	names []string
}

var wiresMade atomic.Int64

func newWires(t *testing.T, names []string) *wires {
	t.Helper()
	w := &wires{base: fmt.Sprintf("qe%dnp%d", os.Getpid(), wiresMade.Add(1)), names: names}
	t.Cleanup(func() { w.close(t) })
	sw := w.netns("sw")
	script := []string{"ip netns add " + sw, "ip -n " + sw + " link set lo up"}
	for _, n := range []network{replication, clients} {
		script = append(script, fmt.Sprintf("ip -n %s link add br%d type bridge", sw, n), fmt.Sprintf("ip -n %s link set br%d up", sw, n))
	}
	script = append(script, fmt.Sprintf("ip -n %s addr add %s/24 dev br%d", sw, usersAddress, clients))
	for i, name := range names {
		ns := w.netns(name)
		script = append(script, "ip netns add "+ns, "ip -n "+ns+" link set lo up")
		for _, n := range []network{replication, clients} {
			script = append(script,
				fmt.Sprintf("ip link add eth%d netns %s type veth peer name p%d%d netns %s", n, ns, n, i, sw),
				fmt.Sprintf("ip -n %s link set p%d%d master br%d up", sw, n, i, n),
				fmt.Sprintf("ip -n %s addr add %s/24 dev eth%d", ns, n.address(i), n),
				fmt.Sprintf("ip -n %s link set eth%d up", ns, n))
		}
		script = append(script, "ip netns exec "+ns+" nft 'add table inet cut; add set inet cut from { type ipv4_addr; };"+
			"add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in ip saddr @from drop'")
	}
	if out, err := exec.Command("sh", "-ec", strings.Join(script, "\n")).CombinedOutput(); err != nil {
		t.Fatalf("network namespaces: %v\n%s", err, out)
	}
	return w
}

func (w *wires) netns(name string) string { return w.base + name }

// unplug takes a machine off both networks, plug puts it there again, with its own
// addresses alone: the namespace outlasts what a machine that died had added.
func (w *wires) unplug(i int) error { return w.link(i, "down", "") }

func (w *wires) plug(i int) error {
	script := ""
	for _, n := range []network{replication, clients} {
		script += fmt.Sprintf("ip -n %[1]s addr flush dev eth%[2]d; ip -n %[1]s addr add %[3]s/24 dev eth%[2]d\n", w.netns(w.names[i]), n, n.address(i))
	}
	return w.link(i, "up", script)
}

func (w *wires) link(i int, state, script string) error {
	for _, n := range []network{replication, clients} {
		script += fmt.Sprintf("ip -n %s link set p%d%d %s\n", w.netns("sw"), n, i, state)
	}
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("links of %s: %w: %s", w.names[i], err, out)
	}
	return nil
}

// close removes the namespaces. REQUIRES: the machines are off.
func (w *wires) close(t *testing.T) {
	for _, name := range append([]string{"sw"}, w.names...) {
		ns := w.netns(name)
		if _, err := os.Stat("/run/netns/" + ns); err != nil {
			continue
		}
		if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", ns, err, out)
		}
	}
}

// cut stops packets between two machines on the networks, both ways; users still reach
// both.
func (w *wires) cut(a, b int, networks ...network) error {
	return w.change("add", a, b, networks)
}

// heal lets them pass again. It is a no-op where nothing is cut.
func (w *wires) heal(a, b int, networks ...network) error {
	return errors.Join(w.change("add", a, b, networks), w.change("delete", a, b, networks))
}

func (w *wires) change(verb string, a, b int, networks []network) error {
	var errs []error
	for _, n := range networks {
		for _, way := range [][2]int{{a, b}, {b, a}} {
			set := fmt.Sprintf("%s element inet cut from { %s }", verb, n.address(way[0]))
			if out, err := exec.Command("ip", "netns", "exec", w.netns(w.names[way[1]]), "nft", set).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("nft %s: %w: %s", set, err, out))
			}
		}
	}
	return errors.Join(errs...)
}

// dial connects from where the users are. A connection whose other end is gone ends
// within some seconds.
func (w *wires) dial(ctx context.Context, _, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The socket belongs to the namespace of the thread that makes it. The thread is not
		// used again: it ends with this goroutine.
		runtime.LockOSThread()
		ns, err := os.Open("/run/netns/" + w.netns("sw"))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{err: fmt.Errorf("where the users are: %w", err)}
			return
		}
		d := net.Dialer{Timeout: 2 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}}
		conn, err := d.DialContext(ctx, "tcp", address)
		if tcp, ok := conn.(*net.TCPConn); ok {
			if raw, rawErr := tcp.SyscallConn(); rawErr == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2000) // without it they only wait longer
				})
			}
		}
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
