package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// volumeName is the volume of the whole story.
const volumeName = "crm"

// node is one of the two machines: a directory with everything it owns, and an
// agent that runs or is dead.
type node struct {
	name  string
	dir   string
	qrbd  string // the binary
	agent *process.Process
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }
func (n *node) config() string          { return n.path("qrbd.toml") }
func (n *node) backing() string         { return n.path(volumeName + ".img") }
func (n *node) socket() string          { return n.path(volumeName + ".sock") }

// newPair makes the nodes alpha and beta below dir, each with an identity and a
// configuration that knows the other, as an administrator would: init on both,
// and each one's stanza in the other's file.
func newPair(ctx context.Context, dir, qrbd string, sizeMiB int64) (alpha, beta *node, err error) {
	nodes := make([]*node, 2)
	stanzas := make([]string, 2)
	for i, name := range []string{"alpha", "beta"} {
		n := &node{name: name, dir: filepath.Join(dir, name), qrbd: qrbd}
		if err := os.Mkdir(n.dir, 0o755); err != nil {
			return nil, nil, fmt.Errorf("directory of %s: %w", name, err)
		}
		port, err := freePort()
		if err != nil {
			return nil, nil, err
		}
		out, err := n.run(ctx, "init", "--name", name, "--listen", fmt.Sprintf("127.0.0.1:%d", port),
			"--state", n.path("state"), "--control", n.path("control.sock"), "--json")
		if err != nil {
			return nil, nil, err
		}
		var made struct{ Stanza string }
		if err := json.Unmarshal([]byte(out), &made); err != nil || made.Stanza == "" {
			return nil, nil, fmt.Errorf("init of %s printed %q: no stanza (%v)", name, out, err)
		}
		if err := n.setDevices(); err != nil {
			return nil, nil, err
		}
		nodes[i], stanzas[i] = n, made.Stanza
	}
	for i, n := range nodes {
		if err := n.configure(stanzas[1-i], sizeMiB); err != nil {
			return nil, nil, err
		}
	}
	return nodes[0], nodes[1], nil
}

// configure adds the peer and the volume to the configuration.
func (n *node) configure(peer string, sizeMiB int64) error {
	f, err := os.OpenFile(n.config(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", n.name, err)
	}
	_, err = fmt.Fprintf(f, "\n%s\n[[volume]]\nname     = %q\nsize     = \"%dMiB\"\nbacking  = %q\nexport   = %q\nprotocol = \"C\"\n",
		peer, volumeName, sizeMiB, n.backing(), "unix:"+n.socket())
	return errors.Join(err, f.Close())
}

// freePort returns a UDP port of the loopback that is free now.
func freePort() (int, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port, nil
}

// commandTimeout bounds every command; the longest waits for a sync.
const commandTimeout = 60 * time.Second

// run runs a qrbd command on this node and returns its stdout. An error carries
// stderr.
func (n *node) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.qrbd, append(args, "--config", n.config())...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: qrbd %s: %w: %s", n.name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// start starts the agent and waits until it answers.
func (n *node) start(ctx context.Context) error {
	p, err := process.Start(process.Options{
		Name: "agent of " + n.name, Args: []string{n.qrbd, "agent", "--config", n.config()}, Log: n.path("agent.log"),
	})
	if err != nil {
		return err
	}
	n.agent = p
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := n.status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Ended():
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s does not answer: %w", n.name, err)
		}
	}
}

// stop ends the agent in order.
func (n *node) stop() error { return n.agent.Stop(syscall.SIGTERM, 30*time.Second) }

// status is what the demo reads of `qrbd status --json`.
type status struct {
	Peers []struct {
		Disk      string `json:"disk"`
		OutOfSync int64  `json:"out_of_sync"` // bytes
		SyncSent  int64  `json:"sync_sent"`   // bytes, in the last sync
	} `json:"peers"`
}

func (n *node) status(ctx context.Context) (status, error) {
	out, err := n.run(ctx, "status", volumeName, "--json")
	if err != nil {
		return status{}, err
	}
	var all struct{ Volumes []status }
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Volumes) != 1 || len(all.Volumes[0].Peers) != 1 {
		return status{}, fmt.Errorf("%s: status printed %q: want one volume with one peer (%v)", n.name, out, err)
	}
	return all.Volumes[0], nil
}

// promote makes the volume primary here. It is tried again while it is refused:
// the survivor takes some seconds to notice that its peer is silent.
func (n *node) promote(ctx context.Context, flag string) (refusals int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := n.run(ctx, "promote", volumeName, flag)
		if err == nil {
			return refusals, nil
		}
		refusals++
		select {
		case <-tick.C:
		case <-ctx.Done():
			return refusals, err
		}
	}
}

// wait waits for a state of the volume.
func (n *node) wait(ctx context.Context, state string) error {
	_, err := n.run(ctx, "wait", volumeName, "--for", state, "--timeout", "50s")
	return err
}

// event is what the demo reads of a line of `qrbd events --json`.
type event struct{ Event, Field, New string }

// events returns the state changes since the agent's start.
func (n *node) events(ctx context.Context) ([]event, error) {
	out, err := n.run(ctx, "events", "--json", "--once")
	if err != nil {
		return nil, err
	}
	var all []event
	for line := range strings.Lines(out) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("%s: event %q: %w", n.name, line, err)
		}
		if e.Event == "change" {
			all = append(all, e)
		}
	}
	return all, nil
}
