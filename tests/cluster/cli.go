package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Run runs the command line of this node and returns what it printed and its
// exit code, -1 if it had to be killed after Timeout.
func (n *Node) Run(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	return n.RunFor(Timeout, args...)
}

// RunFor is Run with another limit.
func (n *Node) RunFor(limit time.Duration, args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, cancel := n.c.within(limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(n.t, Qrbd.pkg), append(args, "--config", n.ConfigPath)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Dir = n.Dir
	cmd.Env = append(os.Environ(), n.Env...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("%s: %v: %v", n.Name, args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// There runs a program of the host on the node's side of the links; {qrbd} and
// {config} stand for this node's.
func (n *Node) There(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, cancel := n.c.within(Timeout)
	defer cancel()
	argv := slices.Clone(args)
	for i := range argv {
		argv[i] = strings.NewReplacer("{qrbd}", binary(n.t, Qrbd.pkg), "{config}", n.ConfigPath).Replace(argv[i])
	}
	if n.c.links != nil {
		argv = append(n.c.links.prefix(n.Name), argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Dir = n.Dir
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("%s: %v: %v", n.Name, args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Must runs a command that has to succeed and returns its standard output.
func (n *Node) Must(args ...string) string {
	n.t.Helper()
	return n.MustFor(Timeout, args...)
}

// MustFor is Must with another limit.
func (n *Node) MustFor(limit time.Duration, args ...string) string {
	n.t.Helper()
	stdout, stderr, code := n.RunFor(limit, args...)
	if code != 0 {
		n.t.Fatalf("%s: qrbd %s: exit code %d\n%s%s", n.Name, strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// MustWith is Must with another configuration file.
func (n *Node) MustWith(configPath string, args ...string) string {
	n.t.Helper()
	defer func(old string) { n.ConfigPath = old }(n.ConfigPath)
	n.ConfigPath = configPath
	return n.Must(args...)
}

// Refused runs a command that has to be refused: exit code 1 and one line on
// standard error that contains every one of the given words, in any case. It
// returns that line.
func (n *Node) Refused(words []string, args ...string) string {
	n.t.Helper()
	_, stderr, code := n.Run(args...)
	text := strings.TrimSpace(stderr)
	what := fmt.Sprintf("%s: qrbd %s: exit code %d, %q", n.Name, strings.Join(args, " "), code, text)
	if code != 1 {
		n.t.Fatalf("%s: want a refusal with exit code 1", what)
	}
	if text == "" || strings.Contains(text, "\n") {
		n.t.Errorf("%s: want one line on standard error", what)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			n.t.Errorf("%s: want the word %q in it", what, w)
		}
	}
	return text
}

// try runs a command and returns all that it printed.
func (n *Node) try(args ...string) string {
	stdout, stderr, code := n.RunFor(5*time.Second, args...)
	return fmt.Sprintf("%s%s(exit code %d)", stdout, stderr, code)
}

// Volume is the part of `qrbd status --json` that tests look at. It is declared
// here again, not imported, since the JSON is what is promised.
type Volume struct {
	Name       string  `json:"name"`
	Size       int64   `json:"size"`
	Role       string  `json:"role"`
	Disk       string  `json:"disk"`
	Export     string  `json:"export"`
	Clients    int     `json:"clients"`
	Generation string  `json:"generation"`
	Reason     string  `json:"reason"`
	ActiveExt  int64   `json:"active_extents"`
	Congested  bool    `json:"congested"`
	Quorum     *Quorum `json:"quorum"` // nil: there is none
	Frozen     string  `json:"frozen"` // why a primary answers nothing until a peer is fenced
	Peers      []Peer  `json:"peers"`

	Failover *Failover `json:"failover"` // nil: there is none
}

// Failover is how a volume's failover stands on a node.
type Failover struct {
	Standing string `json:"standing"`
	Reason   string `json:"reason"`
	Top      string `json:"top"`
	Paused   bool   `json:"paused"`
	PausedBy string `json:"paused_by"`
	Trouble  bool   `json:"trouble"`
}

// Quorum is that of a Volume.
type Quorum struct {
	Quorate bool   `json:"quorate"`
	Serving bool   `json:"serving"`
	Missing string `json:"missing"`
}

// Serves reports whether the node is primary and answers requests.
func (v Volume) Serves() bool {
	return v.Role == "primary" && v.Frozen == "" && (v.Quorum == nil || v.Quorum.Serving)
}

// Peer is one peer of a Volume.
type Peer struct {
	Name         string  `json:"name"`
	Connection   string  `json:"connection"`
	Replication  string  `json:"replication"`
	Role         string  `json:"role"`
	Disk         string  `json:"disk"`
	Protocol     string  `json:"protocol"`
	OutOfSync    int64   `json:"out_of_sync"`
	SyncPercent  float64 `json:"sync_percent"`
	Reason       string  `json:"reason"`
	SyncTotal    int64   `json:"sync_total"`
	SyncDone     int64   `json:"sync_done"`
	SyncSent     int64   `json:"sync_sent"`
	SyncCompared int64   `json:"sync_compared"`
	VerifyBad    int64   `json:"verify_bad"`
	LastSync     string  `json:"last_sync"`
	Fenced       bool    `json:"fenced"`
	Bonded       bool    `json:"bonded"`
}

// Peer returns the named peer, or one without any state.
func (v Volume) Peer(name string) Peer {
	for _, p := range v.Peers {
		if p.Name == name {
			return p
		}
	}
	return Peer{}
}

func (v Volume) String() string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Volumes returns the state of all the node's volumes.
func (n *Node) Volumes() []Volume {
	n.t.Helper()
	var s struct {
		Node    string
		Volumes []Volume
	}
	out := n.Must("status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		n.t.Fatalf("%s: status --json: %v\n%s", n.Name, err, out)
	}
	if s.Node != n.Name {
		n.t.Fatalf("status of %s says node %q", n.Name, s.Node)
	}
	return s.Volumes
}

// Volume returns the state of one volume.
func (n *Node) Volume(name string) Volume {
	n.t.Helper()
	for _, v := range n.Volumes() {
		if v.Name == name {
			return v
		}
	}
	n.t.Fatalf("%s: no volume %s in its status", n.Name, name)
	return Volume{}
}

// poll is Volume by way of the control socket: a process for every look would
// take the processor away from what is looked at.
func (n *Node) poll(name string) (Volume, error) {
	ctx, cancel := n.c.within(Timeout)
	defer cancel()
	return Ask(ctx, n.Config.Control, name)
}

// Ask returns the state of a volume as the agent behind a control socket tells it.
func Ask(ctx context.Context, socket, name string) (Volume, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/status", nil)
	if err != nil {
		return Volume{}, err
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return Volume{}, err
	}
	defer resp.Body.Close()
	var s struct{ Volumes []Volume }
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return Volume{}, err
	}
	for _, v := range s.Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return Volume{}, fmt.Errorf("no volume %s in the status", name)
}

// Wait waits until ok holds for the volume's state, which it returns.
func (n *Node) Wait(volume, what string, limit time.Duration, ok func(Volume) bool) Volume {
	n.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		v, err := n.poll(volume)
		if err != nil {
			n.t.Fatalf("%s: waiting until it is %s: %v", n.Name, what, err)
		}
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: not %s within %v: %v", n.Name, what, limit, v)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WaitPeer waits until ok holds for what the node says of one peer.
func (n *Node) WaitPeer(volume, peer, what string, limit time.Duration, ok func(Peer) bool) Peer {
	n.t.Helper()
	v := n.Wait(volume, peer+" "+what, limit, func(v Volume) bool { return ok(v.Peer(peer)) })
	return v.Peer(peer)
}

// WaitConnected waits until the volume is connected to all its peers.
func (n *Node) WaitConnected(volume string, limit time.Duration) {
	n.t.Helper()
	n.Wait(volume, "connected", limit, func(v Volume) bool {
		for _, p := range v.Peers {
			if p.Connection != "connected" {
				return false
			}
		}
		return len(v.Peers) > 0
	})
}

// WaitLost waits until the node knows that a peer is not connected.
func (n *Node) WaitLost(volume, peer string, limit time.Duration) {
	n.t.Helper()
	n.WaitPeer(volume, peer, "lost", limit, func(p Peer) bool { return p.Connection != "connected" })
}
