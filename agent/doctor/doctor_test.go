package doctor

import (
	"context"
	"encoding/binary"
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

// quicPort answers probes as a QUIC server does, up to a size; mangle may spoil the
// answer.
func quicPort(t *testing.T, largest int, mangle func([]byte) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n < 1200 || n > largest || b[0]&0xc0 != 0xc0 || binary.BigEndian.Uint32(b[1:]) != probeVersion || b[5] != 8 || b[14] != 8 {
				continue
			}
			out := append([]byte{0x80, 0, 0, 0, 0, 8}, b[15:23]...)
			out = append(append(out, 8), b[6:14]...)
			out = binary.BigEndian.AppendUint32(out, 1)
			if mangle != nil {
				out = mangle(out)
			}
			conn.WriteTo(out, from)
		}
	}()
	return conn.LocalAddr().String()
}

// fast is a probe for a loopback that answers at once.
var fast = probe{tries: 2, wait: 100 * time.Millisecond}

func TestProbe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if r, err := fast.quic(ctx, quicPort(t, 9000, nil)); err != nil || r.largest != 8952 || r.rtt <= 0 || r.rtt > 10*time.Second {
		t.Errorf("all sizes: %+v, %v", r, err)
	}
	if r, err := fast.quic(ctx, quicPort(t, 1300, nil)); err != nil || r.largest != 1200 {
		t.Errorf("small ones only: %+v, %v", r, err)
	}
	foreign := func(b []byte) []byte { b[7] ^= 1; return b } // an answer to somebody else
	if r, err := fast.quic(ctx, quicPort(t, 9000, foreign)); !errors.Is(err, errNoAnswer) {
		t.Errorf("answers of others: %+v, %v", r, err)
	}
	if r, err := fast.quic(ctx, quicPort(t, 9000, func(b []byte) []byte { return b[:20] })); !errors.Is(err, errNoAnswer) {
		t.Errorf("answers cut short: %+v, %v", r, err)
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.LocalAddr().String()
	l.Close()
	if r, err := fast.quic(ctx, free); !errors.Is(err, errRefused) {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if _, err := fast.quic(over, quicPort(t, 0, nil)); err == nil {
		t.Error("a probe goes on after its end")
	}
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
		name string
		peer config.Peer
		link *control.LinkStatus
		want []string // level and part of each text
	}{
		{"in order", config.Peer{Address: quicPort(t, 9000, nil)}, &up, []string{"ok answers after", "ok MTU of 1500 at least", "ok round trip 250µs; the peer has opened it", "ok both speak version 1.0"}},
		{"without an agent", config.Peer{Address: quicPort(t, 9000, nil)}, nil, []string{"ok answers after", "ok MTU of 1500 at least"}},
		{"a tunnel", config.Peer{Address: quicPort(t, 1400, nil)}, nil, []string{"ok answers after", "note below 1500"}},
		{"over TCP", config.Peer{Address: taken, Transport: session.TCP}, nil, []string{"ok takes connections"}},
		{"nobody there", config.Peer{Address: "127.0.0.1:1", Transport: session.TCP}, nil, []string{"change refused"}},
		{"an unknown name", config.Peer{Address: "peer.invalid:7790"}, nil, []string{"change peer.invalid"}},
		{"no session", config.Peer{Address: quicPort(t, 9000, nil)}, &control.LinkStatus{Peer: "beta", Reason: "wrong key"},
			[]string{"ok answers after", "ok MTU", "change no session with it: wrong key"}},
		{"dialled here", config.Peer{Address: quicPort(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.Dialled = true }), []string{"ok answers", "ok MTU", "ok this node has opened it", "ok both"}},
		{"an older peer", config.Peer{Address: quicPort(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.Protocol = "0.9" }), []string{"ok answers", "ok MTU", "ok session", "note version 0.9"}},
		{"losses", config.Peer{Address: quicPort(t, 9000, nil)}, with(func(l *control.LinkStatus) { l.PacketsLost = 500 }), []string{"ok answers", "ok MTU", "ok session", "ok both", "note 10.0 %"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.peer.Name = "beta"
			e := &exam{probe: fast}
			if tt.link != nil {
				e.o.Status = &control.NodeStatus{Links: []control.LinkStatus{*tt.link}}
			}
			got := e.peer(t.Context(), &tt.peer)
			if len(got) != len(tt.want) {
				t.Fatalf("%+v, want %q", got, tt.want)
			}
			for i, f := range got {
				level, text, _ := strings.Cut(tt.want[i], " ")
				if string(f.Level) != level || !strings.Contains(f.Text, text) || f.Level != OK && f.Fix == "" {
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
