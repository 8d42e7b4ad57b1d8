package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol/session"
)

// fileOf writes c as an operator would have; extra goes into [node], into the first
// volume, and at the end.
func fileOf(t *testing.T, c *config.Config, node, volume, end string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[node]\nname = %q\nlisten = %q\nstate = %q\ncontrol = %q\nheartbeat = %q\npeer_timeout = %q\n%s\n",
		c.Node.Name, c.Node.Listen, c.Node.State, c.Node.Control, c.Node.Heartbeat, c.Node.PeerTimeout, node)
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "[[peer]]\nname = %q\naddress = %q\nkey = %q\n", p.Name, p.Address, p.Keys[0])
	}
	for i, v := range c.Volumes {
		names := make([]string, len(v.Peers))
		for j, p := range v.Peers {
			names[j] = fmt.Sprintf("%q", p.Name)
		}
		fmt.Fprintf(&b, "[[volume]]\nname = %q\nsize = \"%dB\"\nbacking = %q\nexport = %q\n", v.Name, v.Size, v.Backing, v.Export.String())
		if i == 0 {
			b.WriteString(volume + "\n")
		}
		if !strings.Contains(volume, "peers") || i > 0 {
			fmt.Fprintf(&b, "peers = [%s]\n", strings.Join(names, ", "))
		}
	}
	b.WriteString(end)
	if err := os.WriteFile(c.File, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// loaded is a running agent of fake volumes whose configuration is a file, of the volume
// crm with the peer beta.
func loaded(t *testing.T) (*Agent, *config.Config, map[string]*fakeVolume, string) {
	t.Helper()
	c := testConfig(t)
	c.Volumes = c.Volumes[:1]
	c.Volumes[0].Peers = c.Volumes[0].Peers[:1]
	var keys []string
	for range 3 {
		id, err := session.NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, id.PublicKey())
	}
	c.Peers = []config.Peer{{Name: "beta", Address: "127.0.0.1:7791", Keys: keys[:1]}}
	fileOf(t, c, "", "", "")
	parsed, err := config.Load(c.File)
	if err != nil {
		t.Fatal(err)
	}
	vols := map[string]*fakeVolume{}
	var mu sync.Mutex
	a, err := Start(Options{Config: parsed, Log: slog.New(slog.DiscardHandler), Version: "test",
		network: func(*Agent) (network, error) { return noNetwork{}, nil },
		openVolume: func(_ *Agent, s *slot) (running, error) {
			mu.Lock()
			defer mu.Unlock()
			if s.cfg.Name == "late" {
				return nil, errNotCreated
			}
			vols[s.cfg.Name] = newFakeVolume(s.cfg.Name)
			return vols[s.cfg.Name], nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, a) })
	gamma := fmt.Sprintf("[[peer]]\nname = \"gamma\"\naddress = \"127.0.0.1:7792\"\nkey = %q\n", keys[1])
	return a, c, vols, gamma
}

func TestReload(t *testing.T) {
	a, c, vols, gamma := loaded(t)
	ctl := control.NewClient(c.Node.Control)
	reload := func() control.ReloadReport {
		t.Helper()
		r, err := ctl.Reload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	expect := func(got []string, want ...string) {
		t.Helper()
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%q, want %q", got, want)
		}
	}
	r := reload()
	expect(append(append(r.Applied, r.Restart...), r.Failed...))

	fileOf(t, c, "metrics = \"127.0.0.1:9790\"", "resync_rate_max = \"5MiB\"\nverify_every = \"24h\"\npeers = [\"beta\", \"gamma\"]", gamma)
	r = reload()
	expect(r.Applied, "peer gamma added", "volume crm: peer gamma added", "volume crm: verify_every, resync_rate_max")
	expect(r.Restart, "node.metrics")
	vols["crm"].saw(t, "add peer gamma")
	vols["crm"].saw(t, "tune")
	if s := a.slot("crm"); !s.hasPeer("gamma") || s.live().ResyncRateMax != 5<<20 {
		t.Errorf("%+v", s.live())
	}
	r = reload() // what needs a restart is said until there was one
	expect(r.Applied)
	expect(r.Restart, "node.metrics")

	more := gamma
	for _, name := range []string{"web", "late"} {
		more += fmt.Sprintf("[[volume]]\nname = %q\nsize = \"1MiB\"\nbacking = %q\nexport = \"unix:%s.sock\"\n", name, c.Volumes[0].Backing+name, c.Volumes[0].Backing+name)
	}
	fileOf(t, c, "", "peers = [\"beta\", \"gamma\"]", more)
	r = reload()
	if len(r.Applied) != 3 || r.Applied[0] != "volume crm: verify_every, resync_rate_max" || r.Applied[1] != "volume web added" || !strings.Contains(r.Applied[2], "qrbd create late") {
		t.Errorf("%q", r.Applied)
	}
	if st := a.Status(); len(st.Volumes) != 3 || st.Volumes[1].Disk != "up-to-date" || st.Volumes[2].Disk != "diskless" {
		t.Errorf("%+v", st.Volumes)
	}
	vols["web"].setRole("primary")
	if cl, err := dial(t, a, "web"); err != nil {
		t.Errorf("the export of an added volume: %v", err)
	} else {
		cl.Close()
	}

	fileOf(t, c, "", "", "")
	r = reload()
	expect(r.Restart, "peer gamma is no longer in the file: it stays connected until then",
		"volume crm: peer gamma is no longer in the file: it stays connected until then",
		"volume web is no longer in the file: it goes on until then", "volume late is no longer in the file: it goes on until then")
	if n := vols["web"].count("close"); n != 0 {
		t.Error("a volume that left the file was closed")
	}
}

// TestReloadOfAFaultyFile: everything that is wrong is said, and nothing is changed.
func TestReloadOfAFaultyFile(t *testing.T) {
	a, c, vols, gamma := loaded(t)
	before := *a.config.Load()
	fileOf(t, c, "colour = \"red\"", "resync_rate_max = \"fast\"\npeers = [\"beta\", \"gamma\"]", gamma)
	_, err := control.NewClient(c.Node.Control).Reload(t.Context())
	if err == nil || !strings.Contains(err.Error(), "node.colour") || !strings.Contains(err.Error(), "volume.resync_rate_max") || strings.Count(err.Error(), c.File+":") != 2 {
		t.Errorf("%v", err)
	}
	if now := a.config.Load(); len(now.Peers) != len(before.Peers) || len(now.Volumes[0].Peers) != 1 || a.slot("crm").hasPeer("gamma") {
		t.Errorf("%+v", now)
	}
	if n := vols["crm"].count("add peer") + vols["crm"].count("tune"); n != 0 {
		t.Errorf("the volume was told %d things", n)
	}
}

// TestReloadThatFails: what cannot be done is said, and what holds is as before, so that
// the next reload tries again.
func TestReloadThatFails(t *testing.T) {
	a, c, vols, gamma := loaded(t)
	vols["crm"].err = errors.New("its disk is being replaced")
	fileOf(t, c, "", "peers = [\"beta\", \"gamma\"]", gamma)
	r, err := a.Reload(t.Context())
	if err != nil || len(r.Failed) != 1 || !strings.Contains(r.Failed[0], "being replaced") || a.slot("crm").hasPeer("gamma") {
		t.Fatalf("%+v, %v", r, err)
	}
	vols["crm"].err = nil
	r, err = a.Reload(t.Context())
	if err != nil || len(r.Applied) != 1 || !a.slot("crm").hasPeer("gamma") {
		t.Fatalf("%+v, %v", r, err)
	}
}
