package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// fenced is a cluster with fencing. Its hook reaches the peer by another way, the control
// sockets of this host, and switches it off, which is to kill its agent. Files in dir say
// which of the two do not work.
type fencedCluster struct {
	*cluster.Cluster
	t   *testing.T
	dir string
}

const fenceScript = `#!/bin/sh
echo "$QRBD_EVENT $QRBD_NODE $QRBD_PEER $QRBD_ROLE" >> {dir}/log
[ "$QRBD_EVENT" = fence-peer ] || exit 0
[ ! -e {dir}/hang ] || sleep 600
if [ ! -e {dir}/mute ]; then
	qrbd=$(readlink /proc/$PPID/exe)
	timeout 4 "$qrbd" outdate "$QRBD_VOLUME" --fence-code --config "$(cat {dir}/$QRBD_PEER.config)"
	code=$?
	case $code in 3|4|6) exit $code ;; esac
fi
[ ! -e {dir}/off ] && kill -9 "$(cat {dir}/$QRBD_PEER.pid)" && exit 7
exit 5
`

// withFencing makes a running cluster of two; alpha is primary and both are in sync.
func withFencing(t *testing.T, policy string) (c *fencedCluster, alpha, beta *cluster.Node) {
	t.Helper()
	dir := t.TempDir()
	hook := filepath.Join(dir, "fence")
	if err := os.WriteFile(hook, []byte(strings.ReplaceAll(fenceScript, "{dir}", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	c = &fencedCluster{t: t, dir: dir}
	c.Cluster = cluster.New(t, cluster.Options{Links: true, Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = fmt.Sprintf("fencing = %q\n[volume.hooks]\nfence-peer = %q\nunfence-peer = %q\ntimeout = \"8s\"\n", policy, hook, hook)
	}})
	for _, n := range c.Nodes {
		c.put(n.Name+".config", n.ConfigPath)
	}
	alpha, beta = c.Up(), c.Nodes[1]
	c.inSync()
	return c, alpha, beta
}

// inSync waits until either node may be promoted without the other, once that is fenced.
func (c *fencedCluster) inSync() {
	c.t.Helper()
	c.WaitInSync("crm", syncWithin)
	for i, n := range c.Nodes {
		n.WaitPeer("crm", c.Nodes[1-i].Name, "bonding", lostWithin, func(p cluster.Peer) bool { return p.Bonded && !p.Fenced })
	}
	c.pids()
}

func (c *fencedCluster) put(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fencedCluster) take(name string) {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil {
		c.t.Fatal(err)
	}
}

// pids tells the switch which processes are the nodes'.
func (c *fencedCluster) pids() {
	for _, n := range c.Nodes {
		if n.Running() {
			c.put(n.Name+".pid", fmt.Sprint(n.Pid()))
		}
	}
}

// said waits until the hooks have left a line.
func (c *fencedCluster) said(line string) {
	c.t.Helper()
	var b []byte
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		b, _ = os.ReadFile(filepath.Join(c.dir, "log"))
		if strings.Contains(string(b), line+"\n") {
			return
		}
	}
	c.t.Errorf("the hooks did not say %q but\n%s", line, b)
}

func frozen(v cluster.Volume) bool { return v.Frozen != "" }
func thawed(v cluster.Volume) bool { return v.Serves() }

// waits fails the test if a request ends within a while.
func waits(t *testing.T, done <-chan error, d time.Duration) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("a request of a frozen primary ended: %v", err)
	case <-time.After(d):
	}
}

func ends(t *testing.T, done <-chan error, what string) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(lostWithin):
		t.Errorf("%s does not end", what)
	}
}

// TestFencingFreezes: a primary under resource-and-stonith that has lost its peer answers
// nothing while the hook hangs, fails or cannot reach the peer, and goes on when the peer is
// outdated; the peer is not promoted then, remembers it, and is in sync again later.
func TestFencingFreezes(t *testing.T) {
	t.Parallel()
	c, alpha, beta := withFencing(t, "resource-and-stonith")
	first, second := pattern(1, mib), pattern(2, mib)
	write(t, alpha, "crm", first, 0)
	disk := alpha.Dial("crm")
	defer disk.Abort()

	t.Log("the hook hangs")
	c.put("hang", "")
	c.put("off", "")
	c.put("mute", "")
	c.CutBoth("alpha", "beta")
	alpha.Wait("crm", "freezing", lostWithin, frozen)
	w := request(func() error { return disk.WriteAt(second, 0, false) })
	r := request(func() error { return disk.ReadAt(make([]byte, mib), 2*mib) })
	waits(t, w, 2*time.Second)
	if v := alpha.Volume("crm"); !strings.Contains(v.Frozen, "fence-peer is running") {
		t.Errorf("the status says of a hook that hangs: %q", v.Frozen)
	}
	if text := alpha.Must("explain", "crm"); !strings.Contains(text, "frozen") {
		t.Errorf("explain does not say that the volume is frozen:\n%s", text)
	}
	c.take("hang")

	t.Log("it is killed; the next one cannot reach the peer")
	alpha.Wait("crm", "saying that the hook was killed", 15*time.Second, func(v cluster.Volume) bool { return mentions(v.Frozen, "was killed") })
	alpha.Wait("crm", "saying that the peer is unreachable", 15*time.Second, func(v cluster.Volume) bool { return mentions(v.Frozen, "5, the peer is unreachable") })
	waits(t, w, time.Second)
	waits(t, r, 0)

	t.Log("the peer is outdated")
	c.take("mute")
	alpha.Wait("crm", "going on", 20*time.Second, thawed)
	ends(t, w, "a write that was frozen")
	ends(t, r, "a read that was frozen")
	if p := alpha.Volume("crm").Peer("beta"); !p.Fenced || p.Disk != "outdated" {
		t.Errorf("alpha says of beta: %+v", p)
	}
	beta.Refused([]string{"outdated"}, "promote", "crm")
	beta.Kill()
	beta.Start()
	beta.Refused([]string{"outdated"}, "promote", "crm")
	write(t, alpha, "crm", first, 4*mib)
	c.Heal("alpha", "beta")
	c.inSync()
	c.said("unfence-peer alpha beta primary")
	c.Equal("crm", "alpha", "beta")
	if !bytes.Equal(read(t, alpha, "crm", 0, mib), second) {
		t.Error("alpha lacks what it has acknowledged")
	}

	t.Log("who stops in order is not asked about")
	beta.Stop()
	write(t, alpha, "crm", first, 6*mib)
	beta.Start()
	c.inSync()

	t.Log("nobody can fence beta: the operator vouches")
	c.put("mute", "")
	c.CutBoth("alpha", "beta")
	alpha.Wait("crm", "freezing", lostWithin, frozen)
	w = request(func() error { return disk.WriteAt(first, 0, false) })
	waits(t, w, time.Second)
	alpha.Must("promote", "crm", "--peer-fenced")
	ends(t, w, "a write for which the operator vouched")
}

// TestFencingTakesOver: a secondary has a primary that was stopped, or that it cannot see,
// switched off before it is promoted. What the primary had not answered is never answered;
// started anew it is no primary, and is not promoted alone.
func TestFencingTakesOver(t *testing.T) {
	t.Parallel()
	c, alpha, beta := withFencing(t, "resource-and-stonith")
	first, second := pattern(1, mib), pattern(2, mib)
	write(t, alpha, "crm", first, 0)
	disk := alpha.Dial("crm")
	defer disk.Abort()

	t.Log("alpha is paused, and switched off by beta's hook")
	alpha.Pause()
	w := request(func() error { return disk.WriteAt(second, 0, false) })
	beta.WaitLost("crm", "alpha", lostWithin)
	beta.MustFor(30*time.Second, "promote", "crm")
	if !alpha.Exited(5 * time.Second) {
		t.Error("alpha was not switched off")
	}
	select {
	case err := <-w:
		if err == nil {
			t.Error("a primary that was switched off has answered")
		}
	case <-time.After(lostWithin):
		t.Error("a request of a primary that was switched off does not end")
	}
	c.said("fence-peer beta alpha secondary")
	if !bytes.Equal(read(t, beta, "crm", 0, mib), first) {
		t.Error("beta lacks what was acknowledged")
	}
	write(t, beta, "crm", second, 2*mib)

	t.Log("alpha is started without seeing beta: it does not take over, whatever a hook says")
	c.CutBoth("alpha", "beta")
	alpha.Start()
	alpha.Refused([]string{"may have gone on without alpha"}, "promote", "crm")
	c.Heal("alpha", "beta")
	c.inSync()
	c.Equal("crm", "alpha", "beta")

	t.Log("the link is cut: beta, primary, is told so by its word, and alpha becomes outdated by its own hook")
	c.put("off", "") // only the word is left
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	_, text, code := alpha.RunFor(30*time.Second, "promote", "crm")
	if code != 1 || !mentions(text, "outdated", "6, the peer is primary", "under way") {
		t.Errorf("alpha is promoted beside a primary: %d, %s", code, text)
	}
	beta.Wait("crm", "going on", 20*time.Second, thawed)
	write(t, beta, "crm", first, 8*mib)
	c.Heal("alpha", "beta")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm", "alpha", "beta")
}

// TestFencingResourceOnly: requests go on while the hook is asked, and a promotion
// needs it.
func TestFencingResourceOnly(t *testing.T) {
	t.Parallel()
	c, alpha, beta := withFencing(t, "resource-only")
	c.put("mute", "")
	c.put("off", "")
	c.CutBoth("alpha", "beta")
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.WaitLost("crm", "alpha", lostWithin)
	write(t, alpha, "crm", pattern(1, mib), 0)
	c.said("fence-peer alpha beta primary")
	beta.Refused([]string{"is not fenced", "5, the peer is unreachable"}, "promote", "crm")
	c.take("mute")
	beta.Refused([]string{"primary"}, "promote", "crm")
	c.Heal("alpha", "beta")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm", "alpha", "beta")
}

// TestFencingMisuse: what is wrong with a hook is said before anything starts.
func TestFencingMisuse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ name, extra, text string }{
		{"no hook", "fencing = \"resource-only\"\n", "needs the hook fence-peer"},
		{"missing", "fencing = \"resource-only\"\n[volume.hooks]\nfence-peer = \"/nowhere/fence\"\n", "no such file"},
		{"not executable", "fencing = \"resource-and-stonith\"\n[volume.hooks]\nfence-peer = \"" + plain + "\"\n", "chmod +x"},
		{"a directory", "fencing = \"resource-and-stonith\"\n[volume.hooks]\nfence-peer = \"" + dir + "\"\n", "is no file"},
		{"with a quorum", "quorum = \"all\"\nfencing = \"resource-only\"\n[volume.hooks]\nfence-peer = \"/bin/true\"\n", "take fencing away"},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Configure: func(c *cluster.Config) { c.Volume("crm").Extra = x.extra }})
			alpha := c.Nodes[0]
			alpha.Refused([]string{x.text}, "config", "check")
			alpha.Refused([]string{x.text}, "agent")
		})
	}
}
