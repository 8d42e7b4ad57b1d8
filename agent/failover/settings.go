package failover

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
)

// Arbiter says who decides between nodes that do not see each other.
type Arbiter uint8

// The arbiters.
const (
	ArbiterQuorum Arbiter = iota // the volume's quorum: a witness, or three nodes
	ArbiterEtcd                  // a vote in etcd, beside those of the nodes
)

// String returns the word in a configuration.
func (a Arbiter) String() string {
	if a == ArbiterEtcd {
		return "etcd"
	}
	return "quorum"
}

// ParseArbiter is the inverse of String.
func ParseArbiter(text string) (Arbiter, error) {
	for _, a := range []Arbiter{ArbiterQuorum, ArbiterEtcd} {
		if a.String() == text {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%q is not quorum or etcd", text)
}

// Defaults.
const (
	// DefaultDelay lets an agent that is restarted come back before another node takes
	// its role.
	DefaultDelay         = 2 * time.Second
	DefaultNoQuorumStop  = time.Minute
	DefaultStartTimeout  = 90 * time.Second
	DefaultStopTimeout   = 90 * time.Second
	DefaultCheckTimeout  = 30 * time.Second
	DefaultCheckEvery    = 10 * time.Second
	DefaultStartAttempts = 2
	DefaultGiveUpFor     = 10 * time.Minute
)

// Settings are a volume's [volume.failover].
type Settings struct {
	Enabled bool
	Arbiter Arbiter
	// Preferred are nodes in the order in which they should have the role; those that are
	// not named come last, and are equal.
	Preferred []string
	Delay     time.Duration // how long the role is free before it is taken
	FailBack  time.Duration // how long a preferred node is in sync before it gets the role back; 0: never
	// NoQuorumStop is how long a primary may go without answering requests before what is
	// on top is stopped.
	NoQuorumStop time.Duration

	// What belongs on top: a systemd unit, commands, or neither.
	Unit               string
	Start, Stop, Check hook.Command
	StartTimeout       time.Duration
	StopTimeout        time.Duration
	CheckTimeout       time.Duration
	CheckEvery         time.Duration
	StartAttempts      int           // that fail in a row before another node is tried
	GiveUpFor          time.Duration // how long this node then leaves the role to others

	// Attach makes a block device of the volume below all that; Device and Method: "" for
	// what the host has.
	Attach bool
	Device string
	Method string
}

// rank is a node's place in the order of preference; less is better.
func (s *Settings) rank(node string) int {
	for i, n := range s.Preferred {
		if n == node {
			return i
		}
	}
	return len(s.Preferred)
}
