package protocol

import "fmt"

// Role says whether a node exports the volume read-write.
type Role uint8

// Roles.
const (
	RoleUnknown Role = iota // of a peer that was never heard
	Secondary
	Primary
)

// String returns the word shown to people.
func (r Role) String() string { return word(uint8(r), "unknown", "secondary", "primary") }

// Disk is the state of one replica's data, ordered worst to best.
type Disk uint8

// Disk states.
const (
	DiskUnknown  Disk = iota // of a peer that was never heard
	Diskless                 // no backing store
	Failed                   // the backing store returned an error and is no longer used
	Inconsistent             // a mixture of states: a sync is under way or was interrupted, or brand new
	Outdated                 // consistent, and known to be older than another replica
	Consistent               // consistent; whether it is the newest is not known
	UpToDate
)

// String returns the word shown to people.
func (d Disk) String() string {
	return word(uint8(d), "unknown", "diskless", "failed", "inconsistent", "outdated", "consistent", "up-to-date")
}

// Conn is the state of a (volume, peer) connection.
type Conn uint8

// Connection states.
const (
	Standalone Conn = iota // not connected and not trying
	Connecting
	Connected
)

// String returns the word shown to people.
func (c Conn) String() string { return word(uint8(c), "standalone", "connecting", "connected") }

// Repl is what a connection does.
type Repl uint8

// Replication states.
const (
	ReplOff Repl = iota
	Established
	SyncSource
	SyncTarget
	VerifySource
	VerifyTarget
	Ahead
	Behind
)

// String returns the word shown to people.
func (r Repl) String() string {
	return word(uint8(r), "off", "established", "sync-source", "sync-target", "verify-source", "verify-target", "ahead", "behind")
}

// Mode is a (volume, peer)'s replication protocol: when a write is acknowledged.
type Mode uint8

// Replication protocols. The zero Mode is invalid.
const (
	ModeA Mode = iota + 1 // local write done, queued to the peer
	ModeB                 // the peer has received it
	ModeC                 // the peer has applied it
)

// String returns "A", "B" or "C".
func (m Mode) String() string { return word(uint8(m), "?", "A", "B", "C") }

func word(i uint8, words ...string) string {
	if int(i) < len(words) {
		return words[i]
	}
	return fmt.Sprintf("invalid(%d)", i)
}

// Generation is the random id of a state of a volume's data. Zero means none;
// as a current generation it means that the replica was just created and holds
// no data yet.
type Generation uint64

// String returns 16 hexadecimal digits.
func (g Generation) String() string { return fmt.Sprintf("%016x", uint64(g)) }
