package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	guestDir = "/run/qrbd"
	// agentPort is the first agent's; the others follow.
	agentPort    = 7790
	upTimeout    = 60 * time.Second
	statusPoll   = 100 * time.Millisecond
	asyncVolume  = "a"
	commonVolume = "c"
)

// agent names the agent that serves a column, and its directory.
func (k columnKind) agent() string {
	if k.bbr {
		return k.transport + "-bbr"
	}
	return k.transport
}

// volume names the volume of a column.
func (k columnKind) volume() string {
	if k.async {
		return asyncVolume
	}
	return commonVolume
}

// socket is the export of a column in its machine.
func (k columnKind) socket() string {
	return filepath.Join(guestDir, k.agent(), k.volume()+".sock")
}

// control is the control socket of a column's agent.
func (k columnKind) control() string { return filepath.Join(guestDir, k.agent(), "control.sock") }

// config is where the host leaves a node's configuration for a column's agent.
func (p *plan) config(k columnKind, node string) string {
	return filepath.Join(p.Shared, k.agent()+"-"+node+".toml")
}

// configure makes, on the host, identities and configurations of a column's agents, index being its place among them.
func (p *plan) configure(k columnKind, index int) error {
	names := []string{"alpha", "beta"}
	stanzas := make([]string, len(names))
	state := func(node string) string { return filepath.Join(p.Shared, k.agent()+"-"+node) }
	for i, name := range names {
		listen := fmt.Sprintf("%s%d:%d", plainNet, i+1, agentPort+index)
		out, err := exec.Command(p.Qrbd, "init", "--name", name, "--listen", listen, "--state", state(name),
			"--control", k.control(), "--config", p.config(k, name), "--json").Output()
		if err != nil {
			return fmt.Errorf("qrbd init: %w", err)
		}
		var made struct{ Stanza string }
		if err := json.Unmarshal(out, &made); err != nil {
			return fmt.Errorf("qrbd init: %w", err)
		}
		stanzas[i] = fmt.Sprintf("%s\ntransport = %q\n", strings.TrimSpace(made.Stanza), k.transport)
		if k.bbr {
			stanzas[i] += "congestion = \"bbr\"\n"
		}
	}
	for i, name := range names {
		text, err := os.ReadFile(p.config(k, name))
		if err != nil {
			return err
		}
		own := filepath.Join(guestDir, k.agent())
		all := strings.ReplaceAll(string(text), state(name), filepath.Join(own, "state")) + "\n" + stanzas[1-i]
		for _, v := range []struct{ name, protocol string }{{commonVolume, "C"}, {asyncVolume, "A"}} {
			all += fmt.Sprintf("\n[[volume]]\nname = %q\nsize = \"%dB\"\nbacking = %q\nexport = %q\nprotocol = %q\n",
				v.name, volumeBytes, filepath.Join(own, v.name+".img"), "unix:"+filepath.Join(own, v.name+".sock"), v.protocol)
		}
		if err := os.WriteFile(p.config(k, name), []byte(all), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// command runs a qrbd command with a column's agent.
func (p *plan) command(k columnKind, node string, args ...string) ([]byte, error) {
	cmd := exec.Command(p.Qrbd, append(args, "--config", p.config(k, node))...)
	out, err := cmd.Output()
	if err != nil {
		said := ""
		if e, ok := err.(*exec.ExitError); ok {
			said = strings.TrimSpace(string(e.Stderr))
		}
		return out, fmt.Errorf("qrbd %s of %s: %w: %s", strings.Join(args, " "), k.agent(), err, said)
	}
	return out, nil
}

// startAgent starts a column's agent in the machine of that node. It ends with the machine.
func (p *plan) startAgent(k columnKind, node string) error {
	own := filepath.Join(guestDir, k.agent())
	if err := os.CopyFS(filepath.Join(own, "state"), os.DirFS(filepath.Join(p.Shared, k.agent()+"-"+node))); err != nil {
		return err
	}
	if err := run("chmod", "-R", "go=", own); err != nil { // CopyFS opens what it copies to all
		return err
	}
	for _, v := range []string{commonVolume, asyncVolume} {
		if _, err := p.command(k, node, "create", v); err != nil {
			return err
		}
	}
	log, err := os.Create(filepath.Join(p.Shared, k.agent()+"-"+node+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Qrbd, "agent", "--config", p.config(k, node))
	cmd.Stdout, cmd.Stderr = log, log
	return cmd.Start()
}

// promote makes alpha primary of a column's volume, which is new, and waits until the pair replicates.
func (p *plan) promote(ctx context.Context, k columnKind) error {
	if err := untilDone(ctx, func() error {
		_, err := p.command(k, "alpha", "promote", k.volume(), "--force")
		return err
	}); err != nil {
		return err
	}
	return untilDone(ctx, func() error { return p.replicating(k) })
}

// untilDone repeats f until it succeeds, for upTimeout.
func untilDone(ctx context.Context, f func() error) error {
	for deadline := time.Now().Add(upTimeout); ; time.Sleep(statusPoll) {
		err := f()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// replicating returns an error unless a column's volume has its peer, in sync.
func (p *plan) replicating(k columnKind) error {
	out, err := p.command(k, "alpha", "status", k.volume(), "--json")
	if err != nil {
		return err
	}
	var report struct {
		Volumes []struct {
			Disk  string
			Peers []struct {
				Connection, Replication, Disk, Protocol string
				OutOfSync                               int64 `json:"out_of_sync"`
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Volumes) != 1 || len(report.Volumes[0].Peers) != 1 {
		return fmt.Errorf("status of %s: %v %s", k.name, err, out)
	}
	q := report.Volumes[0].Peers[0]
	want := "C"
	if k.async {
		want = "A"
	}
	if q.Connection != "connected" || q.Replication != "established" || q.Disk != "up-to-date" || q.OutOfSync != 0 || q.Protocol != want {
		return fmt.Errorf("%s does not replicate: %+v", k.name, q)
	}
	return nil
}
