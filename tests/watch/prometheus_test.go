package watch

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

const deploy = "../../deploy"

// tool returns the path of a program of the package prometheus.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is missing: install the Debian package prometheus", name)
	}
	return path
}

// promtool runs it and fails with its output.
func promtool(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	cmd := exec.Command(tool(t, "promtool"), args...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// freePort returns a loopback address that is free now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// waiting is how long an alert must hold before it fires; the test's Prometheus does
// not wait.
var waiting = regexp.MustCompile(`(?m)^ +for: .*\n`)

// server is a running Prometheus.
type server struct {
	t    *testing.T
	base string
}

// startPrometheus scrapes the targets once a second and evaluates the alerts.
func startPrometheus(t *testing.T, targets []string) *server {
	t.Helper()
	program, dir, address := tool(t, "prometheus"), t.TempDir(), freePort(t)
	rules, err := os.ReadFile(deploy + "/prometheus/qrbd.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("qrbd.rules.yml", waiting.ReplaceAllString(string(rules), ""))
	list, err := json.Marshal(targets)
	if err != nil {
		t.Fatal(err)
	}
	config := write("prometheus.yml", fmt.Sprintf(`global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [qrbd.rules.yml]
scrape_configs:
  - job_name: qrbd
    static_configs: [{targets: %s}]
`, list))
	log := filepath.Join(dir, "log")
	p, err := process.Start(process.Options{Log: log, Dir: dir, Args: []string{program, "--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(dir, "data"),
		"--web.listen-address=" + address, "--log.level=warn"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM, 20*time.Second); err != nil {
			t.Logf("prometheus: %v", err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("log of prometheus:\n%s", text)
		}
	})
	s := &server{t: t, base: "http://" + address}
	s.until("it is ready", func() string {
		resp, err := http.Get(s.base + "/-/ready")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return resp.Status
		}
		return ""
	})
	return s
}

// until waits until lacking returns "".
func (s *server) until(what string, lacking func() string) {
	s.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		missing := lacking()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waiting until %s: %s", what, missing)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// sample is one series of a query's result.
type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

// query evaluates an expression now.
func (s *server) query(expr string) ([]sample, error) {
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	if err := s.get("/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s", answer.Error)
	}
	return answer.Data.Result, nil
}

// alert is one that is pending or firing.
type alert struct {
	Labels      map[string]string
	Annotations map[string]string
	State       string
}

func (a alert) String() string {
	return fmt.Sprintf("%s{instance=%s,name=%s,conn_name=%s}", a.Labels["alertname"], a.Labels["instance"], a.Labels["name"], a.Labels["conn_name"])
}

func (s *server) alerts() []alert {
	s.t.Helper()
	var answer struct{ Data struct{ Alerts []alert } }
	if err := s.get("/api/v1/alerts", &answer); err != nil {
		s.t.Fatal(err)
	}
	return answer.Data.Alerts
}

func (s *server) get(path string, into any) error {
	resp, err := http.Get(s.base + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}
