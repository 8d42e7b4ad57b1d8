package config

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// decode reads every key of the document into c. It reports what a single value
// can be blamed for; check reports the rest.
func decode(c *Config, d *document, e *Error) {
	d.unknownSections(e, "node", "peer", "volume", "hooks")
	decodeNode(&c.Node, d.table("node", e))
	for _, s := range d.tables("peer", e) {
		c.Peers = append(c.Peers, decodePeer(s))
	}
	c.Hooks = nodeHooks(d, e)
	for _, s := range d.tables("volume", e) {
		c.Volumes = append(c.Volumes, decodeVolume(s, c.Peers, c.Hooks))
	}
}

func decodeNode(n *Node, s *section) {
	if s.keys == nil {
		return
	}
	n.Name = read(s, "name", required, parseName)
	n.Listen = read(s, "listen", required, parseListen)
	n.State = read(s, "state", DefaultState, parsePath)
	n.ArchiveDir = read(s, "archive_dir", "", parsePath)
	n.Control = read(s, "control", DefaultControl, parseSocketPath)
	n.ControlOwner = read(s, "control_owner", "", parseUser)
	n.ControlGroup = read(s, "control_group", "", parseGroup)
	n.ControlReaders = read(s, "control_readers", "", parseGroup)
	if n.ControlReaders.Name != "" && n.ControlGroup.Name != "" && n.ControlReaders.ID == n.ControlGroup.ID {
		s.fault("control_readers", "%q is the group of control_group: its members may do everything", n.ControlReaders.Name)
	}
	n.Devices = read(s, "devices", DefaultDevices, parsePath)
	n.Metrics = read(s, "metrics", "", parseMetrics)
	n.Heartbeat = readDuration(s, "heartbeat", DefaultHeartbeat)
	n.PeerTimeout = readDuration(s, "peer_timeout", DefaultPeerTimeout)
	if n.Heartbeat > 0 && n.PeerTimeout > 0 && n.PeerTimeout < 2*n.Heartbeat {
		s.fault("peer_timeout", "%s is less than two heartbeats of %s: one late packet would lose the peer", n.PeerTimeout, n.Heartbeat)
	}
	s.done()
}

// keysMax: while a node's key is replaced its peers accept the old and the new.
const keysMax = 2

func decodePeer(s *section) Peer {
	p := Peer{
		Name:    read(s, "name", required, parseName),
		Address: read(s, "address", required, parseAddress),
	}
	p.Transport = read(s, "transport", session.QUIC.String(), session.ParseTransport)
	if p.Congestion = read(s, "congestion", "", parseCongestion); p.Congestion != "" && p.Transport == session.QUIC {
		s.fault("congestion", "is for transport = \"tcp\": QUIC has its own")
	}
	p.Compression = read(s, "compression", session.NoCompression.String(), session.ParseCompression)
	if k := read(s, "key", "", parseKey); k != "" {
		p.Keys = append(p.Keys, k)
	}
	for i, text := range readList(s, "keys") {
		k, err := parseKey(text)
		if err != nil {
			s.fault("keys", "entry %d: %v", i+1, err)
			continue
		}
		if contains(p.Keys, k) {
			s.fault("keys", "entry %d: %s is there twice", i+1, k)
			continue
		}
		p.Keys = append(p.Keys, k)
	}
	if len(p.Keys) > keysMax {
		s.fault("keys", "%d keys; a peer has at most %d: the old one and the new one", len(p.Keys), keysMax)
	}
	_, one := s.keys["key"]
	_, many := s.keys["keys"]
	if !one && !many {
		s.fault("key", "is missing: put there the public key that `qrbd identity` prints on the peer")
	} else if !one && len(p.Keys) == 0 {
		s.fault("keys", "holds no key")
	}
	s.done()
	return p
}

func decodeVolume(s *section, peers []Peer, hooks hook.Set) Volume {
	v := Volume{
		Name:          read(s, "name", required, parseName),
		Size:          readSize(s, "size", required),
		Backing:       read(s, "backing", required, parseBacking),
		ResyncRateMax: readSize(s, "resync_rate_max", ""),
		ResyncRateMin: readSize(s, "resync_rate_min", ""),
		ResyncWindow:  readSize(s, "resync_window", ""),
		VerifyEvery:   readDuration(s, "verify_every", 0),
		VerifyWindow:  read(s, "verify_window", "", ParseWindow),
		FlushBytes:    readSize(s, "flush_bytes", ""),
		WriteTimeout:  readDuration(s, "write_timeout", 0),
		FlushInterval: readDuration(s, "flush_interval", 0),
		ActivityIdle:  readDuration(s, "activity_idle", 0),
		OnNoData:      read(s, "on_no_data", IOError.String(), parseNoData),
		OnReadError:   read(s, "on_read_error", Repair.String(), parseReadError),
		DiskTimeout:   readDuration(s, "disk_timeout", DefaultDiskTimeout),
		AttachTimeout: readDuration(s, "attach_timeout", DefaultAttachTimeout),
		Archive:       read(s, "archive", ArchiveSplitBrain.String(), parseArchive),
		ArchiveLimit:  readSize(s, "archive_limit", DefaultArchiveLimit),
	}
	export := required
	if v.Backing == NoBacking {
		export = ""
	}
	v.Export = read(s, "export", export, parseExport)
	if v.Size%512 != 0 {
		s.fault("size", "%d bytes is not a multiple of 512", v.Size)
	}
	if v.ResyncRateMax > 0 && v.ResyncRateMin > v.ResyncRateMax {
		s.fault("resync_rate_min", "%d bytes a second is more than resync_rate_max", v.ResyncRateMin)
	}
	if v.VerifyWindow != (Window{}) && v.VerifyEvery == 0 {
		s.fault("verify_window", "says nothing without verify_every")
	}
	v.ExportAccess = decodeExportAccess(s, v.Export)
	v.ExportTLS, v.ExportClients = decodeExportTLS(s, v.Export)
	mode := read(s, "protocol", "C", parseMode)
	v.Peers = decodeVolumePeers(s, mode, peers)
	decodeQuorum(s, &v)
	v.AfterSB = decodePolicy(s)
	v.Fencing = read(s, "fencing", FencingDontCare.String(), parseFencing)
	decodeCongestion(s, &v)
	v.Hooks = volumeHooks(s, hooks)
	v.Failover, v.Etcd = decodeFailover(s)
	if v.Etcd != nil && !v.Quorum.Off() { // it votes as a witness does
		v.Peers = append(v.Peers, VolumePeer{Name: EtcdName, Mode: protocol.ModeC, Witness: true})
		v.witnesses = append(v.witnesses, EtcdName)
	}
	s.done()
	return v
}

// decodeVolumePeers reads peers (default: every peer) and protocols.
func decodeVolumePeers(s *section, mode protocol.Mode, peers []Peer) []VolumePeer {
	var out []VolumePeer
	exists := func(name string) bool {
		for _, p := range peers {
			if p.Name == name {
				return true
			}
		}
		return false
	}
	if _, given := s.keys["peers"]; given {
		seen := map[string]bool{}
		for _, name := range readList(s, "peers") {
			switch {
			case seen[name]:
				s.fault("peers", "%q is there twice", name)
			case !exists(name):
				s.fault("peers", "there is no [[peer]] named %q", name)
			default:
				out = append(out, VolumePeer{Name: name, Mode: mode})
			}
			seen[name] = true
		}
	} else {
		s.take("peers")
		for _, p := range peers {
			if p.Name != "" {
				out = append(out, VolumePeer{Name: p.Name, Mode: mode})
			}
		}
	}
	if len(out) > protocol.PeersMax {
		s.fault("peers", "%d peers; a volume has at most %d", len(out), protocol.PeersMax)
	}
	decodeProtocols(s, out, exists)
	return out
}

// decodeProtocols reads the table protocols, which overrides protocol by peer.
func decodeProtocols(s *section, peers []VolumePeer, exists func(string) bool) {
	v, ok := s.take("protocols")
	if !ok {
		return
	}
	table, ok := v.(map[string]any)
	if !ok {
		s.fault("protocols", "must be a table of peers: [volume.protocols] beta = \"A\"")
		return
	}
	for _, name := range sortedKeys(table) {
		key := "protocols." + name
		text, ok := table[name].(string)
		if !ok {
			s.fault(key, "must be \"A\", \"B\" or \"C\"")
			continue
		}
		m, err := parseMode(text)
		if err != nil {
			s.fault(key, "%v", err)
		}
		found := false
		for i := range peers {
			if peers[i].Name == name {
				peers[i].Mode, found = m, true
			}
		}
		if !found && exists(name) {
			s.fault(key, "%q is not among the volume's peers", name)
		} else if !found {
			s.fault(key, "there is no [[peer]] named %q", name)
		}
	}
}

// required as the default of a key makes its absence a fault.
const required = "\x00required"

// read takes key as a string and parses it; def is parsed when the key is
// absent, and "" is then the zero T.
func read[T any](s *section, key, def string, parse func(string) (T, error)) T {
	var zero T
	v, ok := s.take(key)
	text := def
	if ok {
		if text, ok = v.(string); !ok {
			s.fault(key, "must be a text in quotes, not %v", kindOf(v))
			return zero
		}
	} else if def == required {
		s.fault(key, "is missing")
		return zero
	}
	if text == "" && def == "" {
		return zero
	}
	out, err := parse(text)
	if err != nil {
		s.fault(key, "%v", err)
		return zero
	}
	return out
}

// readSize takes key as a size in bytes; zero when absent.
func readSize(s *section, key, def string) int64 {
	return read(s, key, def, ParseSize)
}

// readDuration takes key as a duration; an absent one is def.
func readDuration(s *section, key string, def time.Duration) time.Duration {
	d := read(s, key, "", parseDuration)
	if _, given := s.keys[key]; !given {
		return def
	}
	return d
}

// readList takes key as a list of strings.
func readList(s *section, key string) []string {
	v, ok := s.take(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		s.fault(key, "must be a list of texts, [\"…\"], not %v", kindOf(v))
		return nil
	}
	var out []string
	for i, e := range list {
		text, ok := e.(string)
		if !ok {
			s.fault(key, "entry %d must be a text in quotes, not %v", i+1, kindOf(e))
			continue
		}
		out = append(out, text)
	}
	return out
}

// kindOf names a TOML value's kind for people.
func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return "a text"
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case []any:
		return "a list"
	case map[string]any:
		return "a section"
	}
	return "a date"
}
