package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/arbiter"
	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// DefaultPath is where the configuration is looked for when neither --config
// nor QRBD_CONFIG names another place.
const DefaultPath = "/etc/qrbd/qrbd.toml"

// Defaults of the [node] section.
const (
	DefaultState       = "/var/lib/qrbd"
	DefaultControl     = "/run/qrbd/control.sock"
	DefaultHeartbeat   = 500 * time.Millisecond
	DefaultPeerTimeout = 3 * time.Second
	DefaultDiskTimeout = time.Minute
	DefaultDevices     = "/dev/qrbd"
	// DefaultAttachTimeout is long: a file system that gets an error is worse off than
	// one that waits for an operator.
	DefaultAttachTimeout = 10 * time.Minute
)

// Config is a node's whole configuration, checked.
type Config struct {
	File    string // where it was read from
	Node    Node
	Peers   []Peer   // in the file's order
	Volumes []Volume // in the file's order
	Hooks   hook.Set // of [hooks]; each volume has its own

	lines map[string]int // line of each key, for checks that come later
}

// Node is the [node] section.
type Node struct {
	Name       string
	Listen     string // host:port for peers, UDP and, if a peer has that transport, TCP
	State      string // directory of identity key, metadata and archives
	ArchiveDir string // "": archive in State
	Control    string // path of the control socket
	// Beside root and the agent's own user: who may do everything by the control
	// socket, and who may read.
	ControlOwner   Account
	ControlGroup   Account
	ControlReaders Account
	Devices        string // directory of the stable names of attached volumes
	Metrics        string // host:port for metrics; "": none
	Heartbeat      time.Duration
	PeerTimeout    time.Duration // silence after which a peer counts as lost
}

// Peer is a [[peer]] section.
type Peer struct {
	Name    string
	Address string   // host:port
	Keys    []string // public keys that are accepted, key first, then keys; one or two
	// Transport is how sessions with it travel; the same on both sides.
	Transport session.Transport
	// Congestion is TCP's congestion control toward it; "": the host's.
	Congestion string
	// Compression is of what is sent to it.
	Compression session.Compression
}

// Volume is a [[volume]] section.
type Volume struct {
	Name    string
	Size    int64 // bytes, a multiple of 512
	Backing string
	Export  Export
	// ExportAccess is of a Unix socket.
	ExportAccess ExportAccess
	// ExportTLS is required of a TCP export off loopback; nil: no TLS.
	ExportTLS     *ExportTLS
	ExportClients []string // names of certificates, one of which a client must have
	Peers         []VolumePeer
	Hooks         hook.Set // [volume.hooks] over [hooks]
	// AfterSB is what to do about a split brain without an operator's word.
	AfterSB protocol.SplitPolicy

	VerifyEvery  time.Duration // 0: only when an operator says so
	VerifyWindow Window

	// Zero: the default of the volume package.
	ResyncRateMax int64 // bytes/s
	ResyncRateMin int64 // bytes/s
	ResyncWindow  int64 // bytes
	FlushBytes    int64
	WriteTimeout  time.Duration
	FlushInterval time.Duration
	ActivityIdle  time.Duration

	// OnNoData is what becomes of requests while no copy of the data can be reached,
	// OnReadError what a read error of a primary's own disk leads to.
	OnNoData    OnNoData
	OnReadError OnReadError
	DiskTimeout time.Duration // after which a disk that does not answer has failed
	// AttachTimeout is how long requests of an attached device wait for the agent.
	AttachTimeout time.Duration

	Archive      Archive
	ArchiveLimit int64 // bytes

	// Quorum: so many nodes must follow a primary, so that it answers requests.
	Quorum        Quorum
	MinRedundancy Quorum
	OnNoQuorum    OnNoQuorum
	Witness       bool // this node votes, and holds no data
	witnesses     []string
	// Failover moves the role, and what is on top, by itself; nil: people do.
	Failover *failover.Settings
	Etcd     *arbiter.Settings // where one vote is kept; nil: nowhere
	// Fencing is what must be certain of a peer that is out of reach.
	Fencing Fencing
}

func (v *Volume) hasPeer(name string) bool {
	for _, p := range v.Peers {
		if p.Name == name {
			return true
		}
	}
	return false
}

// VolumePeer is a peer of a volume.
type VolumePeer struct {
	Name    string
	Mode    protocol.Mode
	Witness bool // it votes, and holds no data

	// Protocol A only.
	SendBuffer     int64 // bytes under way to it; 0: the volume package's default
	OnCongestion   OnCongestion
	CongestionFill int64 // bytes under way at which it is gone ahead of; 0: SendBuffer
}

// Export is where a volume's NBD export listens. The zero Export is none.
type Export struct {
	Network string // "unix" or "tcp"
	Address string // path, or host:port with an IP address or no host
}

// String returns the export as it stands in a configuration.
func (e Export) String() string {
	if e.Network == "" {
		return ""
	}
	return e.Network + ":" + e.Address
}

// AttachSocket returns the path of the socket on which attached volumes are served.
func (c *Config) AttachSocket() string { return c.attachBase() + ".sock" }

// AttachRun returns the directory in which volumes are shown as files.
func (c *Config) AttachRun() string { return c.attachBase() }

// attachBase lies beside the control socket, whose path no other node has.
func (c *Config) attachBase() string { return strings.TrimSuffix(c.Node.Control, ".sock") + "-attach" }

// MetaPath returns the path of a volume's metadata file.
func (c *Config) MetaPath(volume string) string {
	return filepath.Join(c.Node.State, volume+".meta")
}

// ArchivePath returns the directory of a volume's archives.
func (c *Config) ArchivePath(volume string) string {
	return filepath.Join(c.ArchiveRoot(), volume)
}

// ArchiveRoot returns the directory of all volumes' archives.
func (c *Config) ArchiveRoot() string {
	if c.Node.ArchiveDir != "" {
		return c.Node.ArchiveDir
	}
	return filepath.Join(c.Node.State, "archive")
}

// VerifyPath returns the path of the records of a volume's verifies.
func (c *Config) VerifyPath(volume string) string {
	return filepath.Join(c.Node.State, volume+".verify.json")
}

// FailoverPath returns the path of what a volume's failover remembers.
func (c *Config) FailoverPath(volume string) string {
	return filepath.Join(c.Node.State, volume+".failover.json")
}

// FailoverLog returns the path of the file with what commands of a volume's failover print.
func (c *Config) FailoverLog(volume string) string {
	return filepath.Join(c.Node.State, volume+".failover.log")
}

// Volume returns the volume of that name, or nil.
func (c *Config) Volume(name string) *Volume {
	for i := range c.Volumes {
		if c.Volumes[i].Name == name {
			return &c.Volumes[i]
		}
	}
	return nil
}

// VolumeNames lists the volumes for an error text.
func (c *Config) VolumeNames() string {
	names := make([]string, len(c.Volumes))
	for i, v := range c.Volumes {
		names[i] = v.Name
	}
	return strings.Join(names, ", ")
}

// hasTCP says whether peers are to reach this node over TCP.
func (c *Config) hasTCP() bool {
	for _, p := range c.Peers {
		if p.Transport == session.TCP {
			return true
		}
	}
	return false
}

// CheckIdentity returns an *Error when a peer is configured with this node's
// own public key, which would let the node connect to itself.
func (c *Config) CheckIdentity(own string) error {
	e := &Error{File: c.File}
	for i, p := range c.Peers {
		for _, k := range p.Keys {
			if k == own {
				key := fmt.Sprintf("peer[%d].key", i)
				if c.lines[key] == 0 {
					key = fmt.Sprintf("peer[%d].keys", i)
				}
				e.add(c.lines[key], shown(key), "peer %s has this node's own public key: put there what `qrbd identity` prints on %s", p.Name, p.Name)
			}
		}
	}
	return e.orNil()
}

// Load reads and checks the file at path. It returns an *Error, with every
// fault found, when the content is wrong.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &missingError{path}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse checks the content of a configuration; file is used in errors only.
func Parse(file string, data []byte) (*Config, error) {
	e := &Error{File: file}
	doc := parseDocument(data, e)
	if doc == nil {
		return nil, e
	}
	c := &Config{File: file, lines: doc.lines}
	decode(c, doc, e)
	check(c, e)
	if err := e.orNil(); err != nil {
		return nil, err
	}
	return c, nil
}
