package failover

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/stack/process"
)

// startEtcd starts Debian's etcd on the third host.
func startEtcd(t *testing.T, n *cluster.Node) {
	t.Helper()
	client, peer := "http://"+n.Address()+":2379", "http://"+n.Address()+":2380"
	argv := n.Argv("etcd", "--data-dir", filepath.Join(n.Dir, "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--heartbeat-interval", "50", "--election-timeout", "500")
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := process.Spawn(cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with its host
}

// TestEtcd has a vote in etcd in the place of the witness.
func TestEtcd(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("skipped: needs etcd (package etcd-server)")
	}
	endpoint := ""
	s := siteWith(t, func(c *cluster.Config, v *cluster.VolumeConfig, section string) string {
		switch c.Name {
		case "alpha":
			v.Peers = []string{"beta"}
		case "beta":
			v.Peers = []string{"alpha"}
		default:
			return ""
		}
		host, _, err := net.SplitHostPort(c.Peer("gamma").Address)
		if err != nil {
			t.Fatal(err)
		}
		endpoint = "http://" + host + ":2379"
		v.Extra = "quorum = \"majority\"\n"
		return strings.Replace(section, "[volume.failover]", "[volume.failover]\narbiter = \"etcd\"", 1) + "[volume.failover.etcd]\nendpoints = [\"" + endpoint + "\"]\n"
	})
	startEtcd(t, s.gamma)
	s.firstTime([]*cluster.Node{s.alpha, s.beta})
	for _, f := range etcdFaults {
		if f.long && !wanted("etcd") {
			continue
		}
		s.suffer(t, f.name, f.do)
	}
}

var etcdFaults = []struct {
	name string
	long bool
	do   func(s *site, p, o *cluster.Node)
}{
	{"the primary's host dies", false, func(s *site, p, o *cluster.Node) {
		at := time.Now()
		s.die(p)
		s.t.Logf("first commit on the survivor after %v", s.commitsAfter(at, o, soon).Round(10*time.Millisecond))
		s.boot(p)
	}},
	{"etcd is killed", true, func(s *site, p, o *cluster.Node) {
		s.gamma.SignalAll(syscall.SIGKILL)
		p.WaitLost(volume, "etcd", 20*time.Second)
		s.commitsAfter(time.Now(), p, soon)
		s.t.Log("and the other node with it: nothing is answered alone")
		s.die(o)
		p.WaitLost(volume, o.Name, 20*time.Second)
		p.Wait(volume, "suspended", 20*time.Second, func(v cluster.Volume) bool { return !v.Serves() })
		at := time.Now()
		startEtcd(s.t, s.gamma)
		s.boot(o)
		s.commitsAfter(at, nil, soon)
	}},
	{"the primary is cut off from etcd and from the other node", true, func(s *site, p, o *cluster.Node) {
		at := time.Now()
		s.CutBoth(p.Name, o.Name)
		s.CutBoth(p.Name, "gamma")
		s.commitsAfter(at, o, soon)
		s.Heal(p.Name, o.Name)
		s.Heal(p.Name, "gamma")
	}},
	{"the primary's host is stopped for 10 s", true, func(s *site, p, o *cluster.Node) {
		at := time.Now()
		p.SignalAll(syscall.SIGSTOP)
		s.commitsAfter(at, o, soon)
		time.Sleep(time.Until(at.Add(10 * time.Second)))
		p.SignalAll(syscall.SIGCONT)
	}},
	{"etcd is made anew", true, func(s *site, p, o *cluster.Node) {
		s.gamma.SignalAll(syscall.SIGKILL)
		if _, _, code := s.gamma.There("rm", "-rf", filepath.Join(s.gamma.Dir, "etcd")); code != 0 {
			s.t.Fatal("its data stay")
		}
		p.WaitLost(volume, "etcd", 20*time.Second)
		startEtcd(s.t, s.gamma)
		for _, n := range []*cluster.Node{p, o} {
			n.WaitConnected(volume, 30*time.Second)
		}
		time.Sleep(3 * time.Second)
		at := time.Now()
		s.die(p)
		s.commitsAfter(at, o, soon)
		s.boot(p)
	}},
}
