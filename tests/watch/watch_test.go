package watch

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

func TestRules(t *testing.T) {
	promtool(t, nil, "check", "rules", deploy+"/prometheus/qrbd.rules.yml")
	promtool(t, nil, "check", "config", deploy+"/prometheus/prometheus.yml")
	// promtool looks for rule files beside the tests.
	dir := t.TempDir()
	for from, name := range map[string]string{deploy + "/prometheus/qrbd.rules.yml": "qrbd.rules.yml", "testdata/rules.test.yml": "test.yml"} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, nil, "test", "rules", filepath.Join(dir, "test.yml"))
}

// panel is a part of a Grafana dashboard.
type panel struct {
	Title   string
	Type    string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, LegendFormat string }
}

// dashboard reads deploy's dashboard.
func dashboard(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(deploy + "/grafana/qrbd.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d.Panels
}

// variables are what Grafana puts in the place of a dashboard's variables.
var variables = strings.NewReplacer("$__rate_interval", "30s", "$node", ".*", "$volume", ".*")

// TestDashboardLayout: panels fit the grid of 24 columns and do not overlap.
func TestDashboardLayout(t *testing.T) {
	taken := map[[2]int]string{}
	for _, p := range dashboard(t) {
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s and %s overlap", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
	}
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
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

// quiet are panels that show nothing while all is well.
var quiet = []string{"Failed requests and disk errors", "Resync and verify", "Time left of a sync", "Commits of metadata"}

// TestPrometheus: see the package's comment.
func TestPrometheus(t *testing.T) {
	tool(t, "prometheus")
	targets := map[string]string{"alpha": freePort(t), "beta": freePort(t)}
	c := cluster.New(t, cluster.Options{Configure: func(c *cluster.Config) { c.Extra = fmt.Sprintf("metrics = %q", targets[c.Name]) }})
	alpha := c.Up()
	load(t, alpha)
	for name, address := range targets {
		if code, body := fetch(t, "http://"+address+"/healthz"); code != 200 || body != "ok\n" {
			t.Errorf("%s: /healthz %d %s", name, code, body)
		}
		_, body := fetch(t, "http://"+address+"/metrics")
		promtool(t, strings.NewReader(body), "check", "metrics")
		checkNames(t, body)
	}

	s := startPrometheus(t, []string{targets["alpha"], targets["beta"]})
	s.until("both agents are scraped often enough for rates", func() string {
		load(t, alpha)
		r, err := s.query(`count(count_over_time(qrbd_healthy[1m]) >= 4) == 2`)
		if err != nil || len(r) == 0 {
			return fmt.Sprint(r, err)
		}
		return ""
	})
	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			expr := variables.Replace(target.Expr)
			switch got, err := s.query(expr); {
			case err != nil:
				t.Errorf("panel %q: %s\n%v", p.Title, expr, err)
			case len(got) == 0 && !slices.Contains(quiet, p.Title):
				t.Errorf("panel %q shows nothing: %s", p.Title, expr)
			}
		}
	}
	if list := s.alerts(); len(list) > 0 {
		t.Errorf("alerts while all is well: %v", list)
	}
	role, err := s.query(fmt.Sprintf(`qrbd_resource_role{instance=%q,qrbd_resource_role="primary"}`, targets["alpha"]))
	if err != nil || len(role) != 1 || role[0].Value[1] != "1" {
		t.Errorf("role of alpha: %v (%v)", role, err)
	}

	c.Node("beta").Kill()
	load(t, alpha) // so that beta lacks something
	alpha.WaitLost("crm", "beta", cluster.Timeout)
	fires(s, "QrbdAgentDown{instance="+targets["beta"]+",name=,conn_name=}", "QrbdNotConnected{instance="+targets["alpha"]+",name=crm,conn_name=beta}")
	if code, body := fetch(t, "http://"+targets["alpha"]+"/healthz"); code != 503 || !strings.HasPrefix(body, "crm/beta: beta is connecting") || strings.Count(body, "\n") != 1 {
		t.Errorf("/healthz without beta: %d %s", code, body)
	}
	behind, err := s.query(`qrbd_peerdevice_behind_seconds > 0 and on (name, conn_name) qrbd_peerdevice_behind_bytes > 0`)
	if err != nil || len(behind) != 1 || behind[0].Metric["conn_name"] != "beta" {
		t.Errorf("behind: %v (%v)", behind, err)
	}

	c.Node("beta").Start()
	c.WaitInSync("crm", cluster.Timeout)
	s.until("no alert is left", func() string {
		if list := s.alerts(); len(list) > 0 {
			return fmt.Sprint(list)
		}
		return ""
	})
}

// fires waits until exactly these alerts are firing.
func fires(s *server, want ...string) {
	s.t.Helper()
	slices.Sort(want)
	s.until("alerts fire", func() string {
		var got []string
		for _, a := range s.alerts() {
			if a.State != "firing" || a.Annotations["summary"] == "" {
				continue
			}
			got = append(got, a.String())
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return ""
		}
		return fmt.Sprintf("firing %v, want %v", got, want)
	})
}

// load writes, reads and flushes a little.
func load(t *testing.T, n *cluster.Node) {
	t.Helper()
	d := n.Dial("crm")
	defer d.Close()
	p := make([]byte, 4096)
	for i := range 16 {
		p[0] = byte(i)
		if err := d.WriteAt(p, int64(i)*4096, false); err != nil {
			t.Fatal(err)
		}
		if err := d.ReadAt(p, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}

var (
	exported = regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`)
	named    = regexp.MustCompile(`\b(?:qrbd|process|go)_[a-z_]+`)
)

// atTimes are metrics that an agent exports only when there is something to tell.
var atTimes = []string{"qrbd_peerdevice_sync_left_seconds", "qrbd_peerdevice_verify_bad_bytes"}

// checkNames holds the names in dashboard and alerts against what an agent exports.
func checkNames(t *testing.T, metrics string) {
	t.Helper()
	known := map[string]bool{}
	for _, m := range exported.FindAllStringSubmatch(metrics, -1) {
		known[m[1]] = true
		if m[2] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[m[1]+suffix] = true
			}
		}
	}
	rules, err := os.ReadFile(deploy + "/prometheus/qrbd.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(rules)}
	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			texts = append(texts, target.Expr)
		}
	}
	seen := 0
	for _, text := range texts {
		for _, name := range named.FindAllString(text, -1) {
			seen++
			if !known[name] && !slices.Contains(atTimes, name) {
				t.Errorf("no agent exports %s, which stands in: %.200s", name, text)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d names were found: the search is wrong", seen)
	}
}
