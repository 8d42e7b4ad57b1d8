package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Config is a node's configuration. Extra fields are lines of TOML that end up
// in that table. Change it between New and Start, or stop the node, change it
// and start it again.
type Config struct {
	Name, Listen, State, Control string
	Extra                        string
	Peers                        []PeerConfig
	Volumes                      []VolumeConfig
}

// PeerConfig is a [[peer]] table.
type PeerConfig struct {
	Name, Address, Key string
	Transport          string // "": left out
	Compression        string // "": left out
	Extra              string
}

// VolumeConfig is a [[volume]] table.
type VolumeConfig struct {
	Name, Size, Backing, Export, Protocol string
	Peers                                 []string // nil: left out, every peer
	Extra                                 string
}

// Volume returns the configuration of the named volume.
func (c *Config) Volume(name string) *VolumeConfig {
	for i := range c.Volumes {
		if c.Volumes[i].Name == name {
			return &c.Volumes[i]
		}
	}
	panic("no volume " + name + " in the configuration")
}

// Peer returns the configuration of the named peer.
func (c *Config) Peer(name string) *PeerConfig {
	for i := range c.Peers {
		if c.Peers[i].Name == name {
			return &c.Peers[i]
		}
	}
	panic("no peer " + name + " in the configuration")
}

func (c *Config) toml() string {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "%s = %q\n", key, value) }
	b.WriteString("[node]\n")
	line("name", c.Name)
	line("listen", c.Listen)
	line("state", c.State)
	line("control", c.Control)
	b.WriteString(c.Extra + "\n")
	for _, p := range c.Peers {
		b.WriteString("[[peer]]\n")
		line("name", p.Name)
		line("address", p.Address)
		line("key", p.Key)
		if p.Transport != "" {
			line("transport", p.Transport)
		}
		if p.Compression != "" {
			line("compression", p.Compression)
		}
		b.WriteString(p.Extra + "\n")
	}
	for _, v := range c.Volumes {
		b.WriteString("[[volume]]\n")
		line("name", v.Name)
		line("size", v.Size)
		line("backing", v.Backing)
		line("export", v.Export)
		line("protocol", v.Protocol)
		if v.Peers != nil {
			fmt.Fprintf(&b, "peers = [%s]\n", quoteAll(v.Peers))
		}
		b.WriteString(v.Extra + "\n")
	}
	return b.String()
}

func quoteAll(s []string) string {
	q := make([]string, len(s))
	for i := range s {
		q[i] = fmt.Sprintf("%q", s[i])
	}
	return strings.Join(q, ", ")
}

func (c *Config) write(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(c.toml()), 0o600); err != nil {
		t.Fatal(err)
	}
}
