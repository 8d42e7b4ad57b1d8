package failover

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/stack/commits"
	"github.com/qrbd/qrbd/tests/stack/mount"
)

func TestMain(m *testing.M) {
	mount.Alone()
	os.Exit(cluster.Main(m))
}

const volume = "crm"

// document is what the test takes its configuration from.
const document = "../../docs/FAILOVER.md"

// site is the three hosts with what runs on them.
type site struct {
	*cluster.Cluster
	t                  *testing.T
	alpha, beta, gamma *cluster.Node
	ledger             *commits.Ledger
	watcher            *cluster.Primaries
	stopLoad           func()
	bin                string // of PostgreSQL
}

// blocks returns the code blocks of a kind in the document.
func blocks(t *testing.T, kind string) []string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatalf("%s has no block of %s", document, kind)
	}
	return out
}

func need(t *testing.T) (bin string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("skipped: needs %s", dev)
		}
	}
	for _, p := range []string{"mkfs.ext4", "runuser", "mountpoint"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: needs %s", p)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // the pattern is good
	if len(found) == 0 {
		t.Skip("skipped: needs PostgreSQL")
	}
	return filepath.Dir(found[len(found)-1])
}

func mnt(n *cluster.Node) string { return filepath.Join(n.Dir, "mnt") }
func run(n *cluster.Node) string { return filepath.Join(n.Dir, "run") }

// newSite makes the hosts as the document says, and starts them.
func newSite(t *testing.T) *site {
	t.Helper()
	s := siteWith(t, func(c *cluster.Config, v *cluster.VolumeConfig, section string) string {
		v.Extra = "quorum = \"majority\"\nwitnesses = [\"gamma\"]\n"
		return section
	})
	s.firstTime(s.Nodes)
	return s
}

// siteWith is newSite with another arbiter: change returns the failover section.
func siteWith(t *testing.T, change func(c *cluster.Config, v *cluster.VolumeConfig, section string) string) *site {
	t.Helper()
	bin := need(t)
	section := blocks(t, "toml")[0]
	at := strings.Index(section, "[volume.failover]")
	script := blocks(t, "sh")[0]
	s := &site{t: t, ledger: &commits.Ledger{}}
	s.Cluster = cluster.New(t, cluster.Options{Nodes: []string{"alpha", "beta", "gamma"}, Links: true, Size: "192MiB", Configure: func(c *cluster.Config) {
		dir := filepath.Dir(c.Control)
		c.Extra = "heartbeat = \"400ms\"\npeer_timeout = \"2s\"\ndevices = \"" + filepath.Join(dir, "dev") + "\"\n"
		v := c.Volume(volume)
		path := filepath.Join(dir, "crm-service")
		mine := change(c, v, strings.ReplaceAll(section[at:], "/usr/local/sbin/crm-service", path)+"check_every = \"1s\"\n")
		if c.Name == "gamma" {
			v.Backing, v.Export = "none", ""
			return
		}
		v.Extra += mine
		text := script
		for name, value := range map[string]string{"mnt": filepath.Join(dir, "mnt"), "run": filepath.Join(dir, "run"), "bin": bin} {
			text = regexp.MustCompile("(?m)^"+name+"=\\S+").ReplaceAllString(text, name+"="+value)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}})
	s.alpha, s.beta, s.gamma = s.Nodes[0], s.Nodes[1], s.Nodes[2]
	t.Cleanup(s.clear)
	for _, n := range s.Nodes { // the server's user has to get through
		for dir := n.Dir; dir != "/"; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o011 != 0o011 {
				if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	s.bin = bin
	return s
}

// firstTime does what the document says under that name.
func (s *site) firstTime(nodes []*cluster.Node) {
	s.t.Helper()
	for _, n := range nodes {
		n.Must("create", volume)
		n.Start()
	}
	for _, n := range nodes {
		n.WaitConnected(volume, 15*time.Second)
	}
	a := s.alpha
	a.Must("failover", "pause", volume)
	a.Must("promote", volume, "--force")
	a.Must("attach", volume)
	dev := filepath.Join(a.Dir, "dev", volume)
	do := func(args ...string) {
		s.t.Helper()
		if out, stderr, code := a.There(args...); code != 0 {
			s.t.Fatalf("%v: %d\n%s%s", args, code, out, stderr)
		}
	}
	do("mkfs.ext4", "-q", dev)
	do("mkdir", "-p", mnt(a))
	do("mount", dev, mnt(a))
	do("mkdir", mnt(a)+"/pg")
	do("chown", "postgres", mnt(a)+"/pg")
	do("runuser", "-u", "postgres", "--", s.bin+"/initdb", "-D", mnt(a)+"/pg", "-U", "postgres", "-A", "trust", "--locale", "C", "-E", "UTF8", "-N")
	do("umount", mnt(a))
	a.Must("detach", volume)
	s.inSync()
	a.Must("failover", "resume", volume)
	s.runsOn(a, 30*time.Second)
	db := s.open(a)
	defer db.Close()
	if err := commits.Create(s.t.Context(), db); err != nil {
		s.t.Fatal(err)
	}
}

// open returns the database of a node.
func (s *site) open(n *cluster.Node) *sql.DB {
	db, err := place(n).Open()
	if err != nil {
		s.t.Fatal(err)
	}
	return db
}

func place(n *cluster.Node) commits.Place { return commits.Postgres(n.Name, run(n)) }

// load has clients commit, and the watcher watch, until verify.
func (s *site) load() {
	places := []commits.Place{place(s.alpha), place(s.beta)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.ledger.Run(ctx, 4, places)
	}()
	s.stopLoad = func() {
		cancel()
		<-ended
		s.stopLoad = nil
	}
	s.watcher = cluster.WatchPrimaries([]string{"alpha", "beta"}, func(ctx context.Context, node string) (cluster.Volume, error) {
		return cluster.Ask(ctx, s.Node(node).Config.Control, volume)
	})
}

// failover is the standing of a node.
func standing(v cluster.Volume) string {
	if v.Failover == nil {
		return "none"
	}
	return v.Failover.Standing
}

// runsOn waits until a node is primary and says that the database runs there.
func (s *site) runsOn(n *cluster.Node, limit time.Duration) {
	s.t.Helper()
	n.Wait(volume, "running the database", limit, func(v cluster.Volume) bool { return v.Role == "primary" && standing(v) == "running" })
}

// commitsAfter waits for the first commit after a moment and returns how long it took.
func (s *site) commitsAfter(t time.Time, at *cluster.Node, limit time.Duration) time.Duration {
	s.t.Helper()
	for end := t.Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, ok := s.ledger.FirstAfter(t); ok && (at == nil || c.Place == at.Name) {
			return c.At.Sub(t)
		}
		if c, ok := s.ledger.FirstAfter(t); ok {
			t = c.At // one that was under way
		}
	}
	s.t.Fatalf("no commit within %v", limit)
	return 0
}

func (s *site) inSync() {
	s.t.Helper()
	for _, pair := range [][2]*cluster.Node{{s.alpha, s.beta}, {s.beta, s.alpha}} {
		pair[0].Wait(volume, "in sync", time.Minute, func(v cluster.Volume) bool {
			p := v.Peer(pair[1].Name)
			return v.Disk == "up-to-date" && p.Replication == "established" && p.Disk == "up-to-date" && p.OutOfSync == 0
		})
	}
}

// primary returns the node that has the role.
func (s *site) primary() *cluster.Node {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, n := range []*cluster.Node{s.alpha, s.beta} {
			if v := n.Volume(volume); v.Serves() {
				return n
			}
		}
	}
	s.t.Fatal("nobody is primary")
	return nil
}

func (s *site) other(n *cluster.Node) *cluster.Node {
	if n == s.alpha {
		return s.beta
	}
	return s.alpha
}

// suffer has something happen to a site whose users are at work, and judges what became of it.
func (s *site) suffer(t *testing.T, name string, do func(s *site, primary, other *cluster.Node)) {
	t.Helper()
	t.Log(name)
	s.load()
	p := s.primary()
	s.commitsAfter(time.Now(), p, soon)
	do(s, p, s.other(p))
	s.verify()
	if t.Failed() {
		t.Fatalf("after: %s", name)
	}
}

// verify ends the load, waits until all is well, and looks whether all that was
// acknowledged is there.
func (s *site) verify() {
	s.t.Helper()
	s.stopLoad()
	s.inSync()
	p := s.primary()
	s.runsOn(p, time.Minute)
	s.watcher.Stop()
	if wrong := s.watcher.Faults(); len(wrong) > 0 {
		s.t.Errorf("two primaries at %d moments: %s", len(wrong), wrong[0])
	}
	db := s.open(p)
	defer db.Close()
	wrong, err := s.ledger.Check(s.t.Context(), db)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(wrong) > 0 {
		s.t.Errorf("%d of %d acknowledged commits: %s", len(wrong), s.ledger.Len(), wrong[0])
	}
	s.t.Logf("%d commits; %s", s.ledger.Len(), s.watcher)
	s.equal(p)
}

// equal compares the replicas while nothing writes.
func (s *site) equal(p *cluster.Node) {
	s.t.Helper()
	if stdout, stderr, code := p.RunFor(time.Minute, "verify", volume); code != 0 {
		s.t.Errorf("the replicas are not equal: %s%s", stdout, stderr)
	}
}

// die is the death of a host: every process on it, then what its kernel had.
func (s *site) die(n *cluster.Node) {
	s.t.Helper()
	n.SignalAll(syscall.SIGKILL)
}

// boot brings a host back that died: what its kernel had is gone.
func (s *site) boot(n *cluster.Node) {
	s.t.Helper()
	n.Run("detach", volume, "--force")
	for end := time.Now().Add(10 * time.Second); unix.Unmount(mnt(n), 0) != nil && mounted(mnt(n)) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	if err := os.RemoveAll(run(n)); err != nil { // /run does not outlive a boot
		s.t.Fatal(err)
	}
	n.Start()
}

func mounted(dir string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && slices.ContainsFunc(strings.Split(string(text), "\n"), func(l string) bool {
		f := strings.Fields(l)
		return len(f) > 4 && f[4] == dir
	})
}

// clear takes everything down, whatever the test left.
func (s *site) clear() {
	if s.stopLoad != nil {
		s.stopLoad()
		s.watcher.Stop()
	}
	for _, n := range s.Nodes {
		n.SignalAll(syscall.SIGCONT)
		if s.t.Failed() {
			for _, f := range []string{filepath.Join(run(n), "log"), filepath.Join(n.Config.State, volume+".failover.log")} {
				if text, err := os.ReadFile(f); err == nil {
					s.t.Logf("%s of %s:\n%s", filepath.Base(f), n.Name, text[max(0, len(text)-3000):])
				}
			}
		}
	}
	for _, n := range s.Nodes {
		n.SignalAll(syscall.SIGKILL)
		if n != s.gamma {
			n.Run("detach", volume, "--force")
			for unix.Unmount(mnt(n), unix.MNT_DETACH) == nil {
			}
		}
	}
}
