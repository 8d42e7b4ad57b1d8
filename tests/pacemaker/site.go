package pacemaker

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

//go:embed testdata/cluster-start
var clusterStart []byte

//go:embed testdata/cluster-stop
var clusterStop []byte

//go:embed testdata/fence_ipmilan
var fenceAgent []byte

const volume = "crm"

// site is a cluster as one of the chapters of docs/PACEMAKER.md describes it.
type site struct {
	t        *testing.T
	chapter  string
	dir      string
	doc      map[string]string
	machines []*machine
	wires    *wires
	power    *power
	watch    *cluster.Primaries
	users    *users
}

// names are a chapter's machines, witnesses last.
var names = map[string][]string{
	"witness": {"alpha", "beta", "gamma"},
	"three":   {"alpha", "beta", "gamma"},
	"alone":   {"alpha", "beta"},
}

// need skips the test where it cannot run.
func need(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("needs %s", path)
		}
	}
	for tool, pkg := range map[string]string{"corosync": "corosync", "pacemakerd": "pacemaker", "crm_mon": "pacemaker-cli-utils", "crm": "crmsh",
		"ocf-tester": "resource-agents", "fuser": "psmisc", "nft": "nftables", "unshare": "util-linux", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt install %s)", tool, pkg)
		}
	}
	if postgresVersion() == "" {
		t.Skip("needs PostgreSQL (apt install postgresql)")
	}
}

// postgresVersion is the directory of the one that is installed, like "15".
func postgresVersion() string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return ""
	}
	return strings.Split(found[len(found)-1], "/")[4]
}

// newSite makes the machines of a chapter, switches them on and has users at work.
func newSite(t *testing.T, chapter string) *site {
	t.Helper()
	s := newMachines(t, chapter)
	s.prepare()
	s.form()
	s.watch = cluster.WatchPrimaries(names[chapter], s.ask)
	s.users = newUsers(t, s.wires, s.dir)
	return s
}

// newMachines makes the machines alone, and switches them on.
func newMachines(t *testing.T, chapter string) *site {
	t.Helper()
	need(t)
	doc, err := blocks()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("qrbd-e2e-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, chapter: chapter, dir: dir, doc: doc, wires: newWires(t, names[chapter])}
	t.Cleanup(s.close)
	switches := filepath.Join(dir, "power")
	if err := os.Mkdir(switches, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, name := range names[chapter] {
		s.machines = append(s.machines, &machine{name: name, top: filepath.Join(dir, name), power: switches, wires: s.wires, index: i})
	}
	s.install()
	s.each("boot", func(m *machine) error { return m.boot() })
	s.power = newPower(t, switches, s.machines)
	return s
}

// block returns a block of the chapter, with what a test cannot have replaced: its disk is
// smaller, its PostgreSQL that of this host.
func (s *site) block(name string) string {
	s.t.Helper()
	text, ok := s.doc[name]
	if !ok { // a chapter that says "as above"
		text, ok = s.doc[strings.Replace(name, s.chapter+" ", "witness ", 1)]
	}
	if !ok {
		s.t.Fatalf("docs/PACEMAKER.md has no block %q", name)
	}
	return strings.NewReplacer(`"10GiB"`, `"1GiB"`, "/postgresql/15/", "/postgresql/"+postgresVersion()+"/").Replace(text)
}

// each does the same to all machines at once.
func (s *site) each(what string, do func(m *machine) error) {
	s.t.Helper()
	errs := make(chan error, len(s.machines))
	for _, m := range s.machines {
		go func() {
			err := do(m)
			if err != nil {
				err = fmt.Errorf("%s %s: %w", what, m.name, err)
			}
			errs <- err
		}()
	}
	for range s.machines {
		if err := <-errs; err != nil {
			s.t.Error(err)
		}
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// install puts the package's files and the configuration on every machine.
func (s *site) install() {
	s.t.Helper()
	qrbd, err := os.ReadFile(cluster.Qrbd.Path(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	stanzas := map[string]string{}
	hosts := "127.0.0.1 localhost\n"
	for i, m := range s.machines {
		stanzas[m.name] = s.identity(m, i)
		hosts += fmt.Sprintln(clients.address(i), m.name)
	}
	for i, m := range s.machines {
		toml := fmt.Sprintf("[node]\nname = %q\nlisten = \"%s:7790\"\n", m.name, replication.address(i))
		for _, p := range s.machines {
			if p != m {
				toml += stanzas[p.name]
			}
		}
		block := s.chapter + " volume"
		if _, own := s.doc[block+" "+m.name]; own {
			block += " " + m.name
		}
		toml += s.block(block)
		files := map[string][]byte{
			"/usr/bin/qrbd": qrbd, "/usr/lib/ocf/resource.d/qrbd/volume": s.repository("deploy/ocf/qrbd/volume"),
			"/usr/lib/qrbd/qrbd-fence-pacemaker": s.repository("deploy/ocf/qrbd-fence-pacemaker"),
			"/usr/sbin/fence_ipmilan":            fenceAgent, "/usr/local/sbin/cluster-start": clusterStart, "/usr/local/sbin/cluster-stop": clusterStop,
		}
		for name, data := range files {
			if err := m.install(name, data, 0o755); err != nil {
				s.t.Fatal(err)
			}
		}
		for name, text := range map[string]string{
			"/etc/qrbd/qrbd.toml": toml, "/etc/corosync/corosync.conf": s.block(s.chapter+" corosync") + inNamespaces, "/root/crm.cib": s.block(s.chapter + " crmsh"),
			"/etc/hosts": hosts,
		} {
			if err := m.install(name, []byte(text), 0o644); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// inNamespaces is what corosync is told besides: there is no cgroup and no real-time
// scheduling for it.
const inNamespaces = `
system {
  sched_rr: no
  move_to_root_cgroup: no
}
logging {
  to_stderr: no
  to_syslog: no
  to_logfile: yes
  logfile: /var/log/corosync/corosync.log
}
`

func (s *site) repository(name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// identity makes a machine's key and returns the section that others have of it.
func (s *site) identity(m *machine, i int) string {
	s.t.Helper()
	data := filepath.Join(m.top, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		s.t.Fatal(err)
	}
	out, err := exec.Command(cluster.Qrbd.Path(s.t), "init", "--name", m.name, "--listen", replication.address(i)+":7790",
		"--state", data, "--config", filepath.Join(m.top, "init.toml"), "--json").Output()
	var made struct{ Stanza string }
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		s.t.Fatalf("identity of %s: %v\n%s", m.name, err, out)
	}
	return made.Stanza
}

// stepMax bounds a step that should be quick, with room for a busy host.
const stepMax = time.Minute

// on runs a shell script on a machine.
func (s *site) on(m *machine, script string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), stepMax)
	defer cancel()
	out, err := m.run(ctx, "sh", "-ec", script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// until waits for a condition.
func (s *site) until(what string, limit time.Duration, ok func() (string, bool)) {
	s.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		state, done := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("not within %v: %s; %s", limit, what, state)
		}
	}
}

// prepare makes the volume, its file system and its database.
func (s *site) prepare() {
	s.t.Helper()
	for _, m := range s.machines {
		s.on(m, "qrbd create "+volume)
	}
	alpha := s.machines[0]
	s.on(alpha, "qrbd wait crm --for connected --timeout 20s")
	s.on(alpha, strings.Replace(s.block("prepare"), "umount ", "sed -i '1i host all all "+usersAddress+"/32 trust' /srv/crm/postgres/pg_hba.conf\numount ", 1))
	s.until("in sync", stepMax, s.inSync)
}

// form starts the cluster and loads its configuration.
func (s *site) form() {
	s.t.Helper()
	s.each("start the cluster on", func(m *machine) error {
		ctx, cancel := context.WithTimeout(s.t.Context(), stepMax)
		defer cancel()
		_, err := m.run(ctx, "sh", "-ec", "touch /etc/corosync/enabled; cluster-start")
		return err
	})
	alpha := s.machines[0]
	s.until("a cluster of all", 2*time.Minute, s.joined)
	out := s.on(alpha, "crm -F configure load update /root/crm.cib")
	if strings.Contains(out, "ERROR") {
		s.t.Fatalf("crm configure: %s", out)
	}
	s.until("the service runs", 2*time.Minute, func() (string, bool) {
		db, err := s.wires.open("")
		if err != nil {
			return err.Error(), false
		}
		defer db.Close()
		err = db.PingContext(s.t.Context())
		return fmt.Sprint(err), err == nil
	})
}

// joined reports whether every machine is in the cluster, and nothing of it is under way.
func (s *site) joined() (string, bool) {
	out, err := s.crmMon()
	online := regexp.MustCompile(`Online: \[(.*)\]`).FindStringSubmatch(out)
	return fmt.Sprint(out, err), err == nil && strings.Contains(out, "partition with quorum") && online != nil && len(strings.Fields(online[1])) == len(s.machines)
}

// complete reports whether every replica is started, and one of them promoted.
func (s *site) complete() (string, bool) {
	if state, ok := s.joined(); !ok {
		return state, false
	}
	out, err := s.crmMon()
	promoted := regexp.MustCompile(`Promoted: \[ \w+ \]`).MatchString(out)
	rest := regexp.MustCompile(`Unpromoted: \[(.*)\]`).FindStringSubmatch(out)
	return fmt.Sprint(out, err), err == nil && promoted && rest != nil && len(strings.Fields(rest[1])) == len(s.replicas())-1
}

// crmMon is the cluster's state as the first machine that is on sees it.
func (s *site) crmMon() (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	for _, m := range s.machines {
		if _, on := m.on(); on {
			return m.run(ctx, "crm_mon", "--one-shot", "--inactive")
		}
	}
	return "", errOff
}

// ask returns the state of the volume on a machine.
func (s *site) ask(ctx context.Context, name string) (cluster.Volume, error) {
	socket, on := s.machine(name).path("/run/qrbd/control.sock")
	if !on {
		return cluster.Volume{}, errOff
	}
	return cluster.Ask(ctx, socket, volume)
}

func (s *site) machine(name string) *machine {
	for _, m := range s.machines {
		if m.name == name {
			return m
		}
	}
	panic("no machine " + name)
}

// replicas are the machines with data.
func (s *site) replicas() []*machine {
	if s.chapter == "witness" {
		return s.machines[:2]
	}
	return s.machines
}

// inSync reports whether every replica has all.
func (s *site) inSync() (string, bool) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	all := ""
	ok := true
	for _, m := range s.replicas() {
		v, err := s.ask(ctx, m.name)
		all += fmt.Sprintf("%s: %v %v; ", m.name, v, err)
		ok = ok && err == nil && v.Disk == "up-to-date"
		for _, p := range v.Peers {
			if p.Disk != "diskless" {
				ok = ok && p.Connection == "connected" && p.Replication == "established" && p.Disk == "up-to-date" && p.OutOfSync == 0
			}
		}
	}
	return all, ok
}

// primary returns the machine that serves, and another replica.
func (s *site) primary() (is, other *machine) {
	s.t.Helper()
	s.until("somebody is primary", stepMax, func() (string, bool) {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		defer cancel()
		is, other = nil, nil
		for _, m := range s.replicas() {
			if v, err := s.ask(ctx, m.name); err == nil && v.Serves() {
				is = m
			} else if other == nil {
				other = m
			}
		}
		return "", is != nil && other != nil
	})
	return is, other
}

// close switches everything off, and says what has happened if the test failed.
func (s *site) close() {
	for _, m := range s.machines {
		m.resume()
	}
	if s.t.Failed() {
		s.tell()
	}
	if s.watch != nil {
		s.watch.Stop()
	}
	if s.power != nil {
		s.power.close()
	}
	for _, m := range s.machines {
		if err := m.off(); err != nil {
			s.t.Error(err)
		}
	}
	if s.t.Failed() && os.Getenv("QRBD_E2E_KEEP") != "" {
		s.t.Logf("kept %s", s.dir)
		return
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

// tell logs what each machine has to say.
func (s *site) tell() {
	if s.watch != nil {
		s.t.Logf("%v; two at once: %q; stonith: %q", s.watch, s.watch.Faults(), s.power.shot())
	}
	for _, m := range s.machines {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		out, err := m.run(ctx, "sh", "-c", "crm_mon -1rfA | tail -n 60; qrbd status")
		cancel()
		s.t.Logf("%s: %v\n%s", m.name, err, out)
		for log, lines := range map[string]string{"pacemaker/pacemaker.log": "-E -v 'debug:|info:'", "qrbd.log": "-v level=DEBUG", "corosync/corosync.log": "-i corosync"} {
			text, _ := exec.Command("sh", "-c", fmt.Sprintf("grep %s %s/up/var/log/%s | tail -n 60 | cut -c1-300", lines, m.top, log)).CombinedOutput()
			s.t.Logf("%s of %s:\n%s", log, m.name, text)
		}
	}
}
