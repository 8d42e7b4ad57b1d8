package doctor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/reach"
	"github.com/qrbd/qrbd/agent/reach/reachtest"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a machine in good order below a directory of the test.
func host(t *testing.T) Host {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{"sys/module/nbd", "dev", "proc/net", "proc/sys/kernel", "proc/self"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root,
		Buffers:     func(int) (int, int, error) { return wantBuffers, wantBuffers, nil },
		ClockSynced: func() (bool, error) { return true, nil },
		FileSystem:  func(string) (FileSystem, error) { return FileSystem{FreeBytes: 1 << 40, Size: 1 << 41}, nil },
	}
}

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// node is a configuration in good order, with its files.
func node(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	c := &config.Config{File: "/etc/qrbd/qrbd.toml", Node: config.Node{Name: "alpha", Listen: "127.0.0.1:7790", State: filepath.Join(dir, "state")}}
	c.Volumes = []config.Volume{{Name: "crm", Size: 1 << 20, Backing: filepath.Join(dir, "crm.img")}}
	if err := os.Mkdir(c.Node.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := session.LoadOrCreateIdentity(c.Node.State); err != nil {
		t.Fatal(err)
	}
	put(t, c.Volumes[0].Backing, strings.Repeat("x", 1<<20), 0o600)
	put(t, c.MetaPath("crm"), "metadata", 0o600)
	return c
}

func running(o *Options) {
	o.Version = "1.2.3"
	o.Status = &control.NodeStatus{Node: "alpha", Version: "1.2.3"}
}

// TestFindings: each thing that can be wrong, one by one, on a host that is otherwise
// in order.
func TestFindings(t *testing.T) {
	tests := []struct {
		name   string
		change func(o *patient)
		check  string
		level  Level
		text   string // part of the text
		fix    string // part of the fix
	}{
		{"buffers", func(o *patient) { o.Host.Buffers = func(int) (int, int, error) { return 208 << 10, 208 << 10, nil } },
			"UDP buffers", Change, "grants 208 KiB", "net.core.rmem_max=7500000"},
		{"one buffer", func(o *patient) {
			o.Host.Buffers = func(int) (int, int, error) { return wantBuffers, wantBuffers - 1, nil }
		}, "UDP buffers", Change, "to send", "wmem_max"},
		{"buffers are not told", func(o *patient) {
			o.Host.Buffers = func(int) (int, int, error) { return 0, 0, errors.New("no socket") }
		},
			"UDP buffers", Unknown, "no socket", ""},
		{"drops", func(o *patient) {
			o.write("proc/net/udp", "  sl  local_address rem_address   st tx rx tr tm retrnsmt uid timeout inode ref pointer drops\n"+
				" 1: 0100007F:1E6E 00000000:0000 07 0:0 00:00000000 00000000 0 0 1 2 0000 17\n 2: 0100007F:1E6F 00000000:0000 07 0:0 00:00000000 00000000 0 0 1 2 0000 99\n")
		}, "UDP drops", Note, "dropped 17 datagrams", "larger UDP buffers"},
		{"nbd is not loaded", func(o *patient) {
			o.remove("sys/module/nbd")
			o.write("proc/sys/kernel/osrelease", "6.1.0\n")
			o.write("lib/modules/6.1.0/modules.dep", "kernel/drivers/block/nbd.ko.xz:\n")
		}, "kernel devices", Note, "not loaded", "modprobe nbd"},
		{"FUSE", func(o *patient) {
			o.remove("sys/module/nbd")
			o.write("dev/fuse", "")
			o.write("dev/loop-control", "")
		}, "kernel devices", OK, "FUSE and loop", ""},
		{"no way to attach", func(o *patient) { o.remove("sys/module/nbd") }, "kernel devices", Note, "cannot be attached", "a kernel with nbd"},
		{"clock", func(o *patient) { o.Host.ClockSynced = func() (bool, error) { return false, nil } }, "clock", Note, "nothing keeps it right", "chrony"},
		{"no state directory", func(o *patient) { o.Config.Node.State += "x" }, "state directory", Change, "does not exist", "qrbd create"},
		{"state is open to all", func(o *patient) { os.Chmod(o.Config.Node.State, 0o777) }, "state directory", Change, "mode 0777", "chmod 700"},
		{"state can be read", func(o *patient) { os.Chmod(o.Config.Node.State, 0o755) }, "state directory", Note, "mode 0755", "chmod 700"},
		{"state in memory", func(o *patient) {
			o.Host.FileSystem = func(string) (FileSystem, error) { return FileSystem{FreeBytes: 1 << 40, Volatile: true}, nil }
		}, "state directory", Change, "gone after a reboot", "on a disk"},
		{"no room", func(o *patient) {
			o.Host.FileSystem = func(string) (FileSystem, error) { return FileSystem{FreeBytes: 1 << 20}, nil }
		}, "state directory", Change, "1.0 MiB are free", "make room"},
		{"no key", func(o *patient) { os.Remove(filepath.Join(o.Config.Node.State, session.KeyFile)) }, "identity key", Note, "none yet", "qrbd identity"},
		{"key is open to all", func(o *patient) { os.Chmod(filepath.Join(o.Config.Node.State, session.KeyFile), 0o644) }, "identity key", Change, "mode 0644", ""},
		{"archives need more", func(o *patient) {
			o.Host.FileSystem = func(string) (FileSystem, error) { return FileSystem{FreeBytes: 512 << 10}, nil }
		}, "archive space", Change, "cannot be archived", "archive_dir"},
		{"fence-peer is not there", func(o *patient) { o.Config.Volumes[0].Fencing = config.FencingResource }, "hooks", Change, "fence-peer of volume crm cannot be run", "executable"},
		{"backing is not there", func(o *patient) { os.Remove(o.Config.Volumes[0].Backing) }, "backing of crm", Note, "does not exist", "qrbd create crm"},
		{"no metadata", func(o *patient) { os.Remove(o.Config.MetaPath("crm")) }, "backing of crm", Note, "no metadata", "qrbd create crm"},
		{"backing shrank", func(o *patient) { os.Truncate(o.Config.Volumes[0].Backing, 4096) }, "backing of crm", Change, "has 4096 bytes", ""},
		{"backing can be read", func(o *patient) { os.Chmod(o.Config.Volumes[0].Backing, 0o644) }, "backing of crm", Note, "mode 0644", "chmod 600"},
		{"backing is a directory", func(o *patient) { o.Config.Volumes[0].Backing = o.Config.Node.State }, "backing of crm", Change, "neither a file", ""},
		{"backing may not grow", func(o *patient) {
			o.Config.Volumes[0].Size = 1 << 42
			os.Truncate(o.Config.Volumes[0].Backing, 1<<42)
		}, "backing of crm", Note, "may grow by", "fallocate"},
		{"no configuration", func(o *patient) { o.Config, o.Fault = nil, errors.New("there is none") }, "configuration", Change, "there is none", "qrbd init"},
		{"faults in it", func(o *patient) {
			_, err := config.Parse("q.toml", []byte("[node]\nname = \"alpha\"\n"))
			o.Config, o.Fault = nil, err
		}, "configuration", Change, "q.toml", "qrbd config check"},
		{"no agent", func(o *patient) { o.Status, o.StatusFault = nil, errors.New("nobody answers") }, "agent", Note, "nobody answers", "qrbd agent"},
		{"another version", func(o *patient) { o.Status.Version = "1.0.0" }, "agent", Change, "1.0.0", "restart the agent"},
		{"an expired certificate", func(o *patient) {
			o.Status.Certificates = []control.CertificateStatus{{Use: "peers"}, {Use: "tcp:10.0.0.1:10809", Ends: time.Now().Add(-50 * time.Hour)}}
		}, "certificate of tcp:10.0.0.1:10809", Change, "expired 2 days ago", "put a new one"},
		{"a certificate that ends soon", func(o *patient) {
			o.Status.Certificates = []control.CertificateStatus{{Use: "tcp:10.0.0.1:10809", Ends: time.Now().Add(100 * time.Hour)}}
		}, "certificate of tcp:10.0.0.1:10809", Note, "in 4 days", "put a new one"},
		{"a certificate", func(o *patient) {
			o.Status.Certificates = []control.CertificateStatus{{Use: "tcp:10.0.0.1:10809", Ends: time.Now().Add(1000 * time.Hour)}}
		}, "certificate of tcp:10.0.0.1:10809", OK, "good for 41 days", ""},
		{"a volume", func(o *patient) {
			o.Status.Volumes = []volume.Status{{Name: "crm", Disk: "failed", Reason: "EIO"}}
		}, "volume crm", Note, "failed (EIO)", "qrbd explain crm"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := patient{Options{Host: host(t), Config: node(t)}, t}
			running(&o.Options)
			if r := Examine(t.Context(), o.Options); !r.Healthy || len(noted(r)) > 0 {
				t.Fatalf("a sound host: %v", noted(r))
			}
			tt.change(&o)
			r := Examine(t.Context(), o.Options)
			var of []Finding
			for _, f := range r.Findings {
				if f.Check == tt.check {
					of = append(of, f)
					if f.Level == tt.level && strings.Contains(f.Text, tt.text) && strings.Contains(f.Fix, tt.fix) {
						if (f.Level == Change || f.Level == Note) && f.Fix == "" {
							t.Errorf("it does not say what to do: %+v", f)
						}
						if r.Healthy != (r.Changes() == 0) || tt.level == Change && r.Healthy {
							t.Errorf("healthy %v with %d changes", r.Healthy, r.Changes())
						}
						return
					}
				}
			}
			t.Errorf("%s: %+v, want %s %q %q", tt.check, of, tt.level, tt.text, tt.fix)
		})
	}
}

// patient is what a test examines.
type patient struct {
	Options
	t *testing.T
}

func (p *patient) write(name, text string) { put(p.t, filepath.Join(p.Host.Root, name), text, 0o644) }

func (p *patient) remove(name string) {
	if err := os.RemoveAll(filepath.Join(p.Host.Root, name)); err != nil {
		p.t.Fatal(err)
	}
}

// noted returns what is not in order.
func noted(r Report) []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Level != OK {
			out = append(out, f)
		}
	}
	return out
}

func TestPeers(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	taken := tcp.Addr().String()
	up := control.LinkStatus{Peer: "beta", Up: true, Transport: "quic", Protocol: "1.0", RTTMicros: 250, PacketsSent: 5000}
	with := func(change func(l *control.LinkStatus)) *control.LinkStatus {
		l := up
		change(&l)
		return &l
	}
	tests := []struct {
		name  string
		peer  config.Peer
		link  *control.LinkStatus
		reach []control.PeerReach
		want  []string // level and part of each text
	}{
		{"in order", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, &up, nil, []string{"ok answers after", "ok MTU of 1500 at least", "ok which the peer has opened, with a round trip of 250µs", "ok both speak version 1.0"}},
		{"without an agent", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, nil, nil, []string{"ok answers after", "ok MTU of 1500 at least"}},
		{"a tunnel", config.Peer{Address: reachtest.QUIC(t, 1400, nil)}, nil, nil, []string{"ok answers after", "note below 1500"}},
		{"over TCP", config.Peer{Address: taken, Transport: session.TCP}, nil, nil, []string{"ok answers after"}},
		{"nobody there", config.Peer{Address: "127.0.0.1:1", Transport: session.TCP}, nil, nil, []string{"change nobody listens"}},
		{"an unknown name", config.Peer{Address: "peer.invalid:7790"}, nil, nil, []string{"change peer.invalid"}},
		{"no session", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, &control.LinkStatus{Peer: "beta", Reason: "wrong key"}, nil,
			[]string{"ok answers after", "ok MTU", "change no session with it: wrong key"}},
		{"dialled here", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.Dialled = true }), nil, []string{"ok answers", "ok MTU", "ok which this node has opened", "ok both"}},
		{"an older peer", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.Protocol = "0.9" }), nil, []string{"ok answers", "ok MTU", "ok session", "note version 0.9"}},
		{"losses", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.PacketsLost = 500 }), nil, []string{"ok answers", "ok MTU", "ok session", "ok both", "note 10.0 %"}},
		{"it reaches us", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, nil, []control.PeerReach{{Peer: "beta", Address: "10.0.0.1:7790", RTTMicros: 250, Largest: 1452, Build: "1.2.3"}},
			[]string{"ok answers after", "ok MTU", "ok it reaches this node at 10.0.0.1:7790 after 250µs", "ok of this version too"}},
		{"it does not", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, nil, []control.PeerReach{{Peer: "beta", Address: "10.0.0.9:7790", Reason: "no answer", Build: "1.2.2"}},
			[]string{"ok answers after", "ok MTU", "change does not reach this node at 10.0.0.9:7790: no answer", "note its agent is 1.2.2"}},
		{"its packets are cut", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, nil, []control.PeerReach{{Peer: "beta", Address: "10.0.0.9:7790", RTTMicros: 1, Largest: 1200, Build: "1.2.3"}},
			[]string{"ok answers after", "ok MTU", "note packets with 1452", "ok of this version too"}},
		{"it was not asked", config.Peer{Address: reachtest.QUIC(t, 9000, nil)}, nil, []control.PeerReach{{Peer: "beta", Unasked: "an old one"}, {Peer: "gamma", Reason: "not this one"}},
			[]string{"ok answers after", "ok MTU", "unknown not known: an old one"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.peer.Name = "beta"
			e := &exam{probe: reach.Probe{Tries: 2, Wait: 100 * time.Millisecond}}
			e.o.Version, e.o.Reach = "1.2.3", tt.reach
			if tt.link != nil {
				e.o.Status = &control.NodeStatus{Links: []control.LinkStatus{*tt.link}}
			}
			got := e.peer(t.Context(), &tt.peer)
			if len(got) != len(tt.want) {
				t.Fatalf("%+v, want %q", got, tt.want)
			}
			for i, f := range got {
				level, text, _ := strings.Cut(tt.want[i], " ")
				if string(f.Level) != level || !strings.Contains(f.Text, text) || f.Level != OK && f.Level != Unknown && f.Fix == "" {
					t.Errorf("%+v, want %q", f, tt.want[i])
				}
			}
		})
	}
}

// TestThisHost: the real machine is asked without an error.
func TestThisHost(t *testing.T) {
	h := ThisHost()
	if r, s, err := h.Buffers(64 << 10); err != nil || r < 32<<10 || s < 32<<10 {
		t.Errorf("buffers %d, %d, %v", r, s, err)
	}
	if _, err := h.ClockSynced(); err != nil {
		t.Error(err)
	}
	if f, err := h.FileSystem(filepath.Join(t.TempDir(), "not", "there")); err != nil || f.Size == 0 {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := h.FileSystem("/dev/shm"); err == nil && !f.Volatile {
		t.Errorf("%+v is not in memory", f)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 10 << 30: "10.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
}
