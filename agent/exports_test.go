package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/testca"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// dial connects an NBD client to a volume's export.
func dial(t *testing.T, a *Agent, name string) (*client.Client, error) {
	t.Helper()
	c, err := client.Dial(t.Context(), a.slot(name).cfg.Export.String(), name, client.Options{})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func TestExportFollowsTheRole(t *testing.T) {
	a, vols := start(t, map[string]error{"web": errNotCreated})
	refused := func(name, want string) {
		t.Helper()
		_, err := dial(t, a, name)
		var oe *client.OptionError
		if !errors.As(err, &oe) || !strings.Contains(oe.Text, want) {
			t.Errorf("%s: got %v, want a refusal with %q", name, err, want)
		}
	}
	refused("crm", "no primary is known; promote one with: qrbd promote crm")
	vols["crm"].peers = []volume.PeerStatus{{Name: "gamma", Role: "secondary"}, {Name: "beta", Role: "primary"}}
	refused("crm", "volume crm is secondary here; its primary is beta")
	refused("web", "not created: run qrbd create web")
	vols["crm"].setRole("primary")
	c, err := dial(t, a, "crm")
	if err != nil {
		t.Fatal(err)
	}
	if c.Size() != 1<<20 {
		t.Errorf("size %d", c.Size())
	}
	if st := a.Status().Volumes[0]; st.Clients != 1 || st.Export != a.slot("crm").cfg.Export.String() {
		t.Errorf("status %+v", st)
	}
}

func TestDoorFindsVolumes(t *testing.T) {
	a, _ := start(t, nil)
	d := &door{slots: a.slots()}
	if _, err := d.Open("", nbd.Caller{}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("the default of two: %v", err)
	}
	if _, err := d.Open("db", nbd.Caller{}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("unknown: %v", err)
	}
	if d.find("web") != a.slots()[1] || (&door{slots: a.slots()[:1]}).find("") != a.slots()[0] {
		t.Error("not found")
	}
	if got := strings.Join(d.List(nbd.Caller{}), " "); got != "crm web" {
		t.Errorf("list %s", got)
	}
}

// TestExportOverTLS: an agent's volumes on one address, each with its own list of
// clients.
func TestExportOverTLS(t *testing.T) {
	ca, dir := testca.New(t, "authority"), t.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", DNSNames: []string{"alpha"}, Server: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	a, vols := start(t, nil, func(o *Options) {
		for i, names := range [][]string{{"DB1.example"}, {"db1.example", "10.0.0.9"}} {
			v := &o.Config.Volumes[i]
			v.Export = config.Export{Network: "tcp", Address: address}
			v.ExportTLS = &config.ExportTLS{Certificate: cert, Key: key, ClientCA: ca.Trust(dir)}
			v.ExportClients = names
		}
	})
	for _, v := range vols {
		v.setRole("primary")
	}
	db1 := ca.Client(testca.Leaf{CommonName: "postgres", DNSNames: []string{"db1.example"}}, "alpha")
	db9 := ca.Client(testca.Leaf{CommonName: "db9", IPs: []net.IP{{10, 0, 0, 9}}}, "alpha")
	nameless := ca.Client(testca.Leaf{}, "alpha")
	for _, tt := range []struct {
		who  *tls.Config
		to   string
		want string
	}{
		{db1, "crm", ""}, {db1, "web", ""}, {db9, "web", ""},
		{db9, "crm", "the client's certificate is of db9, 10.0.0.9: volume crm does not let it in (export_tls.clients)"},
		{nameless, "crm", "the client's certificate has no name: volume crm does not let it in"},
		{nil, "crm", "demands TLS"},
	} {
		c, err := client.Dial(t.Context(), "tcp:"+address, tt.to, client.Options{TLS: tt.who})
		if err == nil {
			c.Close()
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("to %s: %v, want %q", tt.to, err, tt.want)
		}
	}
	if c := a.Status().Certificates; len(c) != 1 || c[0].Use != "tcp:"+address || c[0].Ends.Before(time.Now()) {
		t.Errorf("certificates %v", c)
	}
	d := a.doors()[0]
	if got := d.List(nbd.Caller{Certificate: leaf(t, db9)}); !slices.Equal(got, []string{"web"}) || len(a.doors()) != 1 {
		t.Errorf("db9 sees %v at %d addresses", got, len(a.doors()))
	}
}

// TestExportSocketIsGivenAway: by the configuration, before anybody connects.
func TestExportSocketIsGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	a, _ := start(t, nil, func(o *Options) {
		o.Config.Volumes[0].ExportAccess = config.ExportAccess{Owner: config.Account{Name: "db", ID: 64001}, Group: config.Account{Name: "dbs", ID: 64201}, Mode: 0o660}
	})
	for name, want := range map[string]string{"crm": "64001 64201 -rw-rw----", "web": fmt.Sprintf("0 %d -rw-------", os.Getegid())} {
		st, err := os.Stat(a.slot(name).cfg.Export.Address)
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if got := fmt.Sprint(sys.Uid, sys.Gid, st.Mode().Perm()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestClientTakenOffTheList is disconnected by the reload; others stay.
func TestClientTakenOffTheList(t *testing.T) {
	ca, dir := testca.New(t, "authority"), t.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", DNSNames: []string{"alpha"}, Server: true})
	a, vols := start(t, nil, func(o *Options) { // a socket does as well here
		v := &o.Config.Volumes[0]
		v.ExportTLS, v.ExportClients = &config.ExportTLS{Certificate: cert, Key: key, ClientCA: ca.Trust(dir)}, []string{"db1", "db2"}
	})
	vols["crm"].setRole("primary")
	s := a.slot("crm")
	open := map[string]*client.Client{}
	for _, name := range s.cfg.ExportClients {
		c, err := client.Dial(t.Context(), s.cfg.Export.String(), "crm", client.Options{TLS: ca.Client(testca.Leaf{CommonName: name}, "alpha")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		open[name] = c
	}
	v := *s.live()
	v.ExportClients = []string{"db2"}
	s.effective.Store(&v)
	a.expelUnlisted(s)
	if err := open["db1"].Flush(); err == nil {
		t.Error("who was taken off the list is still served")
	}
	if err := open["db2"].Flush(); err != nil {
		t.Errorf("who is on the list: %v", err)
	}
}

func leaf(t *testing.T, cfg *tls.Config) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cfg.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDemoteAndSwitchoverWithClients(t *testing.T) {
	a, vols := start(t, nil)
	v := vols["crm"]
	ops := map[string]func(force bool) error{
		"demote": func(force bool) error {
			return a.Demote(t.Context(), "crm", control.DemoteRequest{Force: force})
		},
		"switchover": func(force bool) error {
			return a.Switchover(t.Context(), "crm", control.SwitchoverRequest{To: "beta", Force: force})
		},
	}
	for name, op := range ops {
		v.setRole("primary")
		c, err := dial(t, a, "crm")
		if err != nil {
			t.Fatal(err)
		}
		before := v.count(name)
		if err := op(false); code(t, err) != protocol.CodeBusy || !strings.Contains(err.Error(), "in use by 1 client") {
			t.Errorf("%s with a client: %v", name, err)
		}
		if v.count(name) != before {
			t.Errorf("%s reached the volume in spite of a client", name)
		}
		if err := c.Flush(); err != nil {
			t.Errorf("the client of a refused %s: %v", name, err)
		}
		// No client gets in while the role is being given up.
		v.during = func() {
			if _, err := dial(t, a, "crm"); err == nil || !strings.Contains(err.Error(), "giving up the primary role") {
				t.Errorf("during %s: %v", name, err)
			}
		}
		if err := op(true); err != nil {
			t.Errorf("%s --force: %v", name, err)
		}
		v.during = nil
		if err := c.Flush(); err == nil {
			t.Errorf("the client survived %s --force", name)
		}
	}
	v.setRole("primary")
	if _, err := dial(t, a, "crm"); err != nil {
		t.Errorf("the door stays closed: %v", err)
	}
}

// A volume that loses the role by itself loses its clients.
func TestLostRoleExpelsClients(t *testing.T) {
	a, vols := start(t, nil)
	vols["crm"].setRole("primary")
	c, err := dial(t, a, "crm")
	if err != nil {
		t.Fatal(err)
	}
	vols["crm"].setRole("secondary")
	a.event(a.slot("crm"), volume.Event{Volume: "crm", Peer: "beta", Field: "role", New: "secondary"}) // a peer's is none of it
	if err := c.Flush(); err != nil {
		t.Errorf("expelled for a peer's role: %v", err)
	}
	a.event(a.slot("crm"), volume.Event{Volume: "crm", Field: "role", Old: "primary", New: "secondary"})
	for c.Flush() == nil { // until it is disconnected, which has no reply
	}
}

func TestOneOperationAtATime(t *testing.T) {
	a, vols := start(t, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	vols["crm"].during = func() { close(entered); <-leave }
	done := make(chan error, 1)
	go func() { done <- a.Promote(context.Background(), "crm", control.PromoteRequest{}) }()
	<-entered
	if err := a.Demote(t.Context(), "crm", control.DemoteRequest{}); code(t, err) != protocol.CodeBusy {
		t.Errorf("a second operation: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	vols["crm"].during = nil
	if err := a.Demote(t.Context(), "crm", control.DemoteRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	a, _ := start(t, nil)
	if err := a.Promote(t.Context(), "db", control.PromoteRequest{}); code(t, err) != protocol.CodeUnknownVolume || !strings.Contains(err.Error(), "crm, web") {
		t.Error(err)
	}
	if err := a.Connect(t.Context(), "web", control.ConnectRequest{Peer: "gamma"}); code(t, err) != protocol.CodeNotAllowed || !strings.Contains(err.Error(), "its peers: beta") {
		t.Error(err)
	}
	if err := a.Switchover(t.Context(), "crm", control.SwitchoverRequest{}); code(t, err) != protocol.CodeNotAllowed {
		t.Error(err)
	}
	if err := a.Connect(t.Context(), "crm", control.ConnectRequest{}); err != nil {
		t.Errorf("all peers: %v", err)
	}
}
