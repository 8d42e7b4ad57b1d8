package agent

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

// TestResizeWhileRunning: secondary, then primary, with what else goes on beside: status,
// a reload, a client that has to come back.
func TestResizeWhileRunning(t *testing.T) {
	p := newPair(t)
	const old, size = 4 << 20, 6 << 20
	write := func(c *config.Config, size int64) {
		t.Helper()
		sized := *c
		sized.Volumes = append([]config.Volume(nil), c.Volumes...)
		sized.Volumes[0].Size = size
		fileOf(t, &sized, "", "", "")
	}
	for _, c := range []*config.Config{p.cfgA, p.cfgB} {
		c.Volumes[0].Size = old
		if err := CreateOffline(c, "crm", false); err != nil {
			t.Fatal(err)
		}
		write(c, old)
		loaded, err := config.Load(c.File)
		if err != nil {
			t.Fatal(err)
		}
		*c = *loaded
	}
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
	client, err := dial(t, a, "crm")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("customer"), 512)
	if err := errors.Join(client.WriteAt(data, old-4096, 0), client.Flush()); err != nil {
		t.Fatal(err)
	}

	r := control.ResizeRequest{Size: size}
	if err := toB.Resize(ctx, "crm", r); err == nil || !strings.Contains(err.Error(), p.cfgB.File) {
		t.Errorf("a size that is not in the file: %v", err)
	}
	write(p.cfgA, size)
	write(p.cfgB, size)
	if rep, err := toA.Reload(ctx); err != nil || len(rep.Resize) != 1 || len(rep.Restart) != 0 || !strings.Contains(rep.Resize[0], "qrbd resize crm") {
		t.Errorf("%+v, %v", rep, err)
	}
	stopped := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stopped:
				return
			default:
				if _, err := toA.Status(ctx); err != nil {
					t.Errorf("status: %v", err)
					return
				}
			}
		}
	}()
	if err := toB.Resize(ctx, "crm", r); err != nil {
		t.Fatal(err)
	}
	if err := client.WriteAt(data, 0, 0); err != nil {
		t.Errorf("a client of the primary while the secondary is resized: %v", err)
	}
	if err := toA.Resize(ctx, "crm", r); code(t, err) == 0 || !strings.Contains(err.Error(), "--force") {
		t.Errorf("with a client: %v", err)
	}
	r.Force = true
	if err := toA.Resize(ctx, "crm", r); err != nil {
		t.Fatal(err)
	}
	close(stopped)
	<-watched
	client.Close()
	wait(t, p.cfgA, control.WaitUpToDate)
	if client, err = dial(t, a, "crm"); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	got := make([]byte, 8192)
	if err := client.ReadAt(got, old-4096); err != nil || client.Size() != size || !bytes.Equal(got, append(bytes.Clone(data), make([]byte, 4096)...)) {
		t.Errorf("%v, %d bytes", err, client.Size())
	}
	if rep, err := toA.Reload(ctx); err != nil || len(rep.Restart)+len(rep.Resize)+len(rep.Applied)+len(rep.Failed) != 0 {
		t.Errorf("a reload after it: %+v, %v", rep, err)
	}
}

// TestResizePrimaryLast: the primary is not resized before its peers have said that they
// are, and the refusal says which of the two is missing.
func TestResizePrimaryLast(t *testing.T) {
	for _, c := range []struct {
		name string
		peer volume.PeerStatus
		want string // "": allowed so far
	}{
		{"resized", volume.PeerStatus{Name: "beta", Size: 2 << 20}, ""},
		{"not resized", volume.PeerStatus{Name: "beta", Size: 1 << 20}, "it has 1048576 bytes there"},
		{"away since the start", volume.PeerStatus{Name: "beta"}, "connect it"},
		{"a witness", volume.PeerStatus{Name: "gamma", Witness: true}, ""},
	} {
		err := peersResized(volume.Status{Name: "crm", Peers: []volume.PeerStatus{c.peer}}, 2<<20)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestResizeKeepsArchive: a replica that is being overwritten, with what it loses archived,
// is not resized before that has ended.
func TestResizeKeepsArchive(t *testing.T) {
	p := newPair(t)
	const old, size = 4 << 20, 6 << 20
	c := p.cfgB
	c.Volumes[0].Size = old
	if err := CreateOffline(c, "crm", false); err != nil {
		t.Fatal(err)
	}
	st, err := meta.OpenStorage(c.MetaPath("crm"))
	if err != nil {
		t.Fatal(err)
	}
	file, state, err := meta.Open(st)
	if err != nil {
		t.Fatal(err)
	}
	super := state.Super
	super.Current, super.Lost, super.Archive = 5, 7, 9
	if err := errors.Join(file.Commit(&meta.Batch{Super: &super}), file.Close()); err != nil {
		t.Fatal(err)
	}
	fileOf(t, c, "", "", "")
	loaded, err := config.Load(c.File)
	if err != nil {
		t.Fatal(err)
	}
	*c = *loaded
	b := p.begin(c)
	defer stop(t, b)
	grown := *c
	grown.Volumes = append([]config.Volume(nil), c.Volumes...)
	grown.Volumes[0].Size = size
	fileOf(t, &grown, "", "", "")
	to := control.NewClient(c.Node.Control)
	r := control.ResizeRequest{Size: size}
	if err := to.Resize(t.Context(), "crm", r); err == nil || !strings.Contains(err.Error(), "is archived") {
		t.Errorf("in the middle of a sync that archives: %v", err)
	}
	if st, err := to.Status(t.Context()); err != nil || st.Volumes[0].Size != old {
		t.Errorf("after the refusal: %+v, %v", st, err)
	}
	r.Force = true
	if err := to.Resize(t.Context(), "crm", r); err != nil {
		t.Errorf("by force: %v", err)
	}
}
