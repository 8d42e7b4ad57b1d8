package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/protocol"
)

// withFailover is a node with a volume on three nodes, of which gamma is a witness.
func withFailover(t *testing.T, section string) []byte {
	text := fill(t, quorumNodes)
	return []byte(text + quorumStore + "quorum = \"majority\"\nwitnesses = [\"gamma\"]\n[volume.failover]\n" + section)
}

func TestFailover(t *testing.T) {
	c, err := Parse("q.toml", withFailover(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	want := &failover.Settings{Enabled: true, Delay: failover.DefaultDelay, NoQuorumStop: failover.DefaultNoQuorumStop, StartTimeout: failover.DefaultStartTimeout,
		StopTimeout: failover.DefaultStopTimeout, CheckTimeout: failover.DefaultCheckTimeout, CheckEvery: failover.DefaultCheckEvery,
		StartAttempts: failover.DefaultStartAttempts, GiveUpFor: failover.DefaultGiveUpFor}
	if got := c.Volume("crm").Failover; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	c, err = Parse("q.toml", withFailover(t, `enabled = false
preferred = ["beta", "alpha"]
delay = "5s"
fail_back = "10m"
no_quorum_stop = "30s"
start = ["/bin/sh", "-c", "true"]
stop = "/bin/true now"
check = "/bin/true"
start_timeout = "1m"
stop_timeout = "2m"
check_timeout = "3s"
check_every = "4s"
start_attempts = 5
give_up_for = "1h"
attach = true
device = "/dev/loop7"
attach_method = "fuse"
`))
	if err != nil {
		t.Fatal(err)
	}
	want = &failover.Settings{Preferred: []string{"beta", "alpha"}, Delay: 5 * time.Second, FailBack: 10 * time.Minute, NoQuorumStop: 30 * time.Second,
		Start: hook.Command{"/bin/sh", "-c", "true"}, Stop: hook.Command{"/bin/true", "now"}, Check: hook.Command{"/bin/true"},
		StartTimeout: time.Minute, StopTimeout: 2 * time.Minute, CheckTimeout: 3 * time.Second, CheckEvery: 4 * time.Second, StartAttempts: 5, GiveUpFor: time.Hour,
		Attach: true, Device: "/dev/loop7", Method: "fuse"}
	if got := c.Volume("crm").Failover; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestFailoverFaults(t *testing.T) {
	for section, want := range map[string]string{
		"unit = \"crm.target\"\n":                                                    "",
		"unit = \"crm\"\n":                                                           "not the name of a service",
		"unit = \"-H.service\"\n":                                                    "not the name of a service",
		"unit = \"crm.target\"\nstart = \"/bin/true\"\n":                             "leave one of the two out",
		"start = \"/bin/true\"\n":                                                    "without stop",
		"check = \"/bin/true\"\n":                                                    "start: is missing",
		"start = \"/bin/true\"\nstop = \"/no/such\"\n":                               "does not exist",
		"start = \"/bin/true\"\nstop = \"/etc/passwd\"\n":                            "not executable",
		"start = \"true\"\nstop = \"/bin/true\"\n":                                   "not an absolute path",
		"preferred = [\"delta\"]\n":                                                  "neither this node nor a peer",
		"preferred = [\"gamma\"]\n":                                                  "a witness",
		"preferred = [\"beta\", \"beta\"]\n":                                         "twice",
		"device = \"/dev/loop7\"\n":                                                  "attach: must be true",
		"attach = true\nattach_method = \"loop\"\n":                                  "not nbd or fuse",
		"attach = \"/dev/loop7\"\n":                                                  "must be true or false",
		"arbiter = \"etcd\"\n":                                                       "needs a table",
		"[volume.failover.etcd]\nendpoints = [\"http://h:1\"]\n":                     "says nothing without",
		"arbiter = \"etcd\"\n[volume.failover.etcd]\nendpoints = [\"http://h:1\"]\n": "a witness itself",
		"arbiter = \"coin\"\n":                                                       "not quorum or etcd",
		"fail_back = \"soon\"\n":                                                     "or \"stay\"",
		"start_attempts = 0\n":                                                       "from 1 to 100",
		"delays = \"1s\"\n":                                                          "unknown key",
		"enabled = false\nstart = \"/no\"\nstop = \"/no/x\"\n":                       "",
	} {
		_, err := Parse("q.toml", withFailover(t, section))
		var e *Error
		switch {
		case want == "" && err != nil, want != "" && !errors.As(err, &e):
			t.Errorf("%q: %v", section, err)
		case want != "" && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "volume.failover") || len(e.Faults) != 1 || e.Faults[0].Line == 0):
			t.Errorf("%q: %v, want %q", section, err, want)
		}
	}
}

const voteInEtcd = "[volume.failover]\narbiter = \"etcd\"\n[volume.failover.etcd]\nendpoints = [\"http://10.0.0.9:2379\"]\n"

// TestVoteInEtcd: it is a witness among the volume's peers.
func TestVoteInEtcd(t *testing.T) {
	c, err := Parse("q.toml", []byte(fill(t, quorumNodes)+quorumStore+"peers = [\"beta\"]\nquorum = \"majority\"\n"+voteInEtcd))
	if err != nil {
		t.Fatal(err)
	}
	v := c.Volume("crm")
	if n := len(v.Peers); n != 2 || v.Peers[1] != (VolumePeer{Name: EtcdName, Mode: protocol.ModeC, Witness: true}) || v.Etcd.Prefix != DefaultEtcdPrefix {
		t.Errorf("%+v, %+v", v.Peers, v.Etcd)
	}
}

// TestFailoverNeedsArbiter: two nodes alone cannot decide.
func TestFailoverNeedsArbiter(t *testing.T) {
	nodes := fill(t, quorumNodes)
	for text, want := range map[string]string{
		quorumStore + "[volume.failover]\n":                                                                                          "needs a quorum",
		quorumStore + "peers = [\"beta\"]\nquorum = \"majority\"\n[volume.failover]\n":                                               "add a witness",
		"backing = \"none\"\nwitnesses = [\"alpha\"]\nquorum = \"majority\"\n[volume.failover]\n":                                    "this node is a witness",
		quorumStore + "peers = [\"beta\"]\nquorum = \"majority\"\n" + voteInEtcd:                                                     "",
		quorumStore + "peers = [\"beta\"]\n" + voteInEtcd:                                                                            "write quorum",
		quorumStore + "peers = [\"beta\"]\nquorum = \"majority\"\n" + voteInEtcd + "key = \"/k\"\n":                                  "goes with key",
		quorumStore + "peers = [\"beta\"]\nquorum = \"majority\"\n" + strings.ReplaceAll(voteInEtcd, "http", "ftp"):                  "not an endpoint",
		quorumStore + "peers = [\"beta\"]\nquorum = \"majority\"\n" + strings.ReplaceAll(voteInEtcd, "\"http://10.0.0.9:2379\"", ""): "endpoints: is missing",
		quorumStore + "[volume.failover]\nenabled = false\n":                                                                         "",
	} {
		if _, err := Parse("q.toml", []byte(nodes+text)); (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
