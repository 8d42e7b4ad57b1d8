package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/volume"
)

// startWatched runs an agent of fake volumes with metrics on address.
func startWatched(t *testing.T, address string) (a *Agent, logged *bytes.Buffer, err error) {
	t.Helper()
	logged = &bytes.Buffer{}
	o := Options{Config: testConfig(t), Log: slog.New(slog.NewTextHandler(logged, nil)), Version: "test"}
	o.Config.Node.Metrics = address
	o.network = func(*Agent) (network, error) { return noNetwork{}, nil }
	o.openVolume = func(_ *Agent, s *slot) (running, error) { return newFakeVolume(s.cfg.Name), nil }
	a, err = Start(o)
	if err == nil {
		t.Cleanup(func() { stop(t, a) })
	}
	return a, logged, err
}

func scrape(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestMetricsAddress(t *testing.T) {
	a, logged, err := startWatched(t, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + a.metrics.Addr().String()
	if code, body := scrape(t, base+"/metrics"); code != 200 || !strings.Contains(body, `qrbd_resource_role{name="web",qrbd_resource_role="secondary"} 1`) ||
		!strings.Contains(body, `qrbd_link_up{conn_name="gamma"} 0`) || !strings.Contains(body, `qrbd_request_seconds_count{name="crm",op="write",stage="whole"} 0`) {
		t.Errorf("%d\n%s", code, body)
	}
	if code, body := scrape(t, base+"/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("%d %q", code, body)
	}
	if strings.Contains(logged.String(), "without authentication") {
		t.Errorf("a loopback address is warned of: %s", logged)
	}

	other, logged, err := startWatched(t, "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, port, _ := net.SplitHostPort(other.metrics.Addr().String()); port == "" || !strings.Contains(logged.String(), "without authentication") {
		t.Errorf("an address that everybody reaches is not warned of: %s", logged)
	}
}

func TestMetricsAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, _, err = startWatched(t, l.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "metrics on "+l.Addr().String()) || !strings.Contains(err.Error(), "another program listens there") {
		t.Errorf("%v", err)
	}
	_, _, err = startWatched(t, "192.0.2.1:9790") // TEST-NET
	if err == nil || !strings.Contains(err.Error(), "does not have the address") {
		t.Errorf("%v", err)
	}
}

// TestPairCounts: two real agents count a write and a flush, tell how far the peer is
// behind when it is gone, and have figures of their link.
func TestPairCounts(t *testing.T) {
	p := newPair(t)
	if err := CreateOffline(p.cfgA, "crm", false); err != nil {
		t.Fatal(err)
	}
	if err := CreateOffline(p.cfgB, "crm", false); err != nil {
		t.Fatal(err)
	}
	a, b := p.begin(p.cfgA), p.begin(p.cfgB)
	running := true
	defer func() {
		if running {
			stop(t, b)
		}
	}()
	defer stop(t, a)
	wait(t, p.cfgA, control.WaitConnected)
	if err := a.Promote(t.Context(), "crm", control.PromoteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	wait(t, p.cfgA, control.WaitUpToDate)
	vol, err := a.slot("crm").opened()
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		t.Helper()
		done := make(chan error, 1)
		vol.Submit(&blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: blockdev.NewBuffer(4096), Done: func(_ *blockdev.Request, err error) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	write()
	st, err := control.NewClient(p.cfgA.Node.Control).StatusIO(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io := st.Volumes[0].IO
	if io == nil || io.Ops["write"].Bytes != 4096 || io.Peers["beta"].Remote["write"].Count != 1 {
		t.Fatalf("counted %+v", io)
	}
	if peer := st.Volumes[0].Peers[0]; peer.BehindBytes != 0 || peer.BehindSeconds == nil || *peer.BehindSeconds != 0 {
		t.Errorf("a peer in sync is behind: %+v", peer)
	}
	if l := st.Links[0]; !l.Up || l.Peer != "beta" || l.Transport != "quic" || l.RTTMicros == 0 || l.BytesSent == 0 || l.PacketsSent == 0 || l.CongestionWindow == 0 || l.Protocol == "" {
		t.Errorf("link %+v", l)
	}
	if c := st.Certificates; st.IdentitySince.IsZero() || len(c) != 1 || c[0].Use != "peers" || c[0].Ends.Before(time.Now()) {
		t.Errorf("key of %v, certificates %v", st.IdentitySince, c)
	}
	plain, err := control.NewClient(p.cfgA.Node.Control).Status(t.Context())
	if err != nil || plain.Volumes[0].IO != nil {
		t.Errorf("%v, %+v", err, plain.Volumes[0].IO)
	}

	stop(t, b)
	running = false
	write()
	peer := waitBehind(t, a)
	if peer.BehindBytes != 4096 || *peer.BehindSeconds > 60 {
		t.Errorf("%d bytes, %v s behind", peer.BehindBytes, *peer.BehindSeconds)
	}
	if a.Status().Health().Healthy {
		t.Error("healthy without the peer")
	}
}

// waitBehind returns the peer's status once it is behind by some time.
func waitBehind(t *testing.T, a *Agent) volume.PeerStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for {
		changed := a.events.Changed()
		p := a.Status().Volumes[0].Peers[0]
		if p.BehindSeconds != nil && *p.BehindSeconds > 0 {
			return p
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("never behind: %+v", p)
		}
	}
}

// TestEventsTellStates: the stream of an agent begins with all states, so that a
// watcher who was away knows them.
func TestEventsTellStates(t *testing.T) {
	a, _, err := startWatched(t, "")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = control.NewClient(a.cfg.Node.Control).Events(t.Context(), &control.Position{}, func(e control.EventLine) error {
		got[string(e.Kind)+" "+e.Volume+" "+e.Field] = e.New
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"state crm role": "secondary", "state web disk": "up-to-date", "change  agent": "started"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q, of %v", key, got[key], want, got)
		}
	}
	a.event(a.slot("crm"), volume.Event{Volume: "crm", Field: volume.EventsLost, New: "3"})
	last := a.events.Last()
	lines, _, _ := a.events.After(control.Position{Seq: last.Seq - 3})
	if len(lines) != 3 || lines[0].Kind != control.KindState || lines[0].Volume != "crm" {
		t.Errorf("after a loss: %+v", lines)
	}
}

// TestReach: a peer says whether it reaches this node, at the address that it has.
func TestReach(t *testing.T) {
	p := newPair(t)
	wrong := freePort(t) // nobody listens there: only alpha can begin a session
	p.cfgB.Peers[0].Address = wrong
	a, b := p.begin(p.cfgA), p.begin(p.cfgB)
	defer stop(t, b)
	defer stop(t, a)
	awaitLink(t, a)
	got, err := control.NewClient(p.cfgA.Node.Control).Reach(t.Context())
	if err != nil || len(got) != 1 || got[0].Unasked != "" || got[0].Address != wrong || got[0].Build != "test" || !strings.Contains(got[0].Reason, "nobody listens") {
		t.Errorf("from beta: %+v, %v", got, err)
	}
	if r := b.Reach(t.Context()); len(r) != 1 || r[0].Reason != "" || r[0].Unasked != "" || r[0].RTTMicros == 0 && r[0].Largest == 0 || r[0].Address != p.cfgA.Peers[0].Address {
		t.Errorf("from alpha: %+v", r)
	}
	lonely, _, err := startWatched(t, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range lonely.Reach(t.Context()) {
		if r.Unasked == "" {
			t.Errorf("without a session: %+v", r)
		}
	}
}

// awaitLink waits until there is a session with the only peer.
func awaitLink(t *testing.T, a *Agent) {
	t.Helper()
	for range 600 {
		if a.links.status()[0].Up {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	t.Fatal("no session")
}
