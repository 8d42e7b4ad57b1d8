package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

// TestReload: under load, a file with faults changes nothing; then a third node joins two
// that run, a limit and a second volume come, and no request notices.
func TestReload(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: three, Configure: quick})
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	whole := map[string]cluster.Config{}
	for _, n := range []*cluster.Node{alpha, beta} {
		n.Rewrite(func(f *cluster.Config) {
			whole[n.Name] = *f
			f.Peers = []cluster.PeerConfig{*f.Peer(map[string]string{"alpha": "beta", "beta": "alpha"}[n.Name])}
		})
		n.Must("create", "crm")
		n.Start()
	}
	alpha.WaitConnected("crm", 10*time.Second)
	alpha.Must("promote", "crm", "--force")
	beta.WaitPeer("crm", "alpha", "in sync", syncWithin, func(p cluster.Peer) bool { return p.Replication == "established" })
	l := newLedger()
	r := startLoad(t, alpha, l)

	alpha.Rewrite(func(f *cluster.Config) {
		f.Extra += "colour = \"red\"\n"
		f.Peers = whole["alpha"].Peers
		f.Volumes[0].Extra = "resync_rate_max = \"fast\"\n"
	})
	for _, args := range [][]string{{"config", "check"}, {"reload", "--control", alpha.Config.Control}} {
		_, text, code := alpha.Run(args...)
		if code != 1 || strings.Count(text, "qrbd: "+alpha.ConfigPath+":") != 2 || !mentions(text, "node.colour", "volume.resync_rate_max") {
			t.Errorf("%q: exit code %d, %s", args, code, text)
		}
	}
	var st control.NodeStatus
	if err := json.Unmarshal([]byte(alpha.Must("status", "--json", "--control", alpha.Config.Control)), &st); err != nil || len(st.Volumes[0].Peers) != 1 {
		t.Fatalf("a file with faults was applied: %+v, %v", st, err)
	}

	gamma.Must("create", "crm")
	gamma.Start()
	for _, n := range []*cluster.Node{alpha, beta} {
		n.Rewrite(func(f *cluster.Config) {
			*f = whole[n.Name]
			f.Extra = strings.Replace(f.Extra, "400ms", "350ms", 1)
			f.Volumes[0].Extra = "resync_rate_max = \"200MiB\"\n"
			web := f.Volumes[0]
			web.Name, web.Backing, web.Export = "web", n.Backing("crm")+".web", strings.Replace(web.Export, "crm.sock", "web.sock", 1)
			web.Peers = []string{map[string]string{"alpha": "beta", "beta": "alpha"}[n.Name]}
			f.Volumes = append(f.Volumes[:1:1], web)
		})
	}
	var report control.ReloadReport
	if err := json.Unmarshal([]byte(alpha.Must("reload", "--json")), &report); err != nil || len(report.Applied) != 4 || len(report.Restart) != 1 || len(report.Failed) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if err := syscall.Kill(beta.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.WaitInSync("crm", syncWithin)
	r.progress(10 * time.Second)
	r.stop()
	for _, n := range []*cluster.Node{alpha, beta} {
		n.Must("create", "web")
	}
	alpha.WaitConnected("web", 10*time.Second)
	alpha.Must("promote", "web", "--force")
	write(t, alpha, "web", pattern(1, mib), 0)
	c.Equal("crm")

	t.Log("what was applied holds after a restart too")
	alpha.Kill()
	gamma.WaitLost("crm", "alpha", lostWithin)
	gamma.Must("promote", "crm", "--peer-fenced")
	judge(t, gamma, l, ledger.Acked)
	alpha.Start()
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	if !strings.Contains(alpha.Must("reload"), "nothing has changed") {
		t.Error("after a restart something is left to be applied")
	}
}
