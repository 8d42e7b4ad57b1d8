package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/volume"
	"github.com/qrbd/qrbd/volume/meta"
)

// policies returns a configuration with policies for a split brain, and hooks that
// each leave a line in a file of the node's directory.
func policies(dir, zero, one, two string) func(c *cluster.Config) {
	return func(c *cluster.Config) {
		quick(c)
		v := c.Volume("crm")
		for i, p := range []string{zero, one, two} {
			if p != "" {
				v.Extra += fmt.Sprintf("after_sb_%dpri = %q\n", i, p)
			}
		}
		v.Extra += "[volume.hooks]\n"
		for _, n := range []string{"split-brain", "initial-split-brain", "pri-lost-after-sb", "before-resync-target", "after-resync-target", "peer-lost"} {
			v.Extra += fmt.Sprintf("%s = ['/bin/sh', '-c', 'echo \"$QRBD_EVENT $QRBD_VOLUME $QRBD_NODE $QRBD_PEER $QRBD_ROLE\" >> %s']\n", n, hookFile(dir, c.Name))
		}
	}
}

func hookFile(dir, node string) string { return filepath.Join(dir, node+".hooks") }

// waitHook waits until a hook has left its line.
func waitHook(t *testing.T, dir, node, line string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(hookFile(dir, node))
		if strings.Contains(string(b), line+"\n") {
			return
		}
	}
	b, _ := os.ReadFile(hookFile(dir, node))
	t.Errorf("the hooks of %s did not say %q but\n%s", node, line, b)
}

// forget empties what the hooks have left so far: the first sync was one too.
func forget(t *testing.T, dir string) {
	t.Helper()
	for _, n := range []string{"alpha", "beta"} {
		if err := os.WriteFile(hookFile(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func ran(dir, node, event string) bool {
	b, _ := os.ReadFile(hookFile(dir, node))
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, event+" ") {
			return true
		}
	}
	return false
}

// explained returns what explain says of the only peer.
func explained(t *testing.T, n *cluster.Node) volume.ExplainPeer {
	t.Helper()
	var e volume.Explanation
	if err := json.Unmarshal([]byte(n.Must("explain", "crm", "--json")), &e); err != nil || len(e.Peers) != 1 {
		t.Fatalf("explain: %v, %+v", err, e)
	}
	return e.Peers[0]
}

// divergedBy is apart with policies: alpha changed 1 MiB at 2 MiB, beta n bytes at 4 MiB.
func divergedBy(t *testing.T, configure func(c *cluster.Config), n int) (c *cluster.Cluster, alpha, beta *cluster.Node) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Links: true, Configure: configure})
	alpha, beta = c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced") // a lie
	write(t, alpha, "crm", pattern(2, mib), 2*mib)
	write(t, beta, "crm", pattern(3, n), 4*mib)
	return c, alpha, beta
}

// TestSplitBrainExplained: without a policy both sides refuse, run their hooks, and
// say who wrote what, when and where.
func TestSplitBrainExplained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	began := time.Now()
	c, _, beta := divergedBy(t, policies(dir, "", "", ""), mib)
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		other := map[string]string{"alpha": "beta", "beta": "alpha"}[n.Name]
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "split brain") })
		waitHook(t, dir, n.Name, "initial-split-brain crm "+n.Name+" "+other+" primary")
		waitHook(t, dir, n.Name, "split-brain crm "+n.Name+" "+other+" primary")
		waitHook(t, dir, n.Name, "peer-lost crm "+n.Name+" "+other+" "+map[string]string{"alpha": "primary", "beta": "secondary"}[n.Name])

		x := explained(t, n)
		if !x.SplitBrain || x.Rule != "split-brain" || len(x.Sides) != 2 || len(x.Choices) != 2 {
			t.Fatalf("%s: %+v", n.Name, x)
		}
		for _, s := range x.Sides {
			at := map[string]int64{"alpha": 2 * mib, "beta": 4 * mib}[s.Node]
			if s.Bytes != mib || len(s.Ranges) != 1 || s.Ranges[0] != (volume.ExplainRange{Off: at, Len: mib}) {
				t.Errorf("%s says that %s changed %d bytes in %v", n.Name, s.Node, s.Bytes, s.Ranges)
			}
			if s.First.Before(began) || s.Last.Before(s.First) || s.Last.After(time.Now()) {
				t.Errorf("%s says that %s wrote from %v to %v", n.Name, s.Node, s.First, s.Last)
			}
			if s.Since != x.Sides[0].Since || strings.Trim(s.Since, "0") == "" {
				t.Errorf("%s says that %s parted at %s", n.Name, s.Node, s.Since)
			}
		}
		text := n.Must("explain", "crm")
		for _, want := range []string{"changed 1 MiB since the two parted", "first write", "1 MiB from 2 MiB on", "1 MiB from 4 MiB on", "to keep alpha and give up beta",
			"qrbd connect crm alpha --discard-my-data", "qrbd connect crm beta --discard-my-data"} {
			if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
				t.Errorf("%s: explain does not say %q:\n%s", n.Name, want, text)
			}
		}
	}
	t.Log("the times survive a restart, and the commands that explain names settle it")
	before := explained(t, beta).Sides[0]
	beta.Kill()
	beta.Start()
	beta.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "split brain") })
	if after := explained(t, beta).Sides[0]; !after.First.Equal(before.First) || after.Last.Before(after.First) || after.Last.After(before.Last) || !after.AtMost {
		t.Errorf("after a crash %+v, before %+v", after, before)
	}
	for _, x := range explained(t, beta).Choices {
		if x.GivesUp != "beta" {
			continue
		}
		for _, cmd := range x.Commands {
			c.Node(cmd.Node).Must(strings.Fields(cmd.Command)[1:]...)
		}
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	waitHook(t, dir, "beta", "before-resync-target crm beta alpha secondary")
	waitHook(t, dir, "beta", "after-resync-target crm beta alpha secondary")
}

// TestPolicyLeastChanges: with two primaries nobody decides; with one, the secondary
// that changed less is given up.
func TestPolicyLeastChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, alpha, beta := divergedBy(t, policies(dir, "discard-least-changes", "consensus", "call-pri-lost-after-sb"), 64<<10)
	forget(t, dir)
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
			return mentions(v.Peers[0].Reason, "would give up beta, which is primary")
		})
	}
	waitHook(t, dir, "beta", "pri-lost-after-sb crm beta alpha primary")
	if ran(dir, "alpha", "pri-lost-after-sb") || ran(dir, "beta", "before-resync-target") {
		t.Error("a hook was run that is not for this")
	}
	beta.Must("demote", "crm")
	beta.Must("connect", "crm")
	alpha.Must("connect", "crm")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	if !bytes.Equal(read(t, alpha, "crm", 2*mib, mib), pattern(2, mib)) || !bytes.Equal(read(t, alpha, "crm", 4*mib, 64<<10), pattern(1, 8*mib)[4*mib:4*mib+64<<10]) {
		t.Error("alpha does not have its own data")
	}
	waitHook(t, dir, "beta", "before-resync-target crm beta alpha secondary")
	if ran(dir, "alpha", "before-resync-target") {
		t.Error("alpha was to be overwritten")
	}
}

// TestPolicyConsensusKeepsPrimary: the primary changed less. Nothing is settled.
func TestPolicyConsensusKeepsPrimary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, alpha, beta := divergedBy(t, policies(dir, "discard-least-changes", "consensus", ""), 64<<10)
	alpha.Must("demote", "crm")
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
			return mentions(v.Peers[0].Reason, "would give up beta, which is primary")
		})
	}
	if !bytes.Equal(read(t, beta, "crm", 4*mib, 64<<10), pattern(3, 64<<10)) {
		t.Error("the primary lost its data")
	}
}

// TestPoliciesThatDiffer are not followed, and both sides say so.
func TestPoliciesThatDiffer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, alpha, beta := divergedBy(t, func(c *cluster.Config) {
		if c.Name == "alpha" {
			policies(dir, "discard-least-changes", "", "")(c)
		} else {
			policies(dir, "discard-node-beta", "discard-secondary", "")(c)
		}
	}, 64<<10)
	forget(t, dir)
	for _, n := range []*cluster.Node{alpha, beta} {
		n.Must("demote", "crm")
	}
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
			return mentions(v.Peers[0].Reason, "the policies for it differ: ")
		})
	}
	if ran(dir, "beta", "before-resync-target") || ran(dir, "alpha", "before-resync-target") {
		t.Error("a side is overwritten")
	}
}

// TestPolicyZeroChanges: beta began a generation and died before its first write
// reached the disk. Its side is given up by policy.
func TestPolicyZeroChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := cluster.New(t, cluster.Options{Links: true, Configure: policies(dir, "discard-zero-changes", "consensus", "")})
	alpha, beta := c.Nodes[0], c.Nodes[1]
	beta.Program = cluster.MetaCrashAgent
	beta.Env = append(beta.Env, "QRBD_META_SYNC=0.7s")
	c.Up()
	write(t, alpha, "crm", pattern(1, 8*mib), 0)
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	write(t, alpha, "crm", pattern(2, mib), 2*mib)
	beta.Must("promote", "crm", "--peer-fenced")
	parent := durableGeneration(t, beta)
	d := beta.Dial("crm")
	go d.WriteAt(pattern(3, 4096), 4*mib, false) // fails: the node dies
	for durableGeneration(t, beta) == parent {
		time.Sleep(20 * time.Millisecond)
	}
	beta.Kill() // before the extent is on the activity map
	d.Abort()
	beta.Program, beta.Env = cluster.Qrbd, nil
	beta.Start()
	if v := beta.Volume("crm"); v.Peers[0].OutOfSync != 0 {
		t.Fatalf("beta died too late: %+v", v)
	}
	forget(t, dir)
	c.Heal("alpha", "beta")
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	waitHook(t, dir, "beta", "initial-split-brain crm beta alpha secondary")
	waitHook(t, dir, "beta", "before-resync-target crm beta alpha secondary")
	if ran(dir, "alpha", "split-brain") || ran(dir, "beta", "split-brain") {
		t.Error("it was settled, and split-brain was run")
	}
	if !bytes.Equal(read(t, alpha, "crm", 2*mib, mib), pattern(2, mib)) {
		t.Error("alpha does not have its own data")
	}
}

// durableGeneration returns a node's generation as its metadata has it on disk.
func durableGeneration(t *testing.T, n *cluster.Node) string {
	t.Helper()
	for range 100 { // a copy of a file that is being written may be no good
		b, err := os.ReadFile(filepath.Join(n.Config.State, "crm.meta"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := meta.OpenStorage(path)
		if err != nil {
			t.Fatal(err)
		}
		f, state, err := meta.Open(st)
		if err != nil {
			st.Close()
			continue
		}
		f.Close()
		return state.Super.Current.String()
	}
	t.Fatal("the metadata cannot be read")
	return ""
}

// TestHookRefusesResync: a replica whose hook says no is left as it is until an
// operator acts.
func TestHookRefusesResync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	flag := filepath.Join(dir, "yes")
	c := cluster.New(t, cluster.Options{Links: true, Configure: func(c *cluster.Config) {
		quick(c)
		c.Volume("crm").Extra = fmt.Sprintf("[volume.hooks]\nbefore-resync-target = ['/bin/sh', '-c', 'sleep 1; test -e %s']\n", flag)
	}})
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	alpha, beta := c.Up(), c.Nodes[1]
	write(t, alpha, "crm", pattern(1, mib), 0)
	c.CutBoth("alpha", "beta")
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.WaitLost("crm", "alpha", lostWithin)
	write(t, alpha, "crm", pattern(2, mib), 0)
	os.Remove(flag)
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing", 20*time.Second, func(v cluster.Volume) bool {
			return mentions(v.Peers[0].Reason, "beta does not let alpha overwrite its replica")
		})
	}
	write(t, alpha, "crm", pattern(3, mib), 0) // nobody waits for the hook
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		n.Must("connect", "crm")
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
