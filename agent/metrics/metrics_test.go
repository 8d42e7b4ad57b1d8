package metrics

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/volume"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fakeSource struct{ st control.NodeStatus }

func (f *fakeSource) Status() control.NodeStatus   { return f.st }
func (f *fakeSource) StatusIO() control.NodeStatus { return f.st }

// example is a node with a volume in order, one that is being synced, and one
// that is not open.
func example() *fakeSource {
	seconds := func(s float64) *float64 { return &s }
	var whole, remote volume.Latency
	for _, d := range []time.Duration{20 * time.Microsecond, 80 * time.Microsecond, 90 * time.Microsecond, 3 * time.Second, time.Minute} {
		whole.Add(d)
	}
	remote.Add(60 * time.Microsecond)
	none := (&volume.Latency{}).Snapshot()
	io := volume.NewMeter().Snapshot()
	io.Ops["write"] = volume.OpIO{Begun: 7, Failed: 1, Bytes: 16384, Whole: whole.Snapshot(), Local: none, DiskErrors: 2}
	io.Peers["beta"] = volume.PeerIO{Sent: 17000, Received: 300, SentSaved: 23000, ReceivedSaved: 10, Applied: 0, Wire: map[string]volume.Histogram{"write": none},
		Remote: map[string]volume.Histogram{"write": remote.Snapshot()}, Apply: map[string]volume.Histogram{}}
	return &fakeSource{control.NodeStatus{Node: "alpha", Version: "1.2.3",
		Volumes: []volume.Status{
			{Name: "crm", Size: 10 << 30, Role: "primary", Disk: "up-to-date", Clients: 2, InFlight: 3, Waiting: 1, LocalQueue: 4, ActiveExt: 12, IO: &io,
				Peers: []volume.PeerStatus{{Name: "beta", Connection: "connected", Replication: "established", Role: "secondary", Disk: "up-to-date",
					SyncPercent: 100, BehindBytes: 4096, BehindSeconds: seconds(0.25), Unacked: 4096, UnackedOps: 1, SendQueue: 2,
					Verify: &volume.VerifyStatus{Bad: 0, Ended: time.Unix(1795363200, 0)}}}},
			{Name: "mail", Size: 1 << 30, Role: "primary", Disk: "up-to-date",
				Peers: []volume.PeerStatus{{Name: "beta", Connection: "connected", Replication: "sync-source", Role: "secondary", Disk: "inconsistent",
					OutOfSync: 1 << 29, SyncPercent: 50, SyncTotal: 1 << 30, SyncDone: 1 << 29, SyncRate: 1 << 26, SyncETA: 8, SyncInFlight: 1 << 20, BehindBytes: 1 << 29}}},
			{Name: "new", Size: 1 << 20, Role: "secondary", Disk: "diskless", Reason: "not created: run qrbd create new",
				Peers: []volume.PeerStatus{{Name: "beta", Connection: "standalone", Replication: "off", Role: "unknown", Disk: "unknown"}}},
		},
		Links: []control.LinkStatus{
			{Peer: "beta", Up: true, Transport: "quic", Compression: "zstd", Protocol: "1.0", RTTMicros: 250, BytesSent: 20000, BytesReceived: 900, PacketsSent: 20, PacketsLost: 1, CongestionWindow: 40960},
			{Peer: "gamma", Reason: "no answer"},
		},
		IdentitySince: time.Unix(1790000000, 0), Certificates: []control.CertificateStatus{{Use: "peers", Ends: time.Unix(2400000000, 0)}, {Use: "tcp:10.0.0.1:10809", Ends: time.Unix(1800000000, 0)}},
	}}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func serve(t *testing.T, src Source) (base string) {
	t.Helper()
	s, err := Listen("127.0.0.1:0", src, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + s.Addr().String()
}

func fetch(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(header) == 2 {
		req.Header.Set(header[0], header[1])
	}
	resp, err := http.DefaultClient.Do(req)
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

// goVersion differs from build to build.
var goVersion = regexp.MustCompile(`goversion="[^"]*"`)

func TestMetricsGolden(t *testing.T) {
	const file = "testdata/metrics.txt"
	_, body := fetch(t, serve(t, example())+"/metrics")
	var own []string
	for _, line := range strings.Split(body, "\n") {
		if strings.Contains(line, "qrbd_") {
			own = append(own, goVersion.ReplaceAllString(line, `goversion="go"`))
		}
	}
	got := strings.Join(own, "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range max(len(g), len(w)) {
			if i >= len(g) || i >= len(w) || g[i] != w[i] {
				t.Fatalf("line %d differs (-update writes it anew):\n got  %q\n want %q", i+1, append(g, "")[min(i, len(g))], append(w, "")[min(i, len(w))])
			}
		}
	}
	for _, name := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(body, "\n"+name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestEveryMetricShown: the example has a sample of each metric, so that the golden
// file shows them all.
func TestEveryMetricShown(t *testing.T) {
	_, body := fetch(t, serve(t, example())+"/metrics")
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, d := range descs {
		if n := name.FindStringSubmatch(d.String())[1]; !strings.Contains(body, "# TYPE "+n+" ") {
			t.Errorf("%s has no sample in the example", n)
		}
	}
}

func TestLint(t *testing.T) {
	faults, err := testutil.CollectAndLint(collector{example()})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Errorf("%s: %s", f.Metric, f.Text)
	}
}

// TestEmptyNode: a node without volumes, and one whose volumes were not counted, have
// metrics too.
func TestEmptyNode(t *testing.T) {
	code, body := fetch(t, serve(t, &fakeSource{control.NodeStatus{Node: "alpha"}})+"/metrics")
	if code != http.StatusOK || !strings.Contains(body, "qrbd_resource_resources 0") || !strings.Contains(body, "qrbd_healthy 1") {
		t.Errorf("%d\n%s", code, body)
	}
}

func TestHealthz(t *testing.T) {
	fine := &fakeSource{control.NodeStatus{Node: "alpha", Volumes: example().st.Volumes[:1]}}
	evil := &fakeSource{control.NodeStatus{Node: "alpha", Volumes: []volume.Status{{Name: "crm", Disk: "failed", Reason: "EIO\nok"}}}}
	tests := []struct {
		name string
		src  *fakeSource
		code int
		text string
	}{
		{"in order", fine, 200, "ok\n"},
		{"a line for each cause", example(), 503, "mail/beta: the disk of beta is inconsistent\n" +
			"new: the disk is diskless (not created: run qrbd create new)\nnew/beta: beta is standalone\n"},
		{"a reason of two lines", evil, 503, "crm: the disk is failed (EIO ok)\n"},
		{"no volumes", &fakeSource{}, 200, "ok\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := serve(t, tt.src)
			if code, body := fetch(t, base+"/healthz"); code != tt.code || body != tt.text {
				t.Errorf("%d %q, want %d %q", code, body, tt.code, tt.text)
			}
			for _, how := range [][]string{{base + "/healthz?format=json"}, {base + "/healthz", "Accept", "application/json"}} {
				code, body := fetch(t, how[0], how[1:]...)
				var h control.Health
				if err := json.Unmarshal([]byte(body), &h); err != nil || code != tt.code || h.Healthy != (tt.code == 200) || len(h.Causes) != strings.Count(tt.text, "\n")-map[bool]int{true: 1}[h.Healthy] {
					t.Errorf("%v: %d %s (%v)", how, code, body, err)
				}
			}
		})
	}
}

func TestOtherRequests(t *testing.T) {
	base := serve(t, example())
	if code, body := fetch(t, base+"/"); code != 200 || !strings.Contains(body, "/healthz") {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := fetch(t, base+"/debug/pprof/"); code != 404 {
		t.Errorf("an unknown path is answered with %d", code)
	}
	resp, err := http.Post(base+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", resp.StatusCode)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "127.9.0.1:1": true, "[::1]:1": true, "0.0.0.0:1": false, "10.0.0.1:1": false, "[::]:1": false} {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := Loopback(a); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}
