package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// newKey returns a valid public key.
func newKey(t *testing.T) string {
	t.Helper()
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id.PublicKey()
}

// fill replaces KEY1, KEY2 and KEY3 in text by valid keys.
func fill(t *testing.T, text string) string {
	for _, name := range []string{"KEY1", "KEY2", "KEY3"} {
		text = strings.ReplaceAll(text, name, newKey(t))
	}
	return text
}

const whole = `
[node]
name    = "alpha"
listen  = "10.0.0.1:7790"
state   = "/var/lib/qrbd"
archive_dir = "/mnt/archives"
devices = "/dev/disk/qrbd"
control = "/run/qrbd/control.sock"
control_owner = "root"
control_group = "4711"
control_readers = "4712"
metrics = "127.0.0.1:9790"
heartbeat = "500ms"
peer_timeout = "2s"

[[peer]]
name    = "beta"
address = "10.0.0.2:7790"
key     = "KEY1"
keys    = ["KEY2"]
transport = "tcp"
compression = "zstd"
congestion = "bbr"

[[peer]]
name    = "gamma"
address = "gamma.example.org:7790"
keys    = ["KEY3"]

[[volume]]
name     = "crm"
size     = "10GiB"
backing  = "/var/lib/qrbd/crm.img"
export   = "unix:/run/qrbd/crm.sock"
peers    = ["beta", "gamma"]
protocol = "B"
resync_rate_max = "100 MiB"
resync_rate_min = "1MiB"
resync_window = "4MiB"
verify_every = "24h"
verify_window = "22:00-04:30"
on_no_data = "suspend-io"
on_read_error = "detach"
disk_timeout = "30s"
attach_timeout = "1h"
flush_bytes = "32MiB"
write_timeout = "5s"
flush_interval = "2s"
activity_idle = "1m"
archive = "always"
archive_limit = "64MiB"
[volume.protocols]
gamma = "A"

[[volume]]
name     = "web"
size     = "1536B"
backing  = "/dev/vg0/web"
export   = "tcp:localhost:10809"
`

func TestWholeConfiguration(t *testing.T) {
	c, err := Parse("qrbd.toml", []byte(fill(t, whole)))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != (Node{"alpha", "10.0.0.1:7790", "/var/lib/qrbd", "/mnt/archives", "/run/qrbd/control.sock", Account{"root", 0}, Account{"4711", 4711}, Account{"4712", 4712},
		"/dev/disk/qrbd", "127.0.0.1:9790", 500 * time.Millisecond, 2 * time.Second}) {
		t.Errorf("node: %+v", c.Node)
	}
	if len(c.Peers) != 2 || len(c.Peers[0].Keys) != 2 || len(c.Peers[1].Keys) != 1 || c.Peers[1].Address != "gamma.example.org:7790" {
		t.Errorf("peers: %+v", c.Peers)
	}
	if c.Peers[0].Congestion != "bbr" || c.Peers[1].Congestion != "" {
		t.Errorf("congestion controls: %q, %q", c.Peers[0].Congestion, c.Peers[1].Congestion)
	}
	if c.Peers[0].Transport != session.TCP || c.Peers[1].Transport != session.QUIC {
		t.Errorf("transports: %v, %v", c.Peers[0].Transport, c.Peers[1].Transport)
	}
	if c.Peers[0].Compression != session.Zstd || c.Peers[1].Compression != session.NoCompression {
		t.Errorf("compressions: %v, %v", c.Peers[0].Compression, c.Peers[1].Compression)
	}
	crm := c.Volume("crm")
	if crm == nil || crm.Size != 10<<30 || crm.ResyncRateMax != 100<<20 || crm.ResyncWindow != 4<<20 || crm.ResyncRateMin != 1<<20 || crm.VerifyEvery != 24*time.Hour ||
		crm.VerifyWindow != (Window{From: 22 * time.Hour, To: 4*time.Hour + 30*time.Minute}) || crm.FlushBytes != 32<<20 ||
		crm.OnNoData != SuspendIO || crm.OnReadError != Detach || crm.DiskTimeout != 30*time.Second || crm.AttachTimeout != time.Hour ||
		c.AttachSocket() != "/run/qrbd/control-attach.sock" || c.AttachRun() != "/run/qrbd/control-attach" ||
		crm.Archive != ArchiveAlways || crm.ArchiveLimit != 64<<20 || c.ArchivePath("crm") != "/mnt/archives/crm" ||
		crm.WriteTimeout != 5*time.Second || crm.FlushInterval != 2*time.Second || crm.ActivityIdle != time.Minute {
		t.Fatalf("crm: %+v", crm)
	}
	if len(crm.Peers) != 2 || crm.Peers[0] != (VolumePeer{Name: "beta", Mode: protocol.ModeB}) || crm.Peers[1] != (VolumePeer{Name: "gamma", Mode: protocol.ModeA}) {
		t.Errorf("peers of crm: %+v", crm.Peers)
	}
	web := c.Volume("web")
	if web == nil || web.Size != 1536 || web.Export.String() != "tcp:127.0.0.1:10809" {
		t.Fatalf("web: %+v", web)
	}
	if web.OnNoData != IOError || web.OnReadError != Repair || web.DiskTimeout != DefaultDiskTimeout {
		t.Errorf("disks of web: %v, %v, %v", web.OnNoData, web.OnReadError, web.DiskTimeout)
	}
	if web.Archive != ArchiveSplitBrain || web.ArchiveLimit != 1<<30 {
		t.Errorf("archives of web: %v, %d", web.Archive, web.ArchiveLimit)
	}
	if len(web.Peers) != 2 || web.Peers[1] != (VolumePeer{Name: "gamma", Mode: protocol.ModeC}) {
		t.Errorf("peers of web, by default every one in protocol C: %+v", web.Peers)
	}
	if got := c.MetaPath("crm"); got != "/var/lib/qrbd/crm.meta" {
		t.Errorf("metadata path %s", got)
	}
}

func TestDefaults(t *testing.T) {
	c, err := Parse("f", []byte("[node]\nname = \"a\"\nlisten = \":7790\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Node{Name: "a", Listen: ":7790", State: DefaultState, Control: DefaultControl, Devices: DefaultDevices, Heartbeat: DefaultHeartbeat, PeerTimeout: DefaultPeerTimeout}
	if c.Node != want {
		t.Errorf("got %+v, want %+v", c.Node, want)
	}
}

// Each case is a file and the faults it must give: line, key, a part of the text.
func TestFaults(t *testing.T) {
	const node = "[node]\nname = \"alpha\"\nlisten = \"10.0.0.1:7790\"\n" // 3 lines
	const peer = "[[peer]]\nname = \"beta\"\naddress = \"10.0.0.2:7790\"\nkey = \"KEY1\"\n"
	const vol = "[[volume]]\nname = \"crm\"\nsize = \"1GiB\"\nbacking = \"/b\"\nexport = \"unix:/s\"\n"
	type fault struct {
		line int
		key  string
		text string
	}
	cases := []struct {
		name string
		file string
		want []fault
	}{
		{"empty", "", []fault{{0, "node", "missing"}}},
		{"syntax", "[node]\nname = alpha\n", []fault{{2, "", ""}}},
		{"twice", "[node]\nname = \"a\"\nname = \"b\"\n", []fault{{3, "", ""}}},
		{"required", "[node]\n", []fault{{1, "node.name", "missing"}, {1, "node.listen", "missing"}}},
		{"unknown section", node + "[nodes]\n", []fault{{4, "nodes", "unknown"}}},
		{"unknown array", node + "[[peers]]\nname = \"x\"\n", []fault{{4, "peers", "unknown"}}},
		{"unknown key", node + "metric = \"\"\n", []fault{{4, "node.metric", "unknown key"}}},
		{"kinds", "[node]\nname = 3\nlisten = [\"x\"]\nstate = true\n", []fault{
			{2, "node.name", "number 3"}, {3, "node.listen", "a list"}, {4, "node.state", "boolean"}}},
		{"names", "[node]\nname = \"al pha\"\nlisten = \":1\"\n[[peer]]\nname = \"..\"\naddress = \"b:1\"\nkey = \"KEY1\"\n", []fault{
			{2, "node.name", "not a name"}, {5, "peer.name", "all dots"}}},
		{"long name", "[node]\nname = \"" + strings.Repeat("x", 65) + "\"\nlisten = \":1\"\n", []fault{{2, "node.name", "1 to 64"}}},
		{"transport", node + peer + "transport = \"sctp\"\n", []fault{{8, "peer.transport", `"quic" or "tcp"`}}},
		{"congestion", node + peer + "congestion = \"bbr\"\n", []fault{{8, "peer.congestion", "QUIC has its own"}}},
		{"compression", node + peer + "compression = \"lz4\"\n", []fault{{8, "peer.compression", `"none" or "zstd"`}}},
		{"congestion name", node + peer + "transport = \"tcp\"\ncongestion = \"BBR 2\"\n", []fault{{9, "peer.congestion", "not the name"}}},
		{"TCP twice", strings.Replace(node, "10.0.0.1", "", 1) + "metrics = \"127.0.0.1:7790\"\n" + peer + "transport = \"tcp\"\n" + strings.Replace(vol, "unix:/s", "tcp:127.0.0.1:7790", 1), []fault{
			{4, "node.metrics", "node.listen"}, {14, "volume.export", "node.metrics"}, {14, "volume.export", "node.listen"}}},
		{"listen", "[node]\nname = \"a\"\nlisten = \"10.0.0.1\"\n", []fault{{3, "node.listen", "host:port"}}},
		{"listen port", "[node]\nname = \"a\"\nlisten = \"10.0.0.1:70000\"\n", []fault{{3, "node.listen", "65535"}}},
		{"listen port 0", "[node]\nname = \"a\"\nlisten = \"10.0.0.1:0\"\n", []fault{{3, "node.listen", "65535"}}},
		{"listen host", "[node]\nname = \"a\"\nlisten = \"example.org:1\"\n", []fault{{3, "node.listen", "IP address"}}},
		{"relative", node + "state = \"var\"\ncontrol = \"run/x\"\n", []fault{{4, "node.state", "absolute"}, {5, "node.control", "absolute"}}},
		{"control length", node + "control = \"/" + strings.Repeat("x", 107) + "\"\n", []fault{{4, "node.control", "108 bytes"}}},
		{"archive dir", node + "archive_dir = \"archives\"\n", []fault{{4, "node.archive_dir", "absolute"}}},
		{"archive", node + vol + "archive = \"never\"\narchive_limit = \"much\"\n", []fault{{9, "volume.archive", "split-brain, always or off"}, {10, "volume.archive_limit", ""}}},
		{"heartbeat", node + "heartbeat = \"5s\"\npeer_timeout = \"3s\"\n", []fault{{5, "node.peer_timeout", "two heartbeats"}}},
		{"heartbeat alone", node + "heartbeat = \"4s\"\n", []fault{{1, "node.peer_timeout", "two heartbeats"}}},
		{"duration", node + "heartbeat = \"1\"\npeer_timeout = \"-1s\"\n", []fault{{4, "node.heartbeat", "not a duration"}, {5, "node.peer_timeout", "more than zero"}}},
		{"peer required", node + "[[peer]]\n", []fault{{4, "peer.name", "missing"}, {4, "peer.address", "missing"}, {4, "peer.key", "missing"}}},
		{"peer is no array", node + "[peer]\nname = \"x\"\n", []fault{{4, "peer", "[[peer]]"}}},
		{"peer key", node + "[[peer]]\nname = \"b\"\naddress = \"b:1\"\nkey = \"qk1xyz\"\n", []fault{{7, "peer.key", "qk1xyz"}}},
		{"peer keys", node + "[[peer]]\nname = \"b\"\naddress = \"b:1\"\nkeys = [\"qk1xyz\", 3]\n", []fault{
			{7, "peer.keys", "entry 2"}, {7, "peer.keys", "qk1xyz"}, {7, "peer.keys", "holds no key"}}},
		{"too many keys", node + peer + "keys = [\"KEY2\", \"KEY3\"]\n", []fault{{8, "peer.keys", "at most 2"}}},
		{"peer address", node + "[[peer]]\nname = \"b\"\naddress = \"0.0.0.0:1\"\nkey = \"KEY1\"\n", []fault{{6, "peer.address", "can be reached"}}},
		{"peer host", node + "[[peer]]\nname = \"b\"\naddress = \"b c:1\"\nkey = \"KEY1\"\n", []fault{{6, "peer.address", "host name"}}},
		{"peer twice", node + peer + strings.Replace(peer, "KEY1", "KEY2", 1), []fault{{9, "peer.name", "in line 5"}, {10, "peer.address", "in line 6"}}},
		{"peer key of another", node + peer + strings.ReplaceAll(strings.Replace(peer, "beta", "gamma", 1), "0.2", "0.3"), []fault{{11, "peer.key", "peer beta has the same key"}}},
		{"peer is self", node + strings.Replace(peer, "beta", "alpha", 1), []fault{{5, "peer.name", "own name"}}},
		{"peer at self", node + strings.Replace(peer, "10.0.0.2", "10.0.0.1", 1), []fault{{6, "peer.address", "own listen"}}},
		{"volume required", node + "[[volume]]\n", []fault{
			{4, "volume.name", "missing"}, {4, "volume.size", "missing"}, {4, "volume.backing", "missing"}, {4, "volume.export", "missing"}}},
		{"size unit", node + strings.Replace(vol, "1GiB", "10", 1), []fault{{6, "volume.size", "no unit"}}},
		{"size decimal unit", node + strings.Replace(vol, "1GiB", "10GB", 1), []fault{{6, "volume.size", "not a size"}}},
		{"size number", node + strings.Replace(vol, `"1GiB"`, "1024", 1), []fault{{6, "volume.size", "number 1024"}}},
		{"size zero", node + strings.Replace(vol, "1GiB", "0B", 1), []fault{{6, "volume.size", "more than zero"}}},
		{"size negative", node + strings.Replace(vol, "1GiB", "-1KiB", 1), []fault{{6, "volume.size", "more than zero"}}},
		{"size overflow", node + strings.Replace(vol, "1GiB", "8388608TiB", 1), []fault{{6, "volume.size", "8 EiB"}}},
		{"size odd", node + strings.Replace(vol, "1GiB", "1000B", 1), []fault{{6, "volume.size", "512"}}},
		{"export word", node + strings.Replace(vol, "unix:/s", "/s", 1), []fault{{8, "volume.export", "not an export"}}},
		{"export relative", node + strings.Replace(vol, "unix:/s", "unix:s", 1), []fault{{8, "volume.export", "absolute"}}},
		{"export length", node + strings.Replace(vol, "unix:/s", "unix:/"+strings.Repeat("s", 107), 1), []fault{{8, "volume.export", "at most 107"}}},
		{"export off loopback", node + strings.Replace(vol, "unix:/s", "tcp:10.0.0.1:10809", 1), []fault{{8, "volume.export", "TLS"}}},
		{"export everywhere", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1), []fault{{8, "volume.export", "TLS"}}},
		{"accounts", node + "control_owner = \"no-such-user\"\ncontrol_group = \"no such group\"\ncontrol_readers = \"4294967295\"\n", []fault{
			{4, "node.control_owner", `no user "no-such-user"`}, {5, "node.control_group", `no group "no such group"`}, {6, "node.control_readers", "not the number of a group"}}},
		{"readers are operators", node + "control_group = \"root\"\ncontrol_readers = \"0\"\n", []fault{{5, "node.control_readers", "everything"}}},
		{"export accounts", node + vol + "export_owner = \"nobody-here\"\nexport_group = 100\n", []fault{{9, "volume.export_owner", "no user"}, {10, "volume.export_group", "number 100"}}},
		{"export mode", node + vol + "export_mode = \"rw\"\n", []fault{{9, "volume.export_mode", "not a mode"}}},
		{"export mode of all", node + vol + "export_mode = \"0666\"\n", []fault{{9, "volume.export_mode", "every user of this host"}}},
		{"export mode of a program", node + vol + "export_mode = \"0700\"\n", []fault{{9, "volume.export_mode", "means nothing"}}},
		{"export mode of nobody", node + vol + "export_mode = \"0060\"\n", []fault{{9, "volume.export_mode", "means nothing"}}},
		{"export group by TCP", node + strings.Replace(vol, "unix:/s", "tcp:127.0.0.1:10809", 1) + "export_group = \"root\"\n", []fault{{9, "volume.export_group", "unix: exports"}}},
		{"export host name", node + strings.Replace(vol, "unix:/s", "tcp:alpha.example:10809", 1) + secure, []fault{{8, "volume.export", "IP address"}}},
		{"export by TLS on a socket", node + vol + secure, []fault{{9, "volume.export_tls", "tcp: exports"}}},
		{"export_tls text", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + "export_tls = \"/etc/qrbd/tls\"\n", []fault{{9, "volume.export_tls", "[volume.export_tls]"}}},
		{"export_tls empty", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + "[volume.export_tls]\n", []fault{
			{9, "volume.export_tls.certificate", "missing"}, {9, "volume.export_tls.key", "missing"}, {9, "volume.export_tls.client_ca", "missing"}, {9, "volume.export_tls.clients", "missing"}}},
		{"export_tls keys", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + strings.NewReplacer("/c.pem", "c.pem", "clients", "client").Replace(secure), []fault{
			{9, "volume.export_tls.clients", "missing"}, {10, "volume.export_tls.certificate", "absolute"}, {13, "volume.export_tls.client", "unknown key"}}},
		{"export_tls clients", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + strings.Replace(secure, `"db1"`, `"db1", "", "db1", 7`, 1), []fault{
			{13, "volume.export_tls.clients", "entry 4"}, {13, "volume.export_tls.clients", "entry 2"}, {13, "volume.export_tls.clients", `"db1" is empty or there twice`}}},
		{"export_tls nobody", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + strings.Replace(secure, `"db1"`, "", 1), []fault{{13, "volume.export_tls.clients", "nobody"}}},
		{"export_tls differs", node + strings.Replace(vol, "unix:/s", "tcp::10809", 1) + secure + strings.NewReplacer("crm", "web", "/b", "/c", "unix:/s", "tcp::10809").Replace(vol) +
			strings.Replace(secure, "/ca.pem", "/ca2.pem", 1), []fault{{18, "volume.export", "also the export of volume crm"}}},
		{"exports overlap", node + strings.Replace(vol, "unix:/s", "tcp:127.0.0.1:10809", 1) + strings.NewReplacer("crm", "web", "/b", "/c", "unix:/s", "tcp:0.0.0.0:10809").Replace(vol) +
			secure, []fault{{13, "volume.export", "overlaps tcp:127.0.0.1:10809 of volume crm"}}},
		{"export port", node + strings.Replace(vol, "unix:/s", "tcp:127.0.0.1:x", 1), []fault{{8, "volume.export", "port"}}},
		{"export twice", node + vol + strings.NewReplacer("crm", "web", "/b", "/c").Replace(vol), []fault{{13, "volume.export", "in line 8"}}},
		{"export is control", node + "control = \"/s\"\n" + vol, []fault{{9, "volume.export", "control socket"}}},
		{"export is metrics", node + "metrics = \":9790\"\n" + strings.Replace(vol, "unix:/s", "tcp:127.0.0.1:9790", 1), []fault{{9, "volume.export", "node.metrics"}}},
		{"volume twice", node + vol + strings.NewReplacer("/b", "/c", "/s", "/t").Replace(vol), []fault{{10, "volume.name", "in line 5"}}},
		{"backing twice", node + vol + strings.NewReplacer("crm", "web", `"/b"`, `"/x/../b"`, "/s", "/t").Replace(vol), []fault{{12, "volume.backing", "the backing of volume crm"}}},
		{"backing is metadata", node + "state = \"/q\"\n" + strings.Replace(vol, "/b", "/q/crm.meta", 1), []fault{{8, "volume.backing", "the metadata of volume crm"}}},
		{"peers unknown", node + vol + "peers = [\"beta\"]\n", []fault{{9, "volume.peers", `no [[peer]] named "beta"`}}},
		{"peers twice", node + vol + "peers = [\"beta\", \"beta\"]\n" + peer, []fault{{9, "volume.peers", "twice"}}},
		{"peers kind", node + vol + "peers = \"beta\"\n" + peer, []fault{{9, "volume.peers", "a list"}}},
		{"disks", node + vol + "on_no_data = \"wait\"\non_read_error = \"ignore\"\ndisk_timeout = 0\n", []fault{{9, "volume.on_no_data", "suspend-io"}, {10, "volume.on_read_error", "detach"}, {11, "volume.disk_timeout", "number 0"}}},
		{"protocol", node + vol + "protocol = \"c\"\n", []fault{{9, "volume.protocol", `"A", "B" or "C"`}}},
		{"protocols", node + vol + "peers = []\n[volume.protocols]\nbeta = \"A\"\ngamma = \"B\"\ndelta = 3\n" + peer, []fault{
			{11, "volume.protocols.beta", "not among the volume's peers"}, {12, "volume.protocols.gamma", "no [[peer]]"}, {13, "volume.protocols.delta", "must be"}}},
		{"inline protocols", node + vol + "protocols = { beta = \"X\" }\n" + peer, []fault{{9, "volume.protocols.beta", "not a protocol"}}},
		{"tuning", node + vol + "resync_rate_max = \"fast\"\nwrite_timeout = 3\n", []fault{{9, "volume.resync_rate_max", "no unit"}, {10, "volume.write_timeout", "number 3"}}},
		{"floor above limit", node + vol + "resync_rate_max = \"1MiB\"\nresync_rate_min = \"2MiB\"\n", []fault{{10, "volume.resync_rate_min", "more than resync_rate_max"}}},
		{"window alone", node + vol + "verify_window = \"01:00-02:00\"\n", []fault{{9, "volume.verify_window", "without verify_every"}}},
		{"window", node + vol + "verify_every = \"1h\"\nverify_window = \"1-25:00\"\n", []fault{{10, "volume.verify_window", "not a window"}}},
		{"all at once", "[node]\nname = \"\"\nport = 1\n" + strings.Replace(vol, "1GiB", "1", 1) + "peer = \"x\"\n" + "[[peer]]\nnam = \"b\"\n", []fault{
			{1, "node.listen", "missing"}, {2, "node.name", "not a name"}, {3, "node.port", "unknown"}, {6, "volume.size", "unit"}, {9, "volume.peer", "unknown"},
			{10, "peer.name", "missing"}, {10, "peer.address", "missing"}, {10, "peer.key", "missing"}, {11, "peer.nam", "unknown"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("q.toml", []byte(fill(t, c.file)))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if len(e.Faults) != len(c.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(e.Faults), len(c.want), e)
			}
			for i, w := range c.want {
				f := e.Faults[i]
				if f.Line != w.line || f.Key != w.key || !strings.Contains(f.Text, w.text) {
					t.Errorf("fault %d: line %d, key %s: %s\nwant line %d, key %s: …%s…", i, f.Line, f.Key, f.Text, w.line, w.key, w.text)
				}
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse("/etc/q.toml", []byte("[node]\nname = \"a\"\nlisten = \":1\"\n\nmetrix = \"\"\n"))
	want := "/etc/q.toml:5: node.metrix: unknown key: this section has name, listen, state, archive_dir, control, control_owner, control_group, control_readers, devices, metrics, heartbeat, peer_timeout"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// secure is the table that an export off loopback needs, from line 9 on after node
// and vol.
const secure = `[volume.export_tls]
certificate = "/c.pem"
key = "/k.pem"
client_ca = "/ca.pem"
clients = ["db1"]
`

func TestExportAccess(t *testing.T) {
	agents, root := Account{}, Account{"root", 0}
	for keys, want := range map[string]ExportAccess{
		"":                        {agents, agents, 0o600},
		"export_owner = \"root\"": {root, agents, 0o600},
		"export_group = \"root\"": {agents, root, 0o660},
		"export_group = \"4711\"": {agents, Account{"4711", 4711}, 0o660},
		"export_mode = \"660\"":   {agents, agents, 0o660},
		"export_group = \"root\"\nexport_mode = \"0600\"\nexport_owner = \"0\"": {Account{"0", 0}, root, 0o600},
	} {
		c, err := Parse("f", []byte("[node]\nname = \"a\"\nlisten = \":1\"\n[[volume]]\nname = \"x\"\nsize = \"1MiB\"\nbacking = \"/x\"\nexport = \"unix:/s\"\n"+keys+"\n"))
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		if got := c.Volumes[0].ExportAccess; got != want {
			t.Errorf("%s: %+v, want %+v", keys, got, want)
		}
	}
}

func TestExportTLS(t *testing.T) {
	base := "[node]\nname = \"a\"\nlisten = \":1\"\n"
	for _, address := range []string{"127.0.0.1:10809", "10.0.0.1:10809", ":10809", "0.0.0.0:10809", "[::]:10809", "[fe80::1%eth0]:10809"} {
		file := base
		for _, n := range []string{"x", "y"} { // certificates are shared by an address, lists of clients are not
			file += "[[volume]]\nname = \"" + n + "\"\nsize = \"1MiB\"\nbacking = \"/" + n + "\"\nexport = \"tcp:" + address + "\"\n" +
				strings.Replace(secure, "db1", "db-"+n, 1)
		}
		c, err := Parse("f", []byte(file))
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		got := c.Volumes[1].ExportTLS
		if got == nil || got.Certificate != "/c.pem" || got.Key != "/k.pem" || got.ClientCA != "/ca.pem" || !slices.Equal(c.Volumes[1].ExportClients, []string{"db-y"}) {
			t.Errorf("%s: %+v", address, got)
		}
		if c.Volumes[0].Export.Loopback() != (address == "127.0.0.1:10809") {
			t.Errorf("%s: loopback %v", address, c.Volumes[0].Export.Loopback())
		}
	}
}

func TestVolumesMayShareTCPAddress(t *testing.T) {
	file := "[node]\nname = \"a\"\nlisten = \":1\"\n"
	for _, n := range []string{"x", "y"} {
		file += "[[volume]]\nname = \"" + n + "\"\nsize = \"1MiB\"\nbacking = \"/" + n + "\"\nexport = \"tcp:[::1]:10809\"\n"
	}
	if _, err := Parse("f", []byte(file)); err != nil {
		t.Fatal(err)
	}
}

func TestBackingsThroughLinkAreOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "img"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := "[node]\nname = \"a\"\nlisten = \":1\"\n"
	for _, n := range []string{"img", "link"} {
		file += "[[volume]]\nname = \"" + n + "\"\nsize = \"1MiB\"\nbacking = \"" + filepath.Join(dir, n) + "\"\nexport = \"tcp:127.0.0.1:10809\"\n"
	}
	_, err := Parse("f", []byte(file))
	if err == nil || !strings.Contains(err.Error(), "f:12: volume.backing") {
		t.Errorf("got %v, want the second backing refused", err)
	}
}

func TestOwnKeyOfPeer(t *testing.T) {
	own := newKey(t)
	for _, key := range []string{`key = "` + own + `"`, `keys = ["` + newKey(t) + `", "` + own + `"]`} {
		c, err := Parse("f", []byte("[node]\nname = \"a\"\nlisten = \":1\"\n[[peer]]\nname = \"b\"\naddress = \"b:1\"\n"+key+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		err = c.CheckIdentity(own)
		if err == nil || !strings.HasPrefix(err.Error(), "f:7: peer.key") {
			t.Errorf("%s: got %v, want a fault in line 7", key, err)
		}
		if err := c.CheckIdentity(newKey(t)); err != nil {
			t.Errorf("another's key: %v", err)
		}
	}
}

func TestLoadAbsent(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "qrbd init") {
		t.Errorf("got %v, want what to do", err)
	}
}

// The template must be valid as written, and stay so with every comment that
// holds a key taken off: it is the reference of all keys.
func TestTemplate(t *testing.T) {
	node := Node{Name: "alpha", Listen: "10.0.0.1:7790", State: `/var/lib/q"\`, Control: "/run/q.sock"}
	text := Template(node)
	c, err := Parse("t", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name != node.Name || c.Node.State != node.State || c.Node.Listen != node.Listen {
		t.Errorf("node %+v", c.Node)
	}
	var full strings.Builder
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		full.WriteString(strings.ReplaceAll(line, `gamma = "A"`, `beta = "A"`) + "\n")
	}
	file := strings.Replace(full.String(), "qk1...", newKey(t), 1)
	c, err = Parse("t", []byte(strings.Replace(file, "qk1...", newKey(t), 1)))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Peers) != 1 || len(c.Volumes) != 2 || c.Volumes[1].ExportTLS == nil || c.Volumes[0].Peers[0].Mode != protocol.ModeA {
		t.Errorf("peers %+v volumes %+v", c.Peers, c.Volumes)
	}
}

func TestStanzaIsAPeer(t *testing.T) {
	key := newKey(t)
	c, err := Parse("f", []byte("[node]\nname = \"a\"\nlisten = \":1\"\n"+Stanza("beta", "10.0.0.2:7790", key)))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Peers[0]; p.Name != "beta" || p.Address != "10.0.0.2:7790" || p.Keys[0] != key {
		t.Errorf("got %+v", p)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("[[volume]]\nprotocols = { a.b = 1 }\n[volume.x.y]\n"))
	f.Add([]byte("node = [{}]\npeer = [1]\nvolume = [[]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if (c == nil) == (err == nil) {
			t.Errorf("config %v with error %v", c, err)
		}
	})
}
