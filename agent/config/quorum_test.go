package config

import (
	"errors"
	"strings"
	"testing"
)

const quorumNodes = `[node]
name = "alpha"
listen = "10.0.0.1:7790"
[[peer]]
name = "beta"
address = "10.0.0.2:7790"
key = "KEY1"
[[peer]]
name = "gamma"
address = "10.0.0.3:7790"
key = "KEY2"
[[volume]]
name = "crm"
size = "1GiB"
`

const quorumStore = "backing = \"/b\"\nexport = \"unix:/s\"\n"

// Each case is a volume of three nodes, and the key and a part of the text of the only
// fault that it must give.
func TestQuorumFaults(t *testing.T) {
	for _, c := range []struct{ name, volume, key, text string }{
		{"word", quorumStore + "quorum = \"most\"\n", "quorum", "majority"},
		{"kind", quorumStore + "quorum = true\n", "quorum", "not the boolean"},
		{"more than the nodes", quorumStore + "quorum = 4\n", "quorum", "the volume has 3: alpha, beta, gamma"},
		{"both sides of a cut", quorumStore + "quorum = 1\n", "quorum", "at least 2"},
		{"more copies than data", quorumStore + "quorum = \"majority\"\nwitnesses = [\"gamma\"]\nquorum_minimum_redundancy = 3\n", "quorum_minimum_redundancy", "2 nodes hold data"},
		{"redundancy alone", quorumStore + "quorum_minimum_redundancy = 2\n", "quorum_minimum_redundancy", "without quorum"},
		{"pull-ahead", quorumStore + "quorum = \"all\"\nprotocol = \"A\"\non_congestion = \"pull-ahead\"\n", "on_congestion", "not for a volume with a quorum"},
		{"policy", quorumStore + "quorum = \"all\"\non_no_quorum = \"wait\"\n", "on_no_quorum", "suspend-io"},
		{"witness without quorum", "backing = \"none\"\n", "backing", "only with a quorum"},
		{"peer that is one without quorum", quorumStore + "witnesses = [\"gamma\"]\n", "witnesses", "only with a quorum"},
		{"witness given data", quorumStore + "quorum = \"majority\"\nwitnesses = [\"alpha\"]\n", "witnesses", "has a backing store"},
		{"witness with an export", "backing = \"none\"\nexport = \"unix:/s\"\nquorum = \"majority\"\n", "export", "no data to export"},
		{"unknown witness", quorumStore + "quorum = \"majority\"\nwitnesses = [\"delta\"]\n", "witnesses", "neither this node nor a peer"},
		{"nobody has the data", "backing = \"none\"\nquorum = \"majority\"\nwitnesses = [\"beta\", \"gamma\"]\n", "backing", "none holds the data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("q.toml", []byte(fill(t, quorumNodes+c.volume)))
			var e *Error
			if !errors.As(err, &e) || len(e.Faults) != 1 || e.Faults[0].Key != "volume."+c.key || !strings.Contains(e.Faults[0].Text, c.text) {
				t.Errorf("got %v, want one fault of %s with %q", err, c.key, c.text)
			}
		})
	}
}

func TestQuorumNeedsALease(t *testing.T) {
	text := strings.Replace(quorumNodes, "[[peer]]", "heartbeat = \"100ms\"\npeer_timeout = \"500ms\"\n[[peer]]", 1)
	if _, err := Parse("q.toml", []byte(fill(t, text+quorumStore+"quorum = \"majority\"\n"))); err == nil || !strings.Contains(err.Error(), "peer_timeout of at least 1s") {
		t.Errorf("got %v", err)
	}
}

func TestQuorum(t *testing.T) {
	c, err := Parse("q.toml", []byte(fill(t, quorumNodes+"backing = \"none\"\nquorum = 2\nquorum_minimum_redundancy = \"majority\"\non_no_quorum = \"io-error\"\nwitnesses = [\"alpha\"]\n")))
	if err != nil {
		t.Fatal(err)
	}
	v := c.Volume("crm")
	if !v.Witness || v.Quorum != (Quorum{Count: 2}) || v.MinRedundancy.Word != "majority" || v.OnNoQuorum != NoQuorumError || v.Peers[0].Witness {
		t.Errorf("got %+v", v)
	}
}
