package readme

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qrbd/qrbd/tests/cluster"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

func readSteps(t *testing.T) []step {
	t.Helper()
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := parse(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

// TestTwoHosts is a new user with the README, with a file written before the
// death of alpha that is looked for after every change of hands.
func TestTwoHosts(t *testing.T) {
	steps := readSteps(t)
	hosts := newHosts(t)
	sections := map[string]string{}
	var last string // the host of the last mount
	for _, s := range steps {
		if s.dies != "" {
			hosts[s.dies].run("echo order 4711 >/srv/crm/order && sync /srv/crm/order")
			hosts[s.dies].die()
			hosts[s.dies].boot()
		}
		for _, name := range s.hosts {
			h := hosts[name]
			if s.kind == "toml" {
				h.configure(s.text)
				continue
			}
			out := h.do(s.text)
			t.Logf("%s. On %s:\n%s%s", s.number, name, s.text, out)
			if strings.Contains(s.text, "qrbd init") {
				introduce(t, hosts, sections, name, out)
			}
			if strings.Contains(s.text, "mount /dev/qrbd/crm") {
				last = name
			}
			if s.number > "5" && strings.Contains(s.text, "mount /dev/qrbd/crm") {
				if got := h.run("cat /srv/crm/order"); got != "order 4711\n" {
					t.Errorf("after step %s the file reads %q", s.number, got)
				}
			}
		}
	}
	var st struct {
		Volumes []struct {
			Role  string
			Disk  string
			Peers []struct{ Disk string }
		}
	}
	out := hosts[last].run("qrbd status --json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatal(err)
	}
	if v := st.Volumes[0]; last != "alpha" || v.Role != "primary" || v.Disk != "up-to-date" || v.Peers[0].Disk != "up-to-date" {
		t.Errorf("in the end, on %s: %s", last, out)
	}
	hosts[last].run("umount /srv/crm; qrbd detach crm")
}

// introduce gives each host the other's peer section, once both have printed
// theirs: what the README asks for in words.
func introduce(t *testing.T, hosts map[string]*host, sections map[string]string, name, printed string) {
	t.Helper()
	at := strings.Index(printed, "[[peer]]")
	if at < 0 {
		t.Fatalf("init printed no peer section:\n%s", printed)
	}
	sections[name] = printed[at:]
	if len(sections) < len(hosts) {
		return
	}
	for other, h := range hosts {
		for name, section := range sections {
			if name != other {
				h.configure(section)
			}
		}
	}
}

// newHosts makes alpha and beta with the README's addresses, or skips the test
// and says what is missing.
func newHosts(t *testing.T) map[string]*host {
	t.Helper()
	need(t, "ip", "unshare", "setsid", "losetup", "mkfs.ext4", "bash")
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("skipped: needs %s for the README's steps", dev)
		}
	}
	qrbd := build(t)
	hosts := map[string]*host{}
	for _, name := range []string{"alpha", "beta"} {
		hosts[name] = newHost(t, name, fmt.Sprintf("qe%dn0%s", os.Getpid(), name), qrbd)
	}
	a, b := hosts["alpha"].netns, hosts["beta"].netns
	ip(t, "link", "add", "e0", "netns", a, "type", "veth", "peer", "name", "e0", "netns", b)
	for ns, address := range map[string]string{a: "10.0.0.1/24", b: "10.0.0.2/24"} {
		ip(t, "-n", ns, "addr", "add", address, "dev", "e0")
		ip(t, "-n", ns, "link", "set", "e0", "up")
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	for _, h := range hosts {
		h.boot()
	}
	return hosts
}

// need skips the test where it cannot run, and says what is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root to make namespaces and mounts")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: needs %q for the steps", tool)
		}
	}
}

// build returns the program's path; it goes with the test.
func build(t *testing.T) string {
	t.Helper()
	qrbd := filepath.Join(t.TempDir(), "qrbd")
	if out, err := exec.Command("go", "build", "-o", qrbd, "github.com/qrbd/qrbd/cmd/qrbd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return qrbd
}

// newNetns makes a network namespace. cluster.Main removes one of such a name when this
// process was killed.
func newNetns(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("skipped: no network namespaces here: %v: %s", err, out)
	}
	t.Cleanup(func() { ip(t, "netns", "del", name) })
}

// newHost makes a host that is not booted yet.
func newHost(t *testing.T, name, netns, qrbd string) *host {
	t.Helper()
	h := &host{t: t, name: name, netns: netns, disk: t.TempDir(), qrbd: qrbd}
	newNetns(t, netns)
	t.Cleanup(h.die)
	if err := os.Mkdir(filepath.Join(h.disk, "var"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "/etc", filepath.Join(h.disk, "etc")).CombinedOutput(); err != nil {
		t.Fatalf("a copy of /etc: %v: %s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(h.disk, "etc", "qrbd")); err != nil {
		t.Fatal(err)
	}
	return h
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestSteps keeps a change of the README's form from emptying the walk.
func TestSteps(t *testing.T) {
	steps := readSteps(t)
	var all strings.Builder
	numbers := []string{}
	for _, s := range steps {
		all.WriteString(s.text)
		if !slices.Contains(numbers, s.number) {
			numbers = append(numbers, s.number)
		}
	}
	if want := []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}; !slices.Equal(numbers, want) {
		t.Errorf("steps %v, want %v", numbers, want)
	}
	for _, command := range []string{"init", "config check", "create", "agent", "promote", "wait", "status", "promote crm --peer-fenced", "attach crm", "detach crm", "switchover"} {
		if !strings.Contains(all.String(), "qrbd "+command) {
			t.Errorf("no step runs qrbd %s", command)
		}
	}
	for _, bad := range []string{"# nothing", "\n## Two hosts, step by step\n```sh\nls\n```\n", "\n## Two hosts, step by step\n**Step one**\n", "\n## Two hosts, step by step\n**1. On alpha**\n```sh\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken for steps", bad)
		}
	}
}
