package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// pair is two real agents, alpha and beta, that share the volume crm.
type pair struct {
	t          *testing.T
	cfgA, cfgB *config.Config
}

// newPair makes their files; begin starts them.
func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, cfgA: testConfig(t), cfgB: testConfig(t)}
	p.cfgB.Node.Name = "beta"
	for _, c := range []*config.Config{p.cfgA, p.cfgB} {
		c.Node.Listen = freePort(t)
		c.Volumes = c.Volumes[:1]
		if err := os.MkdirAll(c.Node.State, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.know(p.cfgA, "beta", p.cfgB)
	p.know(p.cfgB, "alpha", p.cfgA)
	return p
}

// know makes other the only peer of c.
func (p *pair) know(c *config.Config, name string, other *config.Config) {
	id, err := session.LoadOrCreateIdentity(other.Node.State)
	if err != nil {
		p.t.Fatal(err)
	}
	c.Peers = []config.Peer{{Name: name, Address: other.Node.Listen, Keys: []string{id.PublicKey()}}}
	c.Volumes[0].Peers = []config.VolumePeer{{Name: name, Mode: protocol.ModeC}}
}

// create makes the volume on both hosts.
func (p *pair) create() {
	p.t.Helper()
	for _, c := range []*config.Config{p.cfgA, p.cfgB} {
		if err := CreateOffline(c, "crm", false); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pair) begin(c *config.Config) *Agent {
	p.t.Helper()
	a, err := Start(Options{Config: c, Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// wait waits, through the control API, until the volume is in a state.
func wait(t *testing.T, c *config.Config, what control.WaitFor) {
	t.Helper()
	err := control.NewClient(c.Node.Control).Wait(t.Context(), "crm", control.WaitRequest{For: what, TimeoutSeconds: 15}, nil)
	if err != nil {
		t.Fatalf("on %s: %v", c.Node.Name, err)
	}
}

// The life of a volume on two hosts: create, first promotion, writes through
// NBD, planned switchover, and reading on the other side.
func TestTwoAgents(t *testing.T) {
	p := newPair(t)
	if err := CreateOffline(p.cfgA, "crm", false); err != nil {
		t.Fatal(err)
	}
	a, b := p.begin(p.cfgA), p.begin(p.cfgB)
	defer stop(t, b)
	defer stop(t, a)
	ctx := t.Context()
	toA, toB := control.NewClient(p.cfgA.Node.Control), control.NewClient(p.cfgB.Node.Control)

	// beta's is created while its agent runs.
	st, err := toB.Status(ctx)
	if err != nil || st.Node != "beta" || st.Volumes[0].Disk != "diskless" || !strings.Contains(st.Volumes[0].Reason, "qrbd create crm") {
		t.Fatalf("%+v, %v", st, err)
	}
	// alpha learns why it is alone, whoever dialled; and when beta's is created the
	// two connect without a word.
	err = toA.Wait(ctx, "crm", control.WaitRequest{For: control.WaitConnected, TimeoutSeconds: 10}, func(p control.Progress) {
		if !strings.Contains(p.Waiting, "not created: run qrbd create crm") {
			return // it is still finding out
		}
		if err := toB.Create(ctx, "crm", control.CreateRequest{}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := toA.Promote(ctx, "crm", control.PromoteRequest{}); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("promoting a brand-new volume: %v", err)
	}
	if err := toA.Promote(ctx, "crm", control.PromoteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgA, control.WaitUpToDate)
	if err := toB.Promote(ctx, "crm", control.PromoteRequest{}); err == nil || !strings.Contains(err.Error(), "alpha") {
		t.Errorf("a second primary: %v", err)
	}

	data := bytes.Repeat([]byte("customer"), 8192)
	c, err := dial(t, a, "crm")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.WriteAt(data, 4096, 0), c.Flush()); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, b, "crm"); err == nil || !strings.Contains(err.Error(), "its primary is alpha") {
		t.Errorf("a client on the secondary: %v", err)
	}
	if err := toA.Switchover(ctx, "crm", control.SwitchoverRequest{To: "beta"}); code(t, err) != protocol.CodeBusy {
		t.Errorf("switchover under a client: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// The server notices the client's leave a moment after it.
	if err := toA.Switchover(ctx, "crm", control.SwitchoverRequest{To: "beta", Force: true}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgB, control.WaitPrimary)
	c, err = dial(t, b, "crm")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, data) {
		t.Errorf("on the other side: %v, equal %v", err, bytes.Equal(got, data))
	}
	if reports, err := toB.Verify(ctx, "crm", control.VerifyRequest{}, nil); err != nil || len(reports) != 1 || reports[0].Bad != 0 || reports[0].Checked != 1<<20 {
		t.Errorf("verify: %+v, %v", reports, err)
	}
	events := 0
	if err := toB.Events(ctx, &control.Position{}, func(control.EventLine) error { events++; return nil }); err != nil || events == 0 {
		t.Errorf("%d events, %v", events, err)
	}
}

// The primary's agent goes away; the other is promoted on the operator's word,
// and brings the first up to date when it returns.
func TestFailover(t *testing.T) {
	p := newPair(t)
	p.create()
	a, b := p.begin(p.cfgA), p.begin(p.cfgB)
	ctx := t.Context()
	toA, toB := control.NewClient(p.cfgA.Node.Control), control.NewClient(p.cfgB.Node.Control)
	if err := toA.Promote(ctx, "crm", control.PromoteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgA, control.WaitUpToDate)
	c, err := dial(t, a, "crm")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt([]byte("before"), 0, blockdev.FUA); err != nil {
		t.Fatal(err)
	}
	stop(t, a)
	if _, err := toA.Status(ctx); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("alpha's agent: %v", err)
	}
	if err := toB.Promote(ctx, "crm", control.PromoteRequest{PeerFenced: true}); err != nil {
		t.Fatal(err)
	}
	c, err = dial(t, b, "crm")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if err := c.ReadAt(got, 0); err != nil || string(got) != "before" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := c.WriteAt([]byte("after!"), 0, blockdev.FUA); err != nil {
		t.Fatal(err)
	}
	a = p.begin(p.cfgA)
	wait(t, p.cfgB, control.WaitUpToDate)
	stop(t, a)
	stop(t, b)
	imgA, errA := os.ReadFile(p.cfgA.Volumes[0].Backing)
	imgB, errB := os.ReadFile(p.cfgB.Volumes[0].Backing)
	if err := errors.Join(errA, errB); err != nil || !bytes.Equal(imgA, imgB) || string(imgA[:6]) != "after!" {
		t.Errorf("equal %v, alpha has %q, %v", bytes.Equal(imgA, imgB), imgA[:6], err)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	a, _ := start(t, nil)
	_, err := Start(Options{Config: a.cfg, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "another qrbd agent runs with "+a.cfg.Node.State) {
		t.Errorf("got %v", err)
	}
	if _, err := control.NewClient(a.cfg.Node.Control).Status(t.Context()); err != nil {
		t.Errorf("the first one suffers: %v", err)
	}
}

// What keeps an agent from starting leaves nothing behind: it starts afterwards.
func TestStartFailsCleanly(t *testing.T) {
	p := newPair(t)
	spoil := []struct {
		name  string
		spoil func(c *config.Config)
	}{
		{"listen", func(c *config.Config) { c.Node.Listen = p.cfgB.Node.Listen }},
		{"export", func(c *config.Config) { c.Volumes[0].Export.Address = c.Node.State }},
		{"control", func(c *config.Config) { c.Node.Control = c.Node.State }},
		{"own key", func(c *config.Config) { c.Peers[0].Keys = []string{identityOf(t, c)} }},
		{"identity", func(c *config.Config) { os.Chmod(c.Node.State+"/identity.key", 0o644) }},
	}
	b := p.begin(p.cfgB)
	defer stop(t, b)
	for _, s := range spoil {
		c := *p.cfgA
		c.Volumes = append([]config.Volume(nil), c.Volumes...)
		c.Peers = append([]config.Peer(nil), c.Peers...)
		s.spoil(&c)
		a, err := Start(Options{Config: &c, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			stop(t, a)
			t.Errorf("%s: started", s.name)
		}
	}
	if err := os.Chmod(p.cfgA.Node.State+"/identity.key", 0o600); err != nil {
		t.Fatal(err)
	}
	stop(t, p.begin(p.cfgA))
}

func identityOf(t *testing.T, c *config.Config) string {
	t.Helper()
	id, err := session.LoadIdentity(c.Node.State)
	if err != nil {
		t.Fatal(err)
	}
	return id.PublicKey()
}

// Metadata of another volume, node or size, or that is damaged, is a reason to
// be shown, not a reason to stop.
func TestVolumesThatDoNotOpen(t *testing.T) {
	cases := map[string]struct {
		spoil func(t *testing.T, c *config.Config)
		want  string
	}{
		"size":    {func(_ *testing.T, c *config.Config) { c.Volumes[0].Size *= 2 }, "size"},
		"node":    {func(_ *testing.T, c *config.Config) { c.Node.Name = "gamma" }, "gamma"},
		"backing": {func(t *testing.T, c *config.Config) { remove(t, c.Volumes[0].Backing) }, "no such file"},
		"shorter": {func(t *testing.T, c *config.Config) {
			if err := os.Truncate(c.Volumes[0].Backing, 4096); err != nil {
				t.Fatal(err)
			}
		}, "4096 bytes"},
		"damaged": {func(t *testing.T, c *config.Config) {
			if err := os.WriteFile(c.MetaPath("crm"), []byte("not metadata"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "crm.meta"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			if err := CreateOffline(p.cfgA, "crm", false); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, p.cfgA)
			a := p.begin(p.cfgA)
			defer stop(t, a)
			st := a.Status().Volumes[0]
			if st.Disk != "diskless" || !strings.Contains(st.Reason, tc.want) {
				t.Errorf("disk %s, reason %q, want …%s…", st.Disk, st.Reason, tc.want)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// Several volumes share a TCP address; each is found by its name.
func TestSharedAddress(t *testing.T) {
	c := testConfig(t)
	for i := range c.Volumes {
		c.Volumes[i].Export = config.Export{Network: "tcp", Address: strings.Replace(freePort(t), "0.0.0.0", "127.0.0.1", 1)}
		c.Volumes[i].Export = c.Volumes[0].Export
	}
	vols := map[string]*fakeVolume{"crm": newFakeVolume("crm"), "web": newFakeVolume("web")}
	a, err := Start(Options{Config: c, Log: slog.New(slog.DiscardHandler),
		network:    func(*Agent) (network, error) { return noNetwork{}, nil },
		openVolume: func(_ *Agent, s *slot) (running, error) { return vols[s.cfg.Name], nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, a)
	if len(a.doors()) != 1 {
		t.Fatalf("%d servers for one address", len(a.doors()))
	}
	vols["web"].setRole("primary")
	if _, err := dial(t, a, "web"); err != nil {
		t.Error(err)
	}
	if _, err := dial(t, a, "crm"); err == nil {
		t.Error("crm is not primary")
	}
}

// Run starts, answers SIGHUP, and drains when its context ends.
func TestRun(t *testing.T) {
	c := testConfig(t)
	var log bytes.Buffer
	vols := map[string]*fakeVolume{"crm": newFakeVolume("crm"), "web": newFakeVolume("web")}
	o := Options{Config: c, Log: slog.New(slog.NewTextHandler(&log, nil)),
		network:    func(*Agent) (network, error) { return noNetwork{}, nil },
		openVolume: func(_ *Agent, s *slot) (running, error) { return vols[s.cfg.Name], nil }}
	if err := os.WriteFile(c.File, []byte("[nod]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.Node.Control + ".notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", c.Node.Control+".notify")
	notice := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		n, err := systemd.Read(b)
		if got := string(b[:n]); err != nil || got != want {
			t.Errorf("systemd was told %q, want %q, %v", got, want, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	reload, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Run(ctx, o, reload) }()
	notice("READY=1\nSTATUS=2 volumes: crm secondary, up-to-date; web secondary, up-to-date")
	const volumes = "\nSTATUS=2 volumes: crm secondary, up-to-date; web secondary, up-to-date"
	reloaded := func() {
		t.Helper()
		b := make([]byte, 4096)
		if n, err := systemd.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "RELOADING=1\nMONOTONIC_USEC=") || !strings.HasSuffix(string(b[:n]), volumes) {
			t.Errorf("systemd was told %q, %v", b[:n], err)
		}
		notice("READY=1" + volumes)
	}
	reload <- struct{}{}
	reloaded()
	valid := "[node]\nname = \"alpha\"\nlisten = \":1\"\n"
	if err := os.WriteFile(c.File, []byte(valid), 0o600); err != nil {
		t.Fatal(err)
	}
	reload <- struct{}{}
	reloaded()
	cancel()
	notice("STOPPING=1\nSTATUS=2 volumes: crm secondary, up-to-date; web secondary, up-to-date")
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, v := range vols {
		if v.count("close") != 1 {
			t.Errorf("volume %s was told %q", v.name, v.calls)
		}
	}
	for _, want := range []string{"has faults", "nothing is changed", "node.listen", "agent stopping"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, &log)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	c := &config.Config{Volumes: []config.Volume{{Size: 1 << 40, Peers: make([]config.VolumePeer, 1)}}}
	if got := memoryLimit(c); got != baseBytes+64<<20 {
		t.Errorf("one volume of 1 TiB with a peer: %d MiB", got>>20)
	}
	c.Volumes[0].Size = 1 << 62
	c.Volumes[0].Peers = make([]config.VolumePeer, 15)
	if got := memoryLimit(c); got <= 0 {
		t.Errorf("overflow: %d", got)
	}
}
