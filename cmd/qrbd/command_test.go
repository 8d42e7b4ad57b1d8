package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode is an agent that notes what it was asked.
type fakeNode struct {
	mu      sync.Mutex
	calls   []string
	err     error
	status  control.NodeStatus
	reports []volume.VerifyReport
}

func (f *fakeNode) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeNode) FailoverPause(_ context.Context, name string, r control.FailoverPauseRequest) error {
	return f.note("failover-pause %s %+v", name, r)
}
func (f *fakeNode) FailoverTest(_ context.Context, name string, r control.FailoverTestRequest, told func(string)) (failover.Rehearsal, error) {
	told("stopped here")
	return failover.Rehearsal{To: "beta", Steps: []failover.Step{{What: "stopped here", Took: 1}}}, f.note("failover-test %s %+v", name, r)
}
func (f *fakeNode) Reach(context.Context) []control.PeerReach { return nil }

func (f *fakeNode) StatusIO() control.NodeStatus { return f.Status() }

func (f *fakeNode) Status() control.NodeStatus { return f.status }
func (f *fakeNode) Explain(n string) (volume.Explanation, error) {
	return volume.Explanation{Volume: n, Promote: "would succeed", Peers: []volume.ExplainPeer{}}, f.note("explain %s", n)
}
func (f *fakeNode) Create(_ context.Context, n string, r control.CreateRequest) error {
	return f.note("create %s %+v", n, r)
}
func (f *fakeNode) Promote(_ context.Context, n string, r control.PromoteRequest) error {
	return f.note("promote %s %+v", n, r)
}
func (f *fakeNode) Demote(_ context.Context, n string, r control.DemoteRequest) error {
	return f.note("demote %s %+v", n, r)
}
func (f *fakeNode) Switchover(_ context.Context, n string, r control.SwitchoverRequest) error {
	return f.note("switchover %s %+v", n, r)
}
func (f *fakeNode) Connect(_ context.Context, n string, r control.ConnectRequest) error {
	return f.note("connect %s %+v", n, r)
}
func (f *fakeNode) Disconnect(_ context.Context, n string, r control.DisconnectRequest) error {
	return f.note("disconnect %s %+v", n, r)
}
func (f *fakeNode) ReplaceDisk(_ context.Context, n string) error {
	return f.note("replace-disk %s", n)
}
func (f *fakeNode) Reload(context.Context) (control.ReloadReport, error) {
	return control.ReloadReport{File: "/etc/qrbd/qrbd.toml", Applied: []string{"peer gamma added"}, Restart: []string{"node.heartbeat"}}, f.note("reload")
}
func (f *fakeNode) Destroy(_ context.Context, n string, r control.DestroyRequest) error {
	return f.note("destroy %s %+v", n, r)
}
func (f *fakeNode) Resize(_ context.Context, n string, r control.ResizeRequest) error {
	return f.note("resize %s %+v", n, r)
}
func (f *fakeNode) Invalidate(_ context.Context, n string) error { return f.note("invalidate %s", n) }
func (f *fakeNode) Outdate(_ context.Context, n string) error    { return f.note("outdate %s", n) }
func (f *fakeNode) Archives(n string) ([]volume.ArchiveInfo, error) {
	until := time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)
	return []volume.ArchiveInfo{
		{ID: "20261122-165644-cdef", Volume: n, Time: time.Date(2026, 11, 22, 16, 56, 44, 0, time.UTC), Winner: "beta", Why: "discard", Phase: "following", Exact: true, Bytes: 5 << 20, Blocks: 1234},
		{ID: "20261122-175644-0001", Volume: n, Time: time.Date(2026, 11, 22, 17, 56, 44, 0, time.UTC), Winner: "beta", Why: "discard", Phase: "sealed", Until: &until, Reason: "restored", Bytes: 8192},
	}, f.note("archives %s", n)
}
func (f *fakeNode) ExportArchive(ctx context.Context, n, id string, r control.ExportRequest, serving func(string)) error {
	if err := f.note("export %s %s %+v", n, id, r); err != nil {
		return err
	}
	serving("unix:" + r.Socket)
	if r.ForSeconds == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}
func (f *fakeNode) RestoreArchive(_ context.Context, n, id string, progress func(done, total int64)) error {
	progress(1, 2)
	return f.note("restore %s %s", n, id)
}
func (f *fakeNode) RemoveArchive(_ context.Context, n, id string) error {
	return f.note("remove %s %s", n, id)
}
func (f *fakeNode) Verify(_ context.Context, n string, r control.VerifyRequest, _ func(done, total int64)) ([]volume.VerifyReport, error) {
	return f.reports, f.note("verify %s %+v", n, r)
}

// bench is a node's files and a way to run commands.
type bench struct {
	t      *testing.T
	dir    string
	config string
	socket string
}

// newBench writes a configuration with the volumes crm and web.
func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	b := &bench{t: t, dir: dir, config: filepath.Join(dir, "qrbd.toml"), socket: filepath.Join(dir, "c.sock")}
	text := fmt.Sprintf("[node]\nname = \"alpha\"\nlisten = \"127.0.0.1:7790\"\nstate = \"%s/state\"\ncontrol = \"%s\"\n", dir, b.socket)
	for _, v := range []string{"crm", "web"} {
		text += fmt.Sprintf("[[volume]]\nname = \"%s\"\nsize = \"1MiB\"\nbacking = \"%s/%s.img\"\nexport = \"tcp:127.0.0.1:10809\"\n", v, dir, v)
	}
	b.write(b.config, text)
	return b
}

func (b *bench) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// agent runs a fake agent behind the control socket.
func (b *bench) agent(node control.Node) *control.Ring {
	b.t.Helper()
	ring := control.NewRing(0)
	s, err := control.Listen(b.socket, control.Access{}, node, ring, slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Close(ctx)
	})
	return ring
}

// run runs a command line; {config} is the configuration's path.
func (b *bench) run(line string) (code int, out, errs string) {
	b.t.Helper()
	var o, e bytes.Buffer
	args := strings.Fields("qrbd " + line)
	for i := range args {
		args[i] = strings.NewReplacer("{config}", b.config, "{dir}", b.dir).Replace(args[i])
	}
	code = run(b.t.Context(), args, &terminal{out: &o, err: &e})
	return code, o.String(), e.String()
}

// Flags on either side, and what reaches the agent.
func TestCommandsReachTheAgent(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{}
	b.agent(node)
	cases := []struct{ line, want string }{
		{"create crm", "create crm {Force:false}"},
		{"create crm --force", "create crm {Force:true}"},
		{"promote crm", "promote crm {Force:false PeerFenced:false}"},
		{"promote crm --force --peer-fenced", "promote crm {Force:true PeerFenced:true}"},
		{"promote --peer-fenced crm", "promote crm {Force:false PeerFenced:true}"},
		{"demote --force crm", "demote crm {Force:true}"},
		{"switchover crm --to beta", "switchover crm {To:beta Force:false}"},
		{"switchover --to=beta crm --force", "switchover crm {To:beta Force:true}"},
		{"connect crm", "connect crm {Peer: DiscardMyData:false}"},
		{"connect crm beta --discard-my-data", "connect crm {Peer:beta DiscardMyData:true}"},
		{"disconnect crm beta", "disconnect crm {Peer:beta}"},
		{"replace-disk crm", "replace-disk crm"},
		{"invalidate crm", "invalidate crm"},
		{"resize crm 20GiB", "resize crm {Size:21474836480 Force:false}"},
		{"resize --force crm 1MiB", "resize crm {Size:1048576 Force:true}"},
		{"destroy crm --yes --archives", "destroy crm {Backing:false Archives:true Force:false}"},
		{"destroy --force --yes crm --backing", "destroy crm {Backing:true Archives:false Force:true}"},
		{"verify crm beta", "verify crm {Peer:beta Off:0 Len:0 Rate:0 Repair:false From: Resume:false Stop:false}"},
		{"explain crm --json", "explain crm"},
	}
	for _, c := range cases {
		for _, line := range []string{c.line + " --config {config}", "--config {config} " + c.line, strings.Replace(c.line, " ", " --config={config} ", 1)} {
			node.calls = nil
			code, _, errs := b.run(line)
			if code != exitDone || errs != "" {
				t.Errorf("%s: exit %d, %s", line, code, errs)
			}
			if len(node.calls) != 1 || node.calls[0] != c.want {
				t.Errorf("%s: the agent was asked %q, want %q", line, node.calls, c.want)
			}
		}
	}
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{}
	b.agent(node)
	node.status = control.NodeStatus{Node: "alpha", Volumes: []volume.Status{{Name: "crm", Role: "secondary"}}}
	b.write(b.dir+"/bad.toml", "[node]\nnam = \"a\"\n")
	refusal := &volume.Error{Code: protocol.CodeBusy, Text: "volume crm is in use by 1 client: use --force"}
	cases := []struct {
		line string
		err  error
		code int
		text string // of stderr
	}{
		{"version", nil, 0, ""},
		{"--version", nil, 0, ""},
		{"--help", nil, 0, ""},
		{"status --help", nil, 0, ""},
		{"help", nil, 0, ""},
		{"help promote", nil, 0, ""},
		{"help frobnicate", nil, 2, `no command "frobnicate"`},
		{"status", nil, 0, ""},
		{"status crm", nil, 0, ""},
		{"config check", nil, 0, ""},
		{"", nil, 2, "name a command"},
		{"frobnicate", nil, 2, `no command "frobnicate"`},
		{"status --frob", nil, 2, "-frob"},
		{"status crm web", nil, 2, "too many arguments"},
		{"promote", nil, 2, "qrbd promote VOLUME"},
		{"promote crm --force=maybe", nil, 2, "force"},
		{"status crm --config", nil, 2, "config"},
		{"switchover crm", nil, 2, "--to PEER"},
		{"wait crm", nil, 2, "--for takes"},
		{"wait crm --for rain", nil, 2, "--for takes"},
		{"wait crm --for primary --timeout soon", nil, 2, "timeout"},
		{"wait crm --for primary --timeout 0s", nil, 2, "timeout"},
		{"status --watch --interval 1ms", nil, 2, "interval"},
		{"init --name alpha", nil, 2, "--listen"},
		{"init --name al/pha --listen 10.0.0.1", nil, 2, "--name"},
		{"config show", nil, 2, "config check"},
		{"agent --log-level loud", nil, 2, "log-level"},
		{"agent --log-format xml", nil, 2, "log-format"},
		{"demote crm", refusal, 1, "volume crm is in use by 1 client: use --force"},
		{"outdate crm", nil, 0, ""},
		{"outdate crm --fence-code", nil, 4, ""},
		{"outdate crm --fence-code", &volume.Error{Code: protocol.CodeTwoPrimaries, Text: "crm is primary on alpha"}, 6, "crm is primary on alpha"},
		{"outdate crm --fence-code", refusal, 1, "in use"},
		{"outdate crm", refusal, 1, "in use"},
		{"status db", nil, 1, `volume "db" is not configured on alpha; there is: crm`},
		{"wait crm --for primary --timeout 10ms", nil, 1, "it is secondary"},
		{"wait db --for primary", nil, 1, "not configured"},
		{"config check --config {dir}/bad.toml", nil, 1, "bad.toml:2: node.nam: unknown key"},
		{"status --config {dir}/none.toml", nil, 1, "qrbd init"},
		{"status --control {dir}/none.sock", nil, 1, "the agent is not running (no answer on "},
	}
	for _, c := range cases {
		node.err = c.err
		line := c.line
		if !strings.Contains(line, "--config") && line != "" && !strings.HasPrefix(line, "--") {
			line += " --config {config}"
		}
		code, _, errs := b.run(line)
		if code != c.code {
			t.Errorf("qrbd %s: exit %d, want %d (%s)", c.line, code, c.code, errs)
		}
		if (c.text == "") != (errs == "") || !strings.Contains(errs, c.text) {
			t.Errorf("qrbd %s: stderr %q, want …%s…", c.line, errs, c.text)
		}
		for _, l := range strings.Split(strings.TrimSuffix(errs, "\n"), "\n") {
			if errs != "" && !strings.HasPrefix(l, "qrbd: ") {
				t.Errorf("qrbd %s: a line of stderr does not say who speaks: %q", c.line, l)
			}
		}
	}
}

// With --control a fault in the configuration does not blind the operator.
func TestControlNeedsNoConfiguration(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{})
	if code, _, errs := b.run("status --control " + b.socket + " --config /nowhere"); code != exitDone {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestConfigFromEnvironment(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{})
	t.Setenv("QRBD_CONFIG", b.config)
	if code, _, errs := b.run("status"); code != exitDone {
		t.Errorf("exit %d: %s", code, errs)
	}
	if code, _, _ := b.run("status --config /nowhere"); code != exitFailed {
		t.Error("--config does not win over QRBD_CONFIG")
	}
}

func TestJSONOfEveryCommandThatReads(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{status: control.NodeStatus{Node: "alpha", Volumes: []volume.Status{{Name: "crm", Role: "primary"}}}}
	ring := b.agent(node)
	ring.Add(volume.Event{Volume: "crm", Field: "role", Old: "secondary", New: "primary"})
	cases := []struct{ line, want string }{
		{"status --json", `"node":"alpha"`},
		{"status crm --json", `"role":"primary"`},
		{"identity --json", `{"name":"alpha","key":"qk1`},
		{"explain crm --json", `"promote":"would succeed"`},
		{"verify crm --json", `[]`},
		{"wait crm --for primary --json", `{"volume":"crm","for":"primary","reached":true}`},
		{"events --once --json", `"seq":1,"time"`},
		{"version --json", `{"version":`},
		{"config check --json", `"volumes":2`},
		{"init --name beta --listen 127.0.0.1:7791 --state {dir}/b --config {dir}/b.toml --json", `"stanza":"[[peer]]`},
	}
	for _, c := range cases {
		line := c.line
		if !strings.Contains(line, "--config") {
			line += " --config {config}"
		}
		code, out, errs := b.run(line)
		if code != exitDone || !strings.Contains(out, c.want) || !json.Valid([]byte(out)) {
			t.Errorf("qrbd %s: exit %d %s\n%s", c.line, code, errs, out)
		}
	}
}

func TestVerifyThatFindsDifferences(t *testing.T) {
	b := newBench(t)
	r := volume.VerifyReport{Peer: "beta", Checked: 1 << 20, Bad: 8192}
	r.Ranges = append(r.Ranges, struct {
		Off int64 `json:"off"`
		Len int64 `json:"len"`
	}{4096, 8192})
	b.agent(&fakeNode{reports: []volume.VerifyReport{r}})
	code, out, errs := b.run("verify crm --config {config}")
	if code != exitFailed || !strings.Contains(errs, "the replicas differ") {
		t.Errorf("exit %d, %q", code, errs)
	}
	if want := "beta: 1 MiB compared, 8 KiB differ, in:\n  8192 bytes at 4096\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestInit(t *testing.T) {
	b := newBench(t)
	line := "init --name beta --listen 0.0.0.0:7790 --state {dir}/b/state --config {dir}/b/qrbd.toml"
	code, out, errs := b.run(line)
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if !strings.Contains(out, "[[peer]]\nname    = \"beta\"\naddress = \"ADDRESS-OF-beta:7790\"\nkey     = \"qk1") {
		t.Errorf("stanza:\n%s", out)
	}
	key := filepath.Join(b.dir, "b/state/identity.key")
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("identity key: %v, %v", fi, err)
	}
	before, _ := os.ReadFile(b.dir + "/b/qrbd.toml")
	if code, _, errs := b.run(strings.Replace(line, "beta", "gamma", 1)); code != exitFailed || !strings.Contains(errs, "not overwritten") {
		t.Errorf("a second init: exit %d, %s", code, errs)
	}
	if after, _ := os.ReadFile(b.dir + "/b/qrbd.toml"); !bytes.Equal(before, after) {
		t.Error("the second init changed the configuration")
	}
	_, first, _ := b.run("identity --config {dir}/b/qrbd.toml")
	if !strings.Contains(out, strings.Fields(first)[1]) {
		t.Errorf("identity prints %q, init printed %q", first, out)
	}
	if code, out, errs := b.run("config check --config {dir}/b/qrbd.toml"); code != exitDone {
		t.Errorf("what init writes is not valid: %s%s", out, errs)
	}
}

func TestCreateWithoutAgent(t *testing.T) {
	b := newBench(t)
	code, out, errs := b.run("create crm --config {config}")
	if code != exitDone || !strings.Contains(out, "qrbd promote crm --force") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	for _, f := range []string{"crm.img", "state/crm.meta"} {
		if _, err := os.Stat(filepath.Join(b.dir, f)); err != nil {
			t.Error(err)
		}
	}
	if code, _, errs := b.run("create crm --config {config}"); code != exitFailed || !strings.Contains(errs, "--force") {
		t.Errorf("again: exit %d, %s", code, errs)
	}
	if code, _, errs := b.run("create db --config {config}"); code != exitFailed || !strings.Contains(errs, "there is: crm, web") {
		t.Errorf("unknown: exit %d, %s", code, errs)
	}
}

func TestCreateOfVolumeTheAgentDoesNotKnow(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{err: &volume.Error{Code: protocol.CodeUnknownVolume, Text: "not configured"}})
	if code, _, errs := b.run("create crm --config {config}"); code != exitFailed || !strings.Contains(errs, "qrbd reload") {
		t.Errorf("exit %d, %s", code, errs)
	}
	if code, _, errs := b.run("create db --config {config}"); code != exitFailed || !strings.Contains(errs, "not configured") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// TestDestroyAsks: without --yes nothing is destroyed unless somebody types the name.
func TestDestroyAsks(t *testing.T) {
	b := newBench(t)
	node := &fakeNode{}
	b.agent(node)
	if code, _, errs := b.run("destroy crm --config {config}"); code != exitFailed || !strings.Contains(errs, "--yes") || len(node.calls) != 0 {
		t.Errorf("exit %d, %s, %q", code, errs, node.calls)
	}
}

func TestReloadSays(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{})
	code, out, errs := b.run("reload --config {config}")
	if code != exitDone || out != "applied: peer gamma added\nneeds a restart of the agent: node.heartbeat\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestInterrupted(t *testing.T) {
	b := newBench(t)
	b.agent(&fakeNode{status: control.NodeStatus{Node: "alpha", Volumes: []volume.Status{{Name: "crm", Role: "secondary"}}}})
	var o, e bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	ctx2, cancel2 := context.WithCancel(ctx)
	context.AfterFunc(ctx, cancel2)
	defer cancel2()
	code := run(ctx2, []string{"qrbd", "wait", "crm", "--for", "primary", "--config", b.config}, &terminal{out: &o, err: &e})
	if code != exitFailed {
		t.Errorf("exit %d, %s", code, e.String())
	}
}
