package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NoBacking as the backing of a volume makes this node a witness of it: it votes, and
// holds no data.
const NoBacking = "none"

// leaseMin is the least peer_timeout of a node with a quorum: a primary claims its votes
// several times in half of it.
const leaseMin = time.Second

// Quorum says how many nodes are enough: a word, or a number.
type Quorum struct {
	Word  string // "off", "majority", "all"; "": Count
	Count int
}

// Off reports whether there is none.
func (q Quorum) Off() bool { return q.Word == "off" || q == Quorum{} }

// OnNoQuorum is what becomes of requests without a quorum.
type OnNoQuorum uint8

// The values of on_no_quorum.
const (
	NoQuorumSuspend OnNoQuorum = iota // they wait for it to return
	NoQuorumError                     // they fail
)

// String returns the word in the configuration.
func (o OnNoQuorum) String() string {
	if o == NoQuorumError {
		return "io-error"
	}
	return "suspend-io"
}

func parseNoQuorum(s string) (OnNoQuorum, error) {
	for _, o := range []OnNoQuorum{NoQuorumSuspend, NoQuorumError} {
		if s == o.String() {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%q: write \"suspend-io\" (requests wait for the quorum to return) or \"io-error\" (they fail)", s)
}

// readQuorum takes key as a word or a number of nodes; absent: off.
func readQuorum(s *section, key string) Quorum {
	v, given := s.take(key)
	switch v := v.(type) {
	case int64:
		return parseQuorum(s, key, strconv.FormatInt(v, 10))
	case string:
		return parseQuorum(s, key, v)
	}
	if given {
		s.fault(key, "must be \"off\", \"majority\", \"all\" or a number of nodes, not %v", kindOf(v))
	}
	return Quorum{Word: "off"}
}

func parseQuorum(s *section, key, text string) Quorum {
	if slices.Contains([]string{"off", "majority", "all"}, text) {
		return Quorum{Word: text}
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		s.fault(key, "%q is not \"off\", \"majority\", \"all\" or a number of nodes", text)
		return Quorum{Word: "off"}
	}
	return Quorum{Count: n}
}

// decodeQuorum reads what has to do with votes. REQUIRES: the volume's peers are known.
func decodeQuorum(s *section, v *Volume) {
	v.Quorum = readQuorum(s, "quorum")
	v.MinRedundancy = readQuorum(s, "quorum_minimum_redundancy")
	v.OnNoQuorum = read(s, "on_no_quorum", NoQuorumSuspend.String(), parseNoQuorum)
	v.witnesses = readList(s, "witnesses")
	v.Witness = v.Backing == NoBacking
}

// quorums checks each volume's votes against its nodes.
func (k *checker) quorums() {
	for i := range k.c.Volumes {
		k.quorum(&k.c.Volumes[i], func(key, format string, args ...any) {
			k.fault(fmt.Sprintf("volume[%d].%s", i, key), format, args...)
		})
	}
}

func (k *checker) quorum(v *Volume, fault func(key, format string, args ...any)) {
	nodes, data := 1+len(v.Peers), 0
	if !v.Witness {
		data = 1
	}
	for _, name := range v.witnesses {
		switch {
		case name == k.c.Node.Name && !v.Witness:
			fault("witnesses", "this node is a witness, and has a backing store: write backing = \"none\", or take %q out", name)
		case name != k.c.Node.Name && !v.hasPeer(name):
			fault("witnesses", "%q is neither this node nor a peer of the volume", name)
		}
	}
	for i := range v.Peers {
		p := &v.Peers[i]
		if p.Witness = slices.Contains(v.witnesses, p.Name); !p.Witness {
			data++
		}
	}
	key := "witnesses"
	if v.Witness {
		key = "backing"
	}
	switch {
	case v.Quorum.Off() && v.Witness:
		fault(key, "without a backing store this node is a witness, and a witness is of use only with a quorum: write quorum = \"majority\" on every node, or name a store")
	case v.Quorum.Off() && len(v.witnesses) > 0:
		fault(key, "a witness is of use only with a quorum: write quorum = \"majority\" on every node")
	case data == 0:
		fault(key, "every node of the volume is a witness: none holds the data")
	}
	if v.Witness && v.Export.Network != "" {
		fault("export", "this node is a witness of the volume, which holds no data to export: take it away")
	}
	if v.Quorum.Off() {
		if !v.MinRedundancy.Off() {
			fault("quorum_minimum_redundancy", "says nothing without quorum")
		}
		return
	}
	if k.c.Node.PeerTimeout < leaseMin {
		fault("quorum", "needs a node.peer_timeout of at least %v: that long a node that follows a primary follows no other", leaseMin)
	}
	switch n := v.Quorum.Count; {
	case n > nodes:
		fault("quorum", "%d nodes are demanded, and the volume has %d: %s", n, nodes, strings.Join(k.nodesOf(v), ", "))
	case n > 0 && n <= nodes/2:
		fault("quorum", "%d of %d nodes could be had on both sides of a cut: at least %d, or \"majority\"", n, nodes, nodes/2+1)
	}
	if n := v.MinRedundancy.Count; n > data {
		fault("quorum_minimum_redundancy", "%d copies are demanded, and %d nodes hold data", n, data)
	}
}

func (k *checker) nodesOf(v *Volume) []string {
	names := []string{k.c.Node.Name}
	for _, p := range v.Peers {
		names = append(names, p.Name)
	}
	return names
}

func parseBacking(s string) (string, error) {
	if s == NoBacking {
		return s, nil
	}
	return parsePath(s)
}
