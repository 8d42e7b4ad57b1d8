package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/volume/archive"
	"github.com/qrbd/qrbd/volume/meta"
)

// Stream is one reliable, ordered byte stream to a peer. Read and Write may run
// concurrently with each other. Close and Abort unblock both.
type Stream interface {
	io.Reader
	io.Writer
	// Close ends the sending direction after what was written is delivered.
	Close() error
	// Abort ends both directions at once; data under way may be lost.
	Abort()
}

// TryWriter is a Stream that can also take bytes without waiting. It spares a
// lone write the hand-over to the link's sending goroutine.
type TryWriter interface {
	// TryWrite takes all of p, or nothing when that would mean waiting. p is the
	// caller's again on return.
	TryWrite(p []byte) (ok bool, err error)
}

// Sharer is a Stream of low priority that can be given its share of the link for a
// while: a resync that clients would starve goes on at its floor.
type Sharer interface {
	// SetShare switches between what other streams leave (false) and an equal share
	// with them. It does not block.
	SetShare(on bool)
}

// Conn is what a transport hands over when a volume is connected to a peer: the
// volume's two streams. The volume owns both from then on and aborts them when
// it is done.
type Conn struct {
	Write Stream // ordered: handshake, writes, acks, state
	Bulk  Stream // resync and verify, lower priority
	// RTT returns the link's smoothed round trip; zero when unknown.
	RTT func() time.Duration
	// Compress says whether payloads are to be sent compressed, which the peer takes. It is
	// asked for each and must not block. nil: never.
	Compress func() bool
}

// PeerConfig is one peer of a volume.
type PeerConfig struct {
	Name    string
	Mode    protocol.Mode // zero: protocol C
	Witness bool          // it votes, and holds no data; such peers come last

	// Protocol A only. What is under way to a peer is in memory.
	SendBuffer     int64        // bytes sent to it and not applied there, above which writes wait; zero: 32 MiB
	OnCongestion   OnCongestion // zero: nothing else happens
	CongestionFill int64        // bytes at which CongestionPullAhead acts; zero: SendBuffer
}

// machine translates it.
func (p PeerConfig) machine() replica.PeerConfig {
	return replica.PeerConfig{Name: p.Name, Mode: p.mode(), Witness: p.Witness, Buffer: p.SendBuffer, OnCongestion: p.OnCongestion, Fill: p.CongestionFill}
}

func (p PeerConfig) mode() protocol.Mode {
	if p.Mode == 0 {
		return protocol.ModeC
	}
	return p.Mode
}

// Options configure a volume.
type Options struct {
	Name  string
	Self  string // this node's name
	Peers []PeerConfig
	// MayResync is asked, without locks held, before a peer overwrites this replica;
	// why says what is lost by that, "" nothing. An error refuses. It may take minutes
	// and ends with ctx, which ends with the connection. nil: not asked.
	MayResync func(ctx context.Context, peer, why string) error
	// AfterSB is what to do about a split brain without an operator's word. The same
	// on every node, or none is followed.
	AfterSB protocol.SplitPolicy
	Size    int64           // bytes; zero: the store's. The store may be larger
	Store   blockdev.Device // the volume closes it
	Meta    *meta.File      // the volume closes it
	State   *meta.State     // what the metadata file said when it was opened
	Pool    *blockdev.Pool  // buffers for what peers send; required
	Zstd    *compress.Zstd  // expands what peers send compressed, and compresses; required
	Log     *slog.Logger    // required
	Meter   *Meter          // counts what the volume does; nil: its own

	// Archives keep what a sync takes from this side. nil: it is lost. The volume
	// closes it.
	Archives *archive.Dir
	// ArchiveMode says what is kept. Zero: the losing side of a split brain.
	ArchiveMode ArchiveMode

	// AskConnect is called, without locks held, when the volume wants a
	// connection to a peer soon. The owner answers with AttachPeer, now or never.
	AskConnect func(peer string)
	// OnEvent is called for every state change, in order, without locks held. It
	// must not block. nil: ignored.
	OnEvent func(Event)

	// WriteTimeout: a peer that has not acknowledged a write for so long is
	// disconnected. Zero: 10 s.
	WriteTimeout time.Duration
	// FlushInterval: a peer is sent a flush of the volume's own this long after
	// the first write that no flush has followed. Zero: 1 s.
	FlushInterval time.Duration
	// FlushBytes: or after so many bytes. Zero: 64 MiB.
	FlushBytes int64
	// ActivityIdle: an extent is taken off the activity map when it was not
	// written for so long. Zero: 30 s.
	ActivityIdle time.Duration
	// NoData: what becomes of requests while no copy of the data can be reached.
	// Zero: they fail.
	NoData NoData
	// OnReadError: what a read error of the primary's own disk leads to. Zero: a
	// peer's copy is served, and written over what could not be read.
	OnReadError OnReadError
	// DiskTimeout: a disk on which nothing ends for so long has failed. Zero: it is
	// waited for without end.
	DiskTimeout time.Duration
	// Quorum: so many nodes must follow a primary, so that it answers requests, and
	// MinRedundancy so many must hold all of the data. Zero: off. As Lease and the
	// witnesses, the same on every node.
	Quorum        Quorum
	MinRedundancy Quorum
	// OnNoQuorum: what becomes of requests otherwise. Zero: they wait.
	OnNoQuorum OnNoQuorum
	// Lease: a node that follows a primary follows no other for so long. REQUIRES with a
	// quorum.
	Lease time.Duration
	// Witness: this node votes, and holds no data; Store is not used.
	Witness bool
	// Fencing: what must be certain of a peer that is out of reach. Zero: an operator
	// vouches for its death. Not used with a quorum.
	Fencing Fencing
	// FencePeer is asked, without locks held, to see to it that a peer cannot take over,
	// and says what it has found out, also in words. It may take minutes; ctx ends with
	// the volume. REQUIRES with Fencing.
	FencePeer func(ctx context.Context, peer string) (FenceAnswer, string)
	// SyncWindow bounds the bytes of resync data in flight; how much is, follows the
	// measured round trip. Zero: resync.WindowMax.
	SyncWindow int64
	// SyncRate limits resync and verify, bytes/s. Zero: no limit.
	SyncRate int64
	// SyncFloor is the rate below which clients' requests do not push them, bytes/s.
	// Zero: resync.RateMin.
	SyncFloor int64
}

// The policies of package replica, for owners that do not know it.
type (
	NoData      = replica.NoData
	OnReadError = replica.OnReadError
	OnNoQuorum  = replica.OnNoQuorum

	OnCongestion = replica.OnCongestion
	Quorum       = replica.Quorum
)

// Their values.
const (
	NoDataError   = replica.NoDataError
	NoDataSuspend = replica.NoDataSuspend
	ReadRepair    = replica.ReadRepair
	ReadDetach    = replica.ReadDetach

	CongestionBlock     = replica.CongestionBlock
	CongestionPullAhead = replica.CongestionPullAhead

	NoQuorumSuspend = replica.NoQuorumSuspend
	NoQuorumError   = replica.NoQuorumError

	QuorumOff      = replica.QuorumOff
	QuorumMajority = replica.QuorumMajority
	QuorumAll      = replica.QuorumAll
	QuorumCount    = replica.QuorumCount
)

// WitnessSize is the size, in bytes, that the metadata of a witness have: it tracks no
// blocks.
const WitnessSize = 4096

// Error is a refused operation: a code that survives the wire and the control
// API, and a text that says what to do.
type Error struct {
	Code protocol.Code
	Text string
}

func (e *Error) Error() string { return e.Text }

func refuse(code protocol.Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// ErrNotPrimary is returned to requests on a volume that is not (or no longer)
// primary.
var ErrNotPrimary = errors.New("the volume is not primary on this node")

// PromoteOptions are the operator's words on a promotion.
type PromoteOptions struct {
	Force      bool // accept inconsistent or outdated data; start a brand-new volume
	PeerFenced bool // the operator vouches that unreachable peers are dead
}

// Event is one state change, as shown by `qrbd events`.
type Event struct {
	Time   time.Time `json:"time"`
	Volume string    `json:"volume"`
	Peer   string    `json:"peer,omitempty"`
	Field  string    `json:"field"` // role, disk, connection, replication, generation, peer-role, peer-disk, ...
	Old    string    `json:"old"`
	New    string    `json:"new"`
	Reason string    `json:"reason,omitempty"`
}

// Status is what `qrbd status --json` shows of a volume. Export and Clients are
// filled in by the agent.
type Status struct {
	Name       string       `json:"name"`
	Size       int64        `json:"size"`
	Role       string       `json:"role"`
	Disk       string       `json:"disk"`
	Export     string       `json:"export"`
	Clients    int          `json:"clients"`
	Generation string       `json:"generation"`
	ID         string       `json:"id"`
	Primary    string       `json:"primary,omitempty"` // the primary's name, as far as connected to it
	Reason     string       `json:"reason,omitempty"`  // why the disk is not up-to-date, in words
	InFlight   int          `json:"in_flight"`
	Waiting    int          `json:"waiting,omitempty"`     // requests that wait for others, a peer or metadata
	LocalQueue int          `json:"local_queue,omitempty"` // operations that wait for the local store
	MayPromote bool         `json:"may_promote"`           // a promotion without --force would be tried
	Suspended  bool         `json:"suspended,omitempty"`   // no copy can be reached, and requests wait for one
	Congested  bool         `json:"congested,omitempty"`   // writes wait for a peer that is too far behind
	DiskLacks  int64        `json:"disk_lacks,omitempty"`  // bytes that the local disk lacks and is being filled with
	ActiveExt  int          `json:"active_extents"`
	Witness    bool         `json:"witness,omitempty"` // this node votes, and holds no data
	Quorum     *QuorumState `json:"quorum,omitempty"`  // nil: there is none
	Fencing    string       `json:"fencing,omitempty"` // resource-only or resource-and-stonith
	Frozen     string       `json:"frozen,omitempty"`  // why a primary answers nothing until a peer is fenced, in words
	Peers      []PeerStatus `json:"peers"`

	// Failover is how the volume's failover stands, filled in by the agent; nil: none is
	// configured.
	Failover *FailoverStatus `json:"failover,omitempty"`
	// IO is what was counted, where it was asked for; filled in by the agent.
	IO *IO `json:"io,omitempty"`
}

// QuorumState is a volume's quorum as this node sees it.
type QuorumState struct {
	Rule    string `json:"rule"` // majority, all, or a number
	Quorate bool   `json:"quorate"`
	Serving bool   `json:"serving"` // primary, and requests are answered
	Missing string `json:"missing"` // who is not there, in words
}

// PeerStatus is one peer of a Status.
type PeerStatus struct {
	Name        string  `json:"name"`
	Witness     bool    `json:"witness,omitempty"` // it votes, and holds no data
	Connection  string  `json:"connection"`
	Replication string  `json:"replication"`
	Role        string  `json:"role"`
	Disk        string  `json:"disk"`
	Protocol    string  `json:"protocol"`
	Size        int64   `json:"size,omitempty"` // bytes, as the peer said last; 0: it has not
	OutOfSync   int64   `json:"out_of_sync"`    // bytes
	SyncPercent float64 `json:"sync_percent"`   // 100 when nothing is out of sync
	Reason      string  `json:"reason,omitempty"`
	Fenced      bool    `json:"fenced,omitempty"`  // it cannot take over before it has been in sync with this node again
	Bonded      bool    `json:"bonded,omitempty"`  // this node may be promoted without it, once it is fenced
	Fencing     string  `json:"fencing,omitempty"` // the last question of the hook fence-peer, while it has no answer that helps

	// What would be lost were this node to die now and the peer to go on: the bytes
	// that it may lack, and the age of the oldest write among them. BehindSeconds is
	// nil when that is not known: the peer never had the data, or a verify has found
	// differences.
	BehindBytes   int64    `json:"behind_bytes"`
	BehindSeconds *float64 `json:"behind_seconds,omitempty"`

	// While replication is sync-source, sync-target, verify-source or -target.
	SyncTotal    int64   `json:"sync_total,omitempty"`     // bytes
	SyncDone     int64   `json:"sync_done,omitempty"`      // bytes
	SyncRate     int64   `json:"sync_rate,omitempty"`      // bytes/s
	SyncETA      float64 `json:"sync_eta,omitempty"`       // seconds
	SyncSent     int64   `json:"sync_sent,omitempty"`      // payload bytes sent, before compression, this or the last sync
	SyncCompared int64   `json:"sync_compared,omitempty"`  // bytes compared by digest, this or the last sync
	VerifyBad    int64   `json:"verify_bad,omitempty"`     // bytes found different by the last verify
	SyncInFlight int64   `json:"sync_in_flight,omitempty"` // bytes handed out and not answered
	SendQueue    int     `json:"send_queue,omitempty"`     // frames that wait to be sent
	Unacked      int64   `json:"unacked,omitempty"`        // bytes sent and not yet applied there
	UnackedOps   int64   `json:"unacked_ops,omitempty"`    // operations sent and not yet applied there, flushes included
	RTTMicros    int64   `json:"rtt_us,omitempty"`         // smoothed round trip
	LastSync     string  `json:"last_sync,omitempty"`      // rule that decided the last handshake

	// Bytes on the volume's streams since the agent started, and those that compression
	// took off: without it Sent would be Sent + SentSaved.
	Sent          uint64 `json:"sent,omitempty"`
	Received      uint64 `json:"received,omitempty"`
	SentSaved     uint64 `json:"sent_saved,omitempty"`
	ReceivedSaved uint64 `json:"received_saved,omitempty"`

	// Verify is the last verify with the peer that was run on this node, filled in
	// by the agent.
	Verify *VerifyStatus `json:"verify,omitempty"`
}

// FailoverStatus is how a volume's failover stands on this node.
type FailoverStatus struct {
	Enabled  bool   `json:"enabled"`
	Arbiter  string `json:"arbiter"`
	Standing string `json:"standing"` // off, ready, unable, starting, running, stopping, stopped
	Doing    string `json:"doing"`    // what is under way
	Reason   string `json:"reason,omitempty"`
	Trouble  bool   `json:"trouble"` // somebody should look
	Top      string `json:"top"`     // what is on top: unknown, stopped, running, broken
	// GivenUpUntil: what belongs on top did not start here, and the role is left to others.
	GivenUpUntil time.Time      `json:"given_up_until,omitzero"`
	Paused       bool           `json:"paused"`
	PausedBy     string         `json:"paused_by,omitempty"` // node
	PausedSince  time.Time      `json:"paused_since,omitzero"`
	Preferred    []string       `json:"preferred,omitempty"`
	Peers        []FailoverPeer `json:"peers,omitempty"` // those that have said how it stands there
}

// FailoverPeer is how it stands on a peer.
type FailoverPeer struct {
	Name     string `json:"name"`
	Standing string `json:"standing"`
	Reason   string `json:"reason,omitempty"`
}

// VerifyStatus is the last verify with a peer.
type VerifyStatus struct {
	Started   time.Time `json:"started"`
	Ended     time.Time `json:"ended,omitzero"`
	Off       int64     `json:"off"` // the range, bytes
	Len       int64     `json:"len"`
	Next      int64     `json:"next"`               // all up to here was compared
	Checked   int64     `json:"checked"`            // bytes
	Bad       int64     `json:"bad"`                // bytes in blocks that differed
	Repaired  int64     `json:"repaired,omitempty"` // bytes copied by --repair
	Scheduled bool      `json:"scheduled,omitempty"`
	Stopped   string    `json:"stopped,omitempty"` // why it ended early; "": it is complete
}

// VerifyOptions say what is compared, how fast, and what happens to differences.
type VerifyOptions struct {
	Peer     string
	Off, Len int64  // the range, bytes; Len 0: up to the end of the volume
	Rate     int64  // bytes/s; 0: the volume's SyncRate
	Repair   bool   // have what differs copied afterwards
	From     string // Repair: the node whose data is right; "": the primary
}

// VerifyReport is the result of a verify run, also of one that was stopped.
type VerifyReport struct {
	Peer    string `json:"peer"`
	Off     int64  `json:"off"` // the range, bytes
	Len     int64  `json:"len"`
	Next    int64  `json:"next"`    // all up to here was compared; off+len: the whole range
	Checked int64  `json:"checked"` // bytes
	Bad     int64  `json:"bad"`     // bytes in blocks that differ, marked out of sync
	// Repaired are the bytes that were copied afterwards: the blocks that differed,
	// and others that were marked.
	Repaired int64 `json:"repaired,omitempty"`
	// Ranges are the first VerifyRangesMax.
	Ranges []VerifyRange `json:"ranges"`
}

// VerifyRangesMax bounds the ranges that a report names.
const VerifyRangesMax = 1000

// VerifyRange is a byte range in which replicas differ.
type VerifyRange struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// Control is the set of operations an operator has on a volume. Each blocks
// until done, refused (*Error) or ctx ends; when ctx ends, the operation may
// still complete.
type Control interface {
	Status() Status
	Explain() Explanation
	Promote(ctx context.Context, o PromoteOptions) error
	Demote(ctx context.Context) error
	Switchover(ctx context.Context, peer string) error
	Connect(ctx context.Context, peer string, discard bool) error // peer "": all
	Disconnect(ctx context.Context, peer string) error            // peer "": all
	Invalidate(ctx context.Context) error
	// Outdate makes it durable that this replica's data are old: it is not promoted
	// before it has been in sync with a newer one.
	Outdate(ctx context.Context) error
	// ListArchives describes the sides that were given up, oldest first.
	ListArchives() ([]ArchiveInfo, error)
	// ViewArchive returns a side that was given up, read-only. The caller closes it
	// before the volume is closed.
	ViewArchive(id string) (blockdev.Device, error)
	// RestoreArchive puts a side that was given up back over this replica.
	RestoreArchive(ctx context.Context, id string, progress func(done, total int64)) error
	RemoveArchive(id string) error
	// Verify compares with a peer. When ctx ends it is stopped; the report then
	// says how far it came, as it does when the peer is lost.
	Verify(ctx context.Context, o VerifyOptions, progress func(done, total int64)) (VerifyReport, error)
	// ReplaceDisk puts an empty disk in the place of the failed one of a primary,
	// which goes on serving from its peers while it is filled from them. fresh makes
	// it, after the failed one was closed; the volume owns what it returns. REQUIRES:
	// primary. On any other node the volume is closed and created anew.
	ReplaceDisk(ctx context.Context, fresh func() (Disk, error)) error
	// Tune makes other settings hold from now on. It does not wait.
	Tune(t Tuning)
	// AddPeer makes the volume know one more peer, which is connected when it comes.
	// Nothing waits for it before it has been synced.
	AddPeer(p PeerConfig) error
	// AttachPeer hands over a connection; the volume owns c whatever it returns.
	AttachPeer(peer string, c Conn) error
	// PeerUnreachable tells why a connection attempt failed, for status.
	PeerUnreachable(peer string, err error)
	// Close drains, flushes and writes back the metadata, then closes the store.
	// When ctx ends it stops without draining, as a crash would.
	Close(ctx context.Context) error
}
