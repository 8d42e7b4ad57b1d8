package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// created makes a replica's files; change alters its superblock.
func created(t *testing.T, change func(s *meta.Super)) (*config.Config, *config.Volume) {
	t.Helper()
	cfg := testConfig(t)
	v := cfg.Volume("crm")
	if err := os.MkdirAll(cfg.ArchivePath("crm"), 0o700); err != nil {
		t.Fatal(err)
	}
	super := newSuper(cfg, v)
	change(&super)
	err := errors.Join(meta.Create(cfg.MetaPath("crm"), super, false), os.WriteFile(v.Backing, make([]byte, v.Size), 0o600),
		os.WriteFile(filepath.Join(cfg.ArchivePath("crm"), "note"), nil, 0o600), os.WriteFile(cfg.VerifyPath("crm"), []byte("{}"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return cfg, v
}

func TestDestroyOffline(t *testing.T) {
	data := func(s *meta.Super) { s.Current, s.Disk = 7, protocol.UpToDate }
	primary := func(s *meta.Super) { data(s); s.Primary = true }
	for _, c := range []struct {
		name    string
		change  func(*meta.Super)
		r       control.DestroyRequest
		refused string
	}{
		{"brand new", func(*meta.Super) {}, control.DestroyRequest{}, ""},
		{"with data", data, control.DestroyRequest{}, "--force"},
		{"with data, by force", data, control.DestroyRequest{Force: true}, ""},
		{"was primary", primary, control.DestroyRequest{}, "was primary"},
		{"with everything", primary, control.DestroyRequest{Force: true, Backing: true, Archives: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, v := created(t, c.change)
			err := DestroyOffline(cfg, "crm", c.r)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) || !there(cfg.MetaPath("crm")) {
					t.Errorf("%v", err)
				}
				if _, err := meta.Look(cfg.MetaPath("crm")); err != nil {
					t.Errorf("a refusal has changed it: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if there(cfg.MetaPath("crm")) || there(cfg.VerifyPath("crm")) || there(v.Backing) == c.r.Backing || there(cfg.ArchivePath("crm")) == c.r.Archives {
				t.Error("too much or too little is left")
			}
			if err := DestroyOffline(cfg, "crm", c.r); err == nil || !strings.Contains(err.Error(), "nothing to destroy") {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// TestDestroyCutShort: what a destroy leaves that could not go on is no replica any more,
// and destroying it again ends it.
func TestDestroyCutShort(t *testing.T) {
	cfg, v := created(t, func(s *meta.Super) { s.Current = 7 })
	if err := errors.Join(os.Remove(v.Backing), os.MkdirAll(v.Backing, 0o700)); err != nil {
		t.Fatal(err)
	}
	r := control.DestroyRequest{Force: true, Backing: true}
	if err := DestroyOffline(cfg, "crm", r); err == nil || !there(cfg.MetaPath("crm")) {
		t.Fatalf("%v", err)
	}
	if _, err := meta.Look(cfg.MetaPath("crm")); err == nil {
		t.Error("it still is a replica")
	}
	if err := os.Remove(v.Backing); err != nil {
		t.Fatal(err)
	}
	if err := DestroyOffline(cfg, "crm", r); err != nil || there(cfg.MetaPath("crm")) {
		t.Errorf("%v", err)
	}
}

// TestMayDestroy: not what is in use, nor, unforced, what may be the last copy.
func TestMayDestroy(t *testing.T) {
	full := volume.PeerStatus{Name: "beta", Connection: "connected", Replication: "established", Disk: "up-to-date"}
	lacking := full
	lacking.OutOfSync = 4096
	away := full
	away.Connection = "connecting"
	for _, c := range []struct {
		name  string
		role  string
		peer  volume.PeerStatus
		force bool
		ok    bool
	}{
		{"secondary of one that has all", "secondary", full, false, true},
		{"primary", "primary", full, true, false},
		{"the peer lacks a block", "secondary", lacking, false, false},
		{"the peer is away", "secondary", away, false, false},
		{"by force", "secondary", away, true, true},
	} {
		err := mayDestroy(volume.Status{Name: "crm", Role: c.role, Generation: "00000000000000aa", Peers: []volume.PeerStatus{c.peer}}, c.force)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := mayDestroy(volume.Status{Role: "secondary", Generation: protocol.Generation(0).String()}, false); err != nil {
		t.Errorf("a volume that never held data: %v", err)
	}
}

// TestDestroyWhileRunning: the agent goes on without the replica, and can make it anew.
func TestDestroyWhileRunning(t *testing.T) {
	p := newPair(t)
	p.create()
	a, b := p.begin(p.cfgA), p.begin(p.cfgB)
	defer stop(t, b)
	defer stop(t, a)
	ctx := t.Context()
	toA, toB := control.NewClient(p.cfgA.Node.Control), control.NewClient(p.cfgB.Node.Control)
	wait(t, p.cfgA, control.WaitConnected)
	if err := toA.Promote(ctx, "crm", control.PromoteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgA, control.WaitUpToDate)
	if err := toA.Destroy(ctx, "crm", control.DestroyRequest{Force: true}); err == nil || !strings.Contains(err.Error(), "primary") {
		t.Errorf("destroying the primary: %v", err)
	}
	wait(t, p.cfgB, control.WaitUpToDate)
	if err := toB.Destroy(ctx, "crm", control.DestroyRequest{Backing: true}); err != nil {
		t.Fatal(err)
	}
	if st, err := toB.Status(ctx); err != nil || st.Volumes[0].Disk != "diskless" || !strings.Contains(st.Volumes[0].Reason, "qrbd create crm") {
		t.Errorf("%+v, %v", st, err)
	}
	if err := toB.Create(ctx, "crm", control.CreateRequest{}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgA, control.WaitUpToDate)
}
