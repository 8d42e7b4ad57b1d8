package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Options say what New makes. The zero value: nodes alpha and beta on loopback,
// one volume "crm" of 64 MiB in protocol C between them.
type Options struct {
	Nodes    []string
	Volume   string
	Size     string
	Protocol string
	// Links: each node in a network namespace, so that Cut and Heal work. The test
	// is skipped where that cannot be had.
	Links bool
	// Transport between the nodes, "quic" or "tcp". Zero: TransportEnv's, else the
	// agent's default.
	Transport string
	// Compression of what each node sends, "none" or "zstd". Zero: CompressionEnv's, else the
	// agent's default.
	Compression string
	// Program is what runs as agent. Zero: Qrbd.
	Program Program
	// Configure, if set, may change a node's configuration before it is written.
	Configure func(c *Config)
}

// TransportEnv names the environment variable with the transport of clusters that
// are not told one: what is tested over one transport can be tested over another.
const TransportEnv = "QRBD_E2E_TRANSPORT"

// CompressionEnv does so with the compression.
const CompressionEnv = "QRBD_E2E_COMPRESSION"

// Cluster is a set of nodes that know each other.
type Cluster struct {
	Nodes []*Node
	t     testing.TB
	dir   string
	links *links // nil: on loopback
}

// New makes identities and configurations. Nothing runs yet.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Nodes == nil {
		o.Nodes = []string{"alpha", "beta"}
	}
	setDefault(&o.Volume, "crm")
	setDefault(&o.Size, "64MiB")
	setDefault(&o.Protocol, "C")
	setDefault(&o.Transport, os.Getenv(TransportEnv))
	setDefault(&o.Compression, os.Getenv(CompressionEnv))
	if o.Program == (Program{}) {
		o.Program = Qrbd
	}
	c := &Cluster{t: t, dir: newDir(t, workParent())}
	t.Cleanup(c.close)
	if o.Links {
		c.links = newLinks(t, o.Nodes)
	}
	for i, name := range o.Nodes {
		c.Nodes = append(c.Nodes, c.newNode(name, i, o))
	}
	for _, n := range c.Nodes {
		n.introduce(c.Nodes, o.Transport, o.Compression)
		if o.Configure != nil {
			o.Configure(&n.Config)
		}
		n.Config.write(t, n.ConfigPath)
	}
	return c
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Node returns the named node.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node " + name)
}

// Create runs `qrbd create` for the volume on every node.
func (c *Cluster) Create(volume string) {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.Must("create", volume)
	}
}

// Start starts every node.
func (c *Cluster) Start() {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.Start()
	}
}

// Up creates the volume "crm", starts all nodes, promotes the first one and
// waits until all replicas are in sync. It returns the first node.
func (c *Cluster) Up() *Node {
	c.t.Helper()
	c.Create("crm")
	c.Start()
	c.Nodes[0].WaitConnected("crm", 10*time.Second)
	c.Nodes[0].Must("promote", "crm", "--force")
	c.WaitInSync("crm", 20*time.Second)
	return c.Nodes[0]
}

// WaitInSync waits until every running node's replica is up-to-date, connected
// to every running peer of the volume and has nothing out of sync.
func (c *Cluster) WaitInSync(volume string, limit time.Duration) {
	c.t.Helper()
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		n.Wait(volume, "in sync", limit, func(v Volume) bool {
			if v.Disk != "up-to-date" {
				return false
			}
			for _, p := range v.Peers {
				if !c.Node(p.Name).Running() {
					continue
				}
				if p.Connection != "connected" || p.Replication != "established" || p.Disk != "up-to-date" || p.OutOfSync != 0 {
					return false
				}
			}
			return true
		})
	}
}

// Equal flushes the volume on the primary, if there is one, and compares the
// backing stores of the named nodes (none: all) byte for byte. Under A and B the
// flush does not wait for the peers, so they are given a moment.
func (c *Cluster) Equal(volume string, names ...string) {
	c.t.Helper()
	nodes := c.Nodes
	if len(names) > 0 {
		nodes = nil
		for _, name := range names {
			nodes = append(nodes, c.Node(name))
		}
	}
	var patience time.Duration
	for _, n := range nodes {
		if !n.Running() {
			continue
		}
		v := n.Volume(volume)
		if v.Role != "primary" {
			continue
		}
		d := n.Dial(volume)
		if err := d.Flush(); err != nil {
			c.t.Fatalf("flush on %s: %v", n.Name, err)
		}
		d.Close()
		for _, p := range v.Peers {
			if p.Protocol != "C" {
				patience = 5 * time.Second
			}
		}
	}
	deadline := time.Now().Add(patience)
	for _, n := range nodes[1:] {
		for {
			diff, err := Diff(nodes[0].Backing(volume), n.Backing(volume))
			if err != nil {
				c.t.Fatal(err)
			}
			if len(diff) == 0 {
				break
			}
			if time.Now().After(deadline) {
				c.t.Fatalf("stores differ: %s", differences(volume, nodes))
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// differences describes each pair of stores.
func differences(volume string, nodes []*Node) string {
	var b strings.Builder
	for i, x := range nodes {
		for _, y := range nodes[i+1:] {
			diff, err := Diff(x.Backing(volume), y.Backing(volume))
			fmt.Fprintf(&b, "\n  %s and %s: %d blocks of 4 KiB, first at %v", x.Name, y.Name, len(diff), diff[:min(4, len(diff))])
			if err != nil {
				fmt.Fprintf(&b, " (%v)", err)
			}
		}
	}
	return b.String()
}

// close ends every process and removes everything, printing the logs first if
// the test failed.
func (c *Cluster) close() {
	for _, n := range c.Nodes {
		if c.t.Failed() && n.Running() && !n.paused {
			c.t.Logf("status of %s:\n%s", n.Name, n.try("status"))
		}
	}
	for _, n := range c.Nodes {
		n.end()
	}
	if c.t.Failed() {
		for _, n := range c.Nodes {
			c.t.Logf("log of %s:\n%s", n.Name, tail(n.logPath, logLines()))
		}
	}
	if c.links != nil {
		c.links.close()
	}
	if c.t.Failed() && os.Getenv("QRBD_E2E_KEEP") != "" {
		c.t.Logf("kept %s", c.dir)
		return
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Errorf("remove %s: %v", c.dir, err)
	}
}

// Cut stops packets from one node to another; the way back stays open.
func (c *Cluster) Cut(from, to string) { c.t.Helper(); c.links.block(c.t, from, to) }

// CutBoth stops packets between two nodes.
func (c *Cluster) CutBoth(a, b string) {
	c.t.Helper()
	c.Cut(a, b)
	c.Cut(b, a)
}

// Heal lets packets between two nodes pass again.
func (c *Cluster) Heal(a, b string) {
	c.t.Helper()
	c.links.unblock(c.t, a, b)
	c.links.unblock(c.t, b, a)
}

// logLines is how many lines of each agent's log are printed when a test failed.
func logLines() int {
	if n, err := strconv.Atoi(os.Getenv("QRBD_E2E_LOG")); err == nil {
		return n
	}
	return 80
}

// address returns where the i-th node listens.
func (c *Cluster) address(i int) string {
	if c.links != nil {
		return fmt.Sprintf("%s:7790", c.links.ip(i))
	}
	for range 100 {
		// Below the ports that the kernel gives to connections, which come and go: what
		// is free now is free when the agent is started again.
		address := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		listener, err := net.Listen("tcp", address)
		packets.Close()
		if err != nil {
			continue
		}
		listener.Close()
		return address
	}
	c.t.Fatal("no port is free on UDP and TCP")
	return ""
}

// newNode makes the i-th node's directory and identity.
func (c *Cluster) newNode(name string, i int, o Options) *Node {
	c.t.Helper()
	dir := filepath.Join(c.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	n := &Node{
		Name: name, Dir: dir, Program: o.Program,
		ConfigPath: filepath.Join(dir, "qrbd.toml"),
		logPath:    filepath.Join(dir, "log"),
		c:          c, t: c.t,
	}
	n.Config = Config{
		Name: name, Listen: c.address(i),
		State: filepath.Join(dir, "state"), Control: filepath.Join(dir, "ctl"),
		Volumes: []VolumeConfig{{
			Name: o.Volume, Size: o.Size, Protocol: o.Protocol,
			Backing: filepath.Join(dir, o.Volume+".img"), Export: "unix:" + filepath.Join(dir, o.Volume+".sock"),
		}},
	}
	n.Must("init", "--name", name, "--listen", n.Config.Listen, "--state", n.Config.State)
	n.Key = n.identity()
	return n
}

// Timeout bounds a command or a wait that should be quick, with room for a busy
// machine.
const Timeout = 30 * time.Second

// within returns a context that ends after d or with the test.
func (c *Cluster) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
