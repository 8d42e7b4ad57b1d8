package uml

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/crm"
	"github.com/qrbd/qrbd/tests/stack/database"
)

// What the two machines of TestFailover share, through the host's directory SHARED.
const (
	sharedEnv = "QRBD_UML_SHARED"
	receipts  = "receipts" // the book of acknowledged commits
	underLoad = "under-load"
	isDead    = "alpha-is-dead"

	guestState  = "/run/qrbd"
	deadline    = 4 * time.Minute // for each machine; it takes half a minute on a machine of its own
	commitsWant = 200
)

// killsEnv says how often alpha's agent is killed under its database before alpha is
// switched off. Each costs half a minute: the kernel's own time for a request.
const killsEnv = "QRBD_UML_KILLS"

// kills returns how often, and how long the test may take in all.
func kills(t *testing.T) (n int, limit time.Duration) {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(killsEnv), "0"))
	if err != nil {
		t.Fatalf("%s: %v", killsEnv, err)
	}
	return n, deadline + time.Duration(n)*time.Minute
}

// TestFailover: two kernels, each with an agent and with the volume as its own block
// device, a file system and MariaDB on it. The first is switched off in the middle of
// its work; the second takes over, and has every commit that was acknowledged.
func TestFailover(t *testing.T) {
	need(t, "nbd")
	if testing.Short() {
		t.Skip("boots two kernels with a database")
	}
	if _, err := exec.LookPath("mariadbd"); err != nil {
		t.Skip("needs mariadbd (apt install mariadb-server)")
	}
	shared := t.TempDir()
	qrbd := buildQrbd(t, shared)
	configure(t, qrbd, shared)
	left, right, err := Cable()
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	defer right.Close()

	_, limit := kills(t)
	power, off := context.WithCancelCause(within(t, limit))
	defer off(nil)
	var alpha sync.WaitGroup
	var alphaSaid bytes.Buffer
	alpha.Go(func() {
		m := machine(t, "alpha", shared, "TestGuestAlpha")
		m.Cable, m.Address = left, "10.9.0.1/24"
		code, err := m.Run(power, &alphaSaid)
		if !errors.Is(err, errPower) {
			t.Errorf("alpha ended by itself: exit %d, %v", code, err)
			off(errors.New("alpha has ended"))
		}
	})
	var beta sync.WaitGroup
	beta.Go(func() {
		defer off(errors.New("beta has ended")) // ends the wait below, too
		m := machine(t, "beta", shared, "TestGuestBeta")
		m.Cable, m.Address = right, "10.9.0.2/24"
		var out bytes.Buffer
		code, err := m.Run(within(t, limit), &out)
		if code != 0 || err != nil {
			t.Errorf("beta: exit %d, %v", code, err)
		}
		t.Logf("beta:\n%s", strings.ReplaceAll(out.String(), "\r", ""))
	})
	if err := awaitFile(power, filepath.Join(shared, underLoad)); err != nil {
		t.Errorf("alpha never got to work: %v", err)
	}
	off(errPower)
	alpha.Wait()
	if t.Failed() {
		t.Logf("alpha:\n%s", strings.ReplaceAll(alphaSaid.String(), "\r", ""))
	}
	if err := os.WriteFile(filepath.Join(shared, isDead), nil, 0o600); err != nil {
		t.Error(err)
	}
	beta.Wait()
}

var errPower = errors.New("the host switched it off")

// machine describes the machine that runs a guest test.
func machine(t *testing.T, name, shared, test string) *Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, limit := kills(t)
	return &Machine{
		Name: name, Memory: "2G", Modules: []string{"nbd nbds_max=4"}, Dir: t.TempDir(),
		Env:     []string{guestEnv + "=1", sharedEnv + "=" + shared, killsEnv + "=" + cmp.Or(os.Getenv(killsEnv), "0"), "GOMAXPROCS=1"},
		Command: []string{self, "-test.run", "^" + test + "$", "-test.v", "-test.timeout", limit.String()},
	}
}

// buildQrbd makes the program, static, as it ships.
func buildQrbd(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "qrbd")
	cmd := exec.Command("go", "build", "-o", path, "github.com/qrbd/qrbd/cmd/qrbd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// configure makes identities and configurations of alpha and beta, as they are to be
// on their own machines: init on both, and each one's stanza in the other's file.
func configure(t *testing.T, qrbd, shared string) {
	t.Helper()
	names := []string{"alpha", "beta"}
	stanzas := make([]string, 2)
	for i, name := range names {
		dir := filepath.Join(shared, name)
		out, err := exec.Command(qrbd, "init", "--name", name, "--listen", fmt.Sprintf("10.9.0.%d:7790", i+1), "--state", dir,
			"--control", filepath.Join(guestState, "control.sock"), "--config", dir+".toml", "--json").CombinedOutput()
		if err != nil {
			t.Fatalf("init: %v\n%s", err, out)
		}
		var made struct{ Stanza string }
		if err := json.Unmarshal(out, &made); err != nil {
			t.Fatal(err)
		}
		stanzas[i] = made.Stanza
	}
	for i, name := range names {
		path := filepath.Join(shared, name+".toml")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), filepath.Join(shared, name), filepath.Join(guestState, "state"))
		text += fmt.Sprintf("\n%s\n[[volume]]\nname = \"crm\"\nsize = \"384MiB\"\nbacking = %q\nexport = %q\nprotocol = \"C\"\n",
			stanzas[1-i], filepath.Join(guestState, "crm.img"), "unix:"+filepath.Join(guestState, "crm.sock"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitFile returns when there is a file of that name.
func awaitFile(ctx context.Context, path string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// node is the agent of the machine that a guest test runs in.
type node struct {
	t      *testing.T
	name   string
	shared string
	device string
	began  time.Time
	agent  *exec.Cmd
}

// startNode sets the machine's agent up and starts it.
func startNode(t *testing.T, name string) *node {
	t.Helper()
	n := &node{t: t, name: name, shared: os.Getenv(sharedEnv), began: time.Now()}
	if err := os.MkdirAll(guestState, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(guestState, "state"), os.DirFS(filepath.Join(n.shared, name))); err != nil {
		t.Fatal(err)
	}
	n.must("chmod", "-R", "go=", filepath.Join(guestState, "state")) // CopyFS opens what it copies to all
	n.qrbd("create", "crm")
	t.Cleanup(func() { // the machine ends soon after
		n.kill()
		if t.Failed() {
			if b, err := os.ReadFile(n.log()); err == nil {
				t.Logf("the agent's log:\n%s", b)
			}
		}
	})
	n.start()
	n.say("the agent runs")
	return n
}

func (n *node) log() string { return filepath.Join(n.shared, n.name+".log") }

// start starts the agent and waits until it answers.
func (n *node) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.agent = exec.Command(filepath.Join(n.shared, "qrbd"), "agent", "--config", n.config())
	n.agent.Stdout, n.agent.Stderr = log, log
	if err := n.agent.Start(); err != nil {
		n.t.Fatal(err)
	}
	for exec.CommandContext(n.t.Context(), filepath.Join(n.shared, "qrbd"), "status", "--config", n.config()).Run() != nil {
		if n.t.Context().Err() != nil {
			n.t.Fatal("the agent does not answer")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// kill ends the agent at once.
func (n *node) kill() {
	if n.agent != nil {
		_ = n.agent.Process.Kill()
		_ = n.agent.Wait() // killed is an error, too
	}
}

func (n *node) config() string { return filepath.Join(n.shared, n.name+".toml") }

func (n *node) say(what string) {
	n.t.Logf("%s %5.1f s: %s", n.name, time.Since(n.began).Seconds(), what)
}

func (n *node) must(args ...string) string {
	n.t.Helper()
	out, err := exec.CommandContext(n.t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %v\n%s", n.name, args, err, out)
	}
	return string(out)
}

func (n *node) qrbd(args ...string) string {
	n.t.Helper()
	return n.must(append([]string{filepath.Join(n.shared, "qrbd")}, append(args, "--config", n.config())...)...)
}

// attach makes the volume the machine's block device and says which.
func (n *node) attach() {
	n.t.Helper()
	n.qrbd("attach", "crm", "--method", "nbd")
	device, err := filepath.EvalSymlinks("/dev/qrbd/crm")
	if err != nil || !strings.HasPrefix(device, "/dev/nbd") {
		n.t.Fatalf("/dev/qrbd/crm is %q, %v: not the kernel's own client", device, err)
	}
	n.device = device
	n.say("attached as " + device)
}

// server is the machine's MariaDB on the mounted volume.
func (n *node) server() *database.Server {
	n.t.Helper()
	dir := filepath.Join(guestState, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.must("mount", n.device, dir)
	s, err := database.New(database.MariaDB, dir, filepath.Join(guestState, "db"))
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

func TestGuestAlpha(t *testing.T) {
	guest(t)
	n := startNode(t, "alpha")
	n.qrbd("promote", "crm", "--force")
	n.qrbd("wait", "crm", "--for", "connected", "--timeout", "60s")
	n.attach()
	n.must("mkfs.ext4", "-q", n.device)
	s := n.server()
	for _, step := range []func(context.Context) error{s.Init, s.Start, s.CreateDatabase} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n.say("MariaDB serves")
	c, err := crm.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.say("the CRM's tables are filled")
	book, err := crm.NewBook(filepath.Join(n.shared, receipts))
	if err != nil {
		t.Fatal(err)
	}
	load := crm.NewLoad(4, book)
	go func() {
		n.struck(load)
		if err := os.WriteFile(filepath.Join(n.shared, underLoad), nil, 0o600); err != nil {
			t.Error(err)
		}
	}()
	t.Errorf("the load ended: %v; it should end with the machine", load.Run(t.Context(), c))
}

// struck returns when the load has done its work, with an agent that was killed now and
// then in the middle of it.
func (n *node) struck(load *crm.Load) {
	times, _ := kills(n.t)
	for i := range times + 1 {
		for want := load.Commits() + commitsWant/int64(times+1) + 1; load.Commits() < want; {
			time.Sleep(20 * time.Millisecond)
		}
		if i == times {
			return
		}
		n.kill()
		began := time.Now()
		n.start()
		for had := load.Commits(); load.Commits() < had+2; { // one may have been answered before
			time.Sleep(20 * time.Millisecond)
		}
		n.say(fmt.Sprintf("kill %d: commits went on after %.1f s, %d so far", i+1, time.Since(began).Seconds(), load.Commits()))
	}
}

func TestGuestBeta(t *testing.T) {
	guest(t)
	n := startNode(t, "beta")
	if err := awaitFile(t.Context(), filepath.Join(n.shared, isDead)); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	n.say("alpha is dead")
	n.qrbd("promote", "crm", "--peer-fenced")
	n.attach()
	s := n.server()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := crm.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(died)
	f, err := os.Open(filepath.Join(n.shared, receipts))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := crm.ReadReceipts(f)
	if err != nil {
		t.Fatal(err)
	}
	audit, err := c.Audit(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	if !audit.Good() || audit.Acknowledged < commitsWant {
		t.Errorf("acknowledged %d, found %d, lost %d, wrong %d, broken %d: %v", audit.Acknowledged, audit.Found, audit.Lost, audit.Wrong, audit.Broken, audit.Faults)
	}
	n.say(fmt.Sprintf("%d commits acknowledged, %d found, %d lost; MariaDB served %.1f s after the death", audit.Acknowledged, audit.Found, audit.Lost, took.Seconds()))
	if err := errors.Join(c.Close(), s.Stop()); err != nil {
		t.Error(err)
	}
	n.must("umount", filepath.Join(guestState, "mnt"))
	n.must("e2fsck", "-fn", n.device)
	n.qrbd("detach", "crm")
	if _, err := os.Lstat("/dev/qrbd/crm"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/dev/qrbd/crm after detach: %v", err)
	}
}
