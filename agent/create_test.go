package agent

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume/meta"
)

// What create finds, and what it does to it with and without force.
func TestCreateMatrix(t *testing.T) {
	const size = 1 << 20
	data := bytes.Repeat([]byte{7}, size)
	cases := []struct {
		name    string
		backing []byte // nil: none
		meta    bool
		force   bool
		want    string // part of the error; "": created
	}{
		{"nothing there", nil, false, false, ""},
		{"nothing there, force", nil, false, true, ""},
		{"file of the right size", data, false, false, "may hold data: use --force"},
		{"file of another size", data[:512], false, false, "may hold data: use --force"},
		{"empty file", []byte{}, false, false, "may hold data: use --force"},
		{"file, force", data, false, true, ""},
		{"metadata", nil, true, false, "created already"},
		{"metadata and file", data, true, false, "created already"},
		{"metadata and file, force", data, true, true, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			v := cfg.Volume("crm")
			if err := os.MkdirAll(cfg.Node.State, 0o700); err != nil {
				t.Fatal(err)
			}
			if c.backing != nil {
				if err := os.WriteFile(v.Backing, c.backing, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.meta {
				if err := meta.Create(cfg.MetaPath("crm"), newSuper(cfg, v), false); err != nil {
					t.Fatal(err)
				}
			}
			metaBefore, _ := os.ReadFile(cfg.MetaPath("crm"))
			err := CreateOffline(cfg, "crm", c.force)
			metaAfter, _ := os.ReadFile(cfg.MetaPath("crm"))
			after, backErr := os.ReadFile(v.Backing)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkCreated(t, cfg, v)
				if len(after) != size || bytes.ContainsRune(after, 7) {
					t.Errorf("backing of %d bytes, with old data: %v", len(after), bytes.ContainsRune(after, 7))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want …%s…", err, c.want)
			}
			if !bytes.Equal(metaBefore, metaAfter) {
				t.Error("a refused create changed the metadata")
			}
			if c.backing == nil && !errors.Is(backErr, os.ErrNotExist) || c.backing != nil && !bytes.Equal(after, c.backing) {
				t.Error("a refused create changed the backing store")
			}
		})
	}
}

func checkCreated(t *testing.T, cfg *config.Config, v *config.Volume) {
	t.Helper()
	st, err := meta.OpenStorage(cfg.MetaPath(v.Name))
	if err != nil {
		t.Fatal(err)
	}
	f, state, err := meta.Open(st)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := state.Super
	if s.Size != v.Size || s.Name != v.Name || s.Node != "alpha" || s.Current != 0 || s.Disk != protocol.Inconsistent || s.Primary || len(s.Peers) != len(v.Peers) {
		t.Errorf("metadata %+v", s)
	}
}

// A backing that cannot be used leaves nothing behind.
func TestCreateIsAllOrNothing(t *testing.T) {
	cfg := testConfig(t)
	v := cfg.Volume("crm")
	if err := os.MkdirAll(v.Backing, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CreateOffline(cfg, "crm", true); err == nil || !strings.Contains(err.Error(), "neither a file nor a block device") {
		t.Errorf("a directory as backing: %v", err)
	}
	if _, err := os.Stat(cfg.MetaPath("crm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("metadata is there: %v", err)
	}
	// Metadata that cannot be written takes the new backing with it.
	web := cfg.Volume("web")
	if err := os.MkdirAll(cfg.MetaPath("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CreateOffline(cfg, "web", true); err == nil {
		t.Error("a directory as metadata")
	}
	if _, err := os.Stat(web.Backing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the backing store is left over: %v", err)
	}
}

// Whatever stops a create by force must not leave the old metadata, which call the
// store a good copy, over an emptied one: the metadata are made anew first.
func TestCreateEmptiesLast(t *testing.T) {
	cfg := testConfig(t)
	v := cfg.Volume("crm")
	data := bytes.Repeat([]byte{7}, 4096)
	if err := os.MkdirAll(cfg.MetaPath("crm"), 0o755); err != nil { // cannot be replaced
		t.Fatal(err)
	}
	if err := os.WriteFile(v.Backing, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateOffline(cfg, "crm", true); err == nil || !strings.Contains(err.Error(), "metadata of volume crm") {
		t.Errorf("a directory as metadata: %v", err)
	}
	if after, err := os.ReadFile(v.Backing); err != nil || !bytes.Equal(after, data) {
		t.Errorf("the store was emptied before the metadata were made: %v", err)
	}
}

func TestCreateOfflineNeedsTheLock(t *testing.T) {
	a, _ := start(t, nil)
	if err := CreateOffline(a.cfg, "crm", false); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	if err := CreateOffline(a.cfg, "db", false); code(t, err) != protocol.CodeUnknownVolume {
		t.Errorf("unknown volume: %v", err)
	}
}

// A running agent shows what is not created, and opens it once it is.
func TestCreateWhileRunning(t *testing.T) {
	missing := map[string]error{"crm": errNotCreated}
	a, vols := start(t, missing)
	st := a.Status().Volumes[0]
	if st.Disk != "diskless" || st.Reason != "not created: run qrbd create crm" || st.Role != "secondary" || len(st.Peers) != 2 || st.Peers[0].Connection != "standalone" {
		t.Errorf("status %+v", st)
	}
	s := newFakeSession("beta", true)
	a.links.sessionUp(s)
	delete(missing, "crm")
	if err := a.Create(t.Context(), "crm", control.CreateRequest{}); err != nil {
		t.Fatal(err)
	}
	checkCreated(t, a.cfg, a.cfg.Volume("crm"))
	vols["crm"].saw(t, "attach beta") // it joins the session that was up already
	if st := a.Status().Volumes[0]; st.Disk != "up-to-date" || st.Reason != "" {
		t.Errorf("status %+v", st)
	}
	if err := a.Create(t.Context(), "crm", control.CreateRequest{}); code(t, err) != protocol.CodeNotAllowed {
		t.Errorf("again: %v", err)
	}
	if err := a.Create(t.Context(), "crm", control.CreateRequest{Force: true}); code(t, err) != protocol.CodeBusy {
		t.Errorf("by force, under a running volume: %v", err)
	}
}

func TestBrokenVolumeDoesNotStopTheOthers(t *testing.T) {
	a, _ := start(t, map[string]error{"crm": errors.New("backing store: no such device")})
	st := a.Status()
	if st.Volumes[0].Disk != "diskless" || st.Volumes[0].Reason != "backing store: no such device" || st.Volumes[1].Disk != "up-to-date" {
		t.Errorf("status %+v", st)
	}
	if err := a.Promote(t.Context(), "crm", control.PromoteRequest{Force: true}); code(t, err) != protocol.CodeDiskFailed {
		t.Errorf("promote: %v", err)
	}
}
