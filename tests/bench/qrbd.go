package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// errNotReplicating says that the pair is not in the state that the column claims to measure.
var errNotReplicating = errors.New("qrbd's pair is not connected and up-to-date")

const (
	commandTimeout = 30 * time.Second // for one qrbd command
	syncTimeout    = time.Minute      // for the first sync of an empty volume
)

// node is one agent of a pair, driven through the command line as an operator would.
type node struct {
	site
	name   string
	listen string // address for its peer
	key    string // public key
	agent  *process
}

// newNode makes a node's directory, identity and key.
func newNode(ctx context.Context, s site, name string) (*node, error) {
	port, err := freePort("tcp+udp")
	if err != nil {
		return nil, err
	}
	n := &node{site: site{dir: s.path(name), sizeBytes: s.sizeBytes, qrbd: s.qrbd, transport: s.transport, compress: s.compress, more: s.more}, name: name,
		listen: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	if _, err := n.command(ctx, "init", "--name", name, "--listen", n.listen, "--state", n.path("state")); err != nil {
		return nil, err
	}
	out, err := n.command(ctx, "identity", "--json")
	if err != nil {
		return nil, err
	}
	var identity struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(out, &identity); err != nil || identity.Key == "" {
		return nil, fmt.Errorf("node %s: no key in %q: %w", name, out, err)
	}
	n.key = identity.Key
	return n, nil
}

// command runs one qrbd command on the node and returns what it prints.
func (n *node) command(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.qrbd, append(args, "--config", n.path("qrbd.toml"))...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("qrbd %s on %s: %w: %s", strings.Join(args, " "), n.name, err, lastLine(errOut.Bytes()))
	}
	return out.Bytes(), nil
}

// socket is the node's NBD export.
func (n *node) socket() string { return n.path("nbd.sock") }

// configure writes the node's configuration with its peer and the volume, and creates the volume.
func (n *node) configure(ctx context.Context, peer *node) error {
	transport := ""
	if n.transport != "" {
		transport = fmt.Sprintf("transport = %q\n", n.transport)
	}
	if n.compress != "" {
		transport += fmt.Sprintf("compression = %q\n", n.compress)
	}
	config := fmt.Sprintf(`[node]
name = %q
listen = %q
state = %q
control = %q

[[peer]]
name = %q
address = %q
key = %q
%s
`, n.name, n.listen, n.path("state"), n.path("control.sock"), peer.name, peer.listen, peer.key, transport)
	volumes := append([]volumeSpec{{volumeName, n.sizeBytes, "disk.img", n.socket()}}, n.moreVolumes()...)
	for _, v := range volumes {
		config += fmt.Sprintf("\n[[volume]]\nname = %q\nsize = \"%dB\"\nbacking = %q\nexport = \"unix:%s\"\nprotocol = \"C\"\n",
			v.name, v.sizeBytes, n.path(v.file), v.socket)
	}
	if err := os.WriteFile(n.path("qrbd.toml"), []byte(config), 0o600); err != nil {
		return fmt.Errorf("node %s: %w", n.name, err)
	}
	for _, v := range volumes {
		if _, err := n.command(ctx, "create", v.name); err != nil {
			return err
		}
	}
	return nil
}

// volumeSpec is a volume in a node's configuration.
type volumeSpec struct {
	name      string
	sizeBytes int64
	file      string
	socket    string
}

// moreVolumes are those of the node's site beside the first.
func (n *node) moreVolumes() []volumeSpec {
	var list []volumeSpec
	for name, size := range n.more {
		list = append(list, volumeSpec{name, size, name + ".img", n.path(name + ".sock")})
	}
	return list
}

// start starts the agent and returns how long it took until its control API knew the volume.
func (n *node) start(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	p, err := startProcess(n.dir, "agent-"+n.name, n.qrbd, "agent", "--config", n.path("qrbd.toml"))
	if err != nil {
		return 0, err
	}
	n.agent = p
	if err := p.waitListening("unix", n.path("control.sock")); err != nil {
		return 0, err
	}
	for {
		_, err := n.status(ctx)
		if err == nil {
			return time.Since(begin), nil
		}
		if time.Since(begin) > startTimeout {
			return 0, err
		}
		if err := p.alive(); err != nil {
			return 0, err
		}
	}
}

// peerState is what a volumeStatus says of a peer.
type peerState struct {
	Connection  string `json:"connection"`
	Replication string `json:"replication"`
	Disk        string `json:"disk"`
	Protocol    string `json:"protocol"`
	OutOfSync   int64  `json:"out_of_sync"`
	SyncTotal   int64  `json:"sync_total"`
	SyncDone    int64  `json:"sync_done"`
}

// volumeStatus is the part of `qrbd status --json` that says whether the pair replicates.
type volumeStatus struct {
	Name  string      `json:"name"`
	Role  string      `json:"role"`
	Disk  string      `json:"disk"`
	Peers []peerState `json:"peers"`
}

// status asks the node for the volume.
func (n *node) status(ctx context.Context) (volumeStatus, error) {
	out, err := n.command(ctx, "status", volumeName, "--json")
	if err != nil {
		return volumeStatus{}, err
	}
	var report struct {
		Volumes []volumeStatus `json:"volumes"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return volumeStatus{}, fmt.Errorf("status of %s: %w", n.name, err)
	}
	if len(report.Volumes) != 1 || report.Volumes[0].Name != volumeName {
		return volumeStatus{}, fmt.Errorf("status of %s: %d volumes, want %q alone", n.name, len(report.Volumes), volumeName)
	}
	return report.Volumes[0], nil
}

// replicating returns an error unless the volume is primary here and its one peer connected with protocol C, both disks
// up-to-date and nothing out of sync: anything less would measure less work.
func (v volumeStatus) replicating() error {
	if v.Role != "primary" || v.Disk != "up-to-date" || len(v.Peers) != 1 {
		return fmt.Errorf("%w: role %s, disk %s, %d peers", errNotReplicating, v.Role, v.Disk, len(v.Peers))
	}
	p := v.Peers[0]
	if p.Connection != "connected" || p.Replication != "established" || p.Disk != "up-to-date" || p.Protocol != "C" || p.OutOfSync != 0 {
		return fmt.Errorf("%w: peer %+v", errNotReplicating, p)
	}
	return nil
}

// pair is two agents of one volume; alpha is primary.
type pair struct{ alpha, beta *node }

// newPair makes two nodes that know each other, with a new volume each.
func newPair(ctx context.Context, s site) (pair, error) {
	alpha, err := newNode(ctx, s, "alpha")
	if err != nil {
		return pair{}, err
	}
	beta, err := newNode(ctx, s, "beta")
	if err != nil {
		return pair{}, err
	}
	if err := alpha.configure(ctx, beta); err != nil {
		return pair{}, err
	}
	return pair{alpha, beta}, beta.configure(ctx, alpha)
}

// servers returns the agents that were started, the primary first.
func (p pair) servers() []*process {
	var started []*process
	for _, n := range []*node{p.alpha, p.beta} {
		if n != nil && n.agent != nil {
			started = append(started, n.agent)
		}
	}
	return started
}

// bringUp promotes alpha on the brand-new volume and waits until the pair replicates.
func (p pair) bringUp(ctx context.Context) error {
	if _, err := p.alpha.command(ctx, "promote", volumeName, "--force"); err != nil {
		return err
	}
	for _, state := range []string{"primary", "connected", "up-to-date"} {
		if _, err := p.alpha.command(ctx, "wait", volumeName, "--for", state, "--timeout", "20s"); err != nil {
			return err
		}
	}
	return p.settle(ctx)
}

// settle waits until the pair replicates: up-to-date is alpha's own disk, the peer's first sync may still run.
func (p pair) settle(ctx context.Context) error {
	for deadline := time.Now().Add(syncTimeout); ; time.Sleep(pollInterval) {
		v, err := p.alpha.status(ctx)
		if err == nil {
			err = v.replicating()
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// close ends both agents.
func (p pair) close() {
	for _, s := range p.servers() {
		s.stop(syscall.SIGTERM)
	}
}

// qrbdTCP is the column of qrbd over TCP.
const qrbdTCP = "qrbd-tcp"

// buildQrbdTCP starts the subject with its other transport.
func buildQrbdTCP(ctx context.Context, s site) (*column, error) {
	s.transport = "tcp"
	c, err := buildQrbd(ctx, s)
	c.name = qrbdTCP
	return c, err
}

// buildQrbd starts the subject: two agents over loopback, protocol C.
func buildQrbd(ctx context.Context, s site) (*column, error) {
	c := &column{name: "qrbd"}
	p, err := newPair(ctx, s)
	if err != nil {
		return c, err
	}
	for _, n := range []*node{p.beta, p.alpha} {
		_, err := n.start(ctx)
		c.servers = p.servers()
		if err != nil {
			return c, err
		}
	}
	c.uri, c.copies = unixURI(volumeName, p.alpha.socket()), [2]string{p.alpha.path("disk.img"), p.beta.path("disk.img")}
	c.check = func() error {
		v, err := p.alpha.status(ctx)
		if err != nil {
			return err
		}
		return v.replicating()
	}
	return c, p.bringUp(ctx)
}
