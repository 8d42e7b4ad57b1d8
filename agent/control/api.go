package control

import (
	"context"
	"time"

	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/volume"
)

// NodeStatus is what `qrbd status --json` prints.
type NodeStatus struct {
	Node    string          `json:"node"`
	Version string          `json:"version"`
	Volumes []volume.Status `json:"volumes"`
	Links   []LinkStatus    `json:"links,omitempty"` // one for each peer, whatever volumes it has
	// IdentitySince is when the identity key was made; zero: not known.
	IdentitySince time.Time           `json:"identity_since,omitzero"`
	Certificates  []CertificateStatus `json:"certificates,omitempty"`
}

// CertificateStatus is a certificate that the node shows.
type CertificateStatus struct {
	Use  string    `json:"use"` // "peers", or the address of an export
	Ends time.Time `json:"ends"`
}

// PeerReach is what a peer found out about its way to this node.
type PeerReach struct {
	Peer      string `json:"peer"`
	Unasked   string `json:"unasked,omitempty"` // why nothing is known; the rest is empty then
	Address   string `json:"address,omitempty"` // of this node, as the peer has it configured
	RTTMicros int64  `json:"rtt_us,omitempty"`
	Largest   int    `json:"largest,omitempty"` // UDP payload that passes, bytes; 0: not known
	Build     string `json:"build,omitempty"`   // what runs on the peer
	Reason    string `json:"reason,omitempty"`  // why this node is not reached; "": it is
}

// LinkStatus is the session with a peer's agent, which carries all volumes. The
// counters are those of the session under way; what a transport does not know is
// zero.
type LinkStatus struct {
	Peer      string `json:"peer"`
	Address   string `json:"address,omitempty"` // as configured
	Up        bool   `json:"up"`
	Transport string `json:"transport,omitempty"` // "quic" or "tcp"
	// Compression of what this node sends: "none" or "zstd". What the peer sends follows
	// the peer's configuration.
	Compression string `json:"compression,omitempty"`
	Protocol    string `json:"protocol,omitempty"` // of the peer, "1.0"
	Dialled     bool   `json:"dialled,omitempty"`  // by this node
	Reason      string `json:"reason,omitempty"`   // why it is not up

	RTTMicros        int64  `json:"rtt_us,omitempty"` // smoothed round trip
	BytesSent        uint64 `json:"bytes_sent,omitempty"`
	BytesReceived    uint64 `json:"bytes_received,omitempty"`
	PacketsSent      uint64 `json:"packets_sent,omitempty"`
	PacketsLost      uint64 `json:"packets_lost,omitempty"`      // and sent again
	CongestionWindow uint64 `json:"congestion_window,omitempty"` // bytes
}

// CreateRequest asks for a volume's backing store and metadata.
type CreateRequest struct {
	Force bool `json:"force"` // overwrite what is there
}

// DestroyRequest asks for the end of this node's replica.
type DestroyRequest struct {
	Backing  bool `json:"backing"`  // remove the backing store too
	Archives bool `json:"archives"` // and what lost sides of split brains held
	Force    bool `json:"force"`    // also if it may be the last copy
}

// ResizeRequest asks for another size.
type ResizeRequest struct {
	Size  int64 `json:"size"`  // bytes
	Force bool  `json:"force"` // disconnect the clients for a moment
}

// PromoteRequest carries volume.PromoteOptions.
type PromoteRequest struct {
	Force      bool `json:"force"`
	PeerFenced bool `json:"peer_fenced"`
}

// DemoteRequest asks for the secondary role.
type DemoteRequest struct {
	Force bool `json:"force"` // disconnect the clients first
}

// SwitchoverRequest asks for a planned hand-over.
type SwitchoverRequest struct {
	To    string `json:"to"`
	Force bool   `json:"force"` // disconnect the clients first
}

// FailoverPauseRequest pauses a volume's failover on all its nodes, or resumes it.
type FailoverPauseRequest struct {
	Paused bool `json:"paused"`
}

// FailoverTestRequest asks for a rehearsal: a move to a node and back.
type FailoverTestRequest struct {
	To string `json:"to,omitempty"` // "": the one that would be next
}

// ConnectRequest asks to connect to a peer, or to all for "".
type ConnectRequest struct {
	Peer          string `json:"peer,omitempty"`
	DiscardMyData bool   `json:"discard_my_data"`
}

// DisconnectRequest asks to leave a peer, or all for "".
type DisconnectRequest struct {
	Peer string `json:"peer,omitempty"`
}

// ExportRequest asks for an archive's read-only export on a Unix socket.
type ExportRequest struct {
	Socket     string  `json:"socket"`      // absolute path
	ForSeconds float64 `json:"for_seconds"` // 0: until the call ends
}

// VerifyRequest asks for a comparison with a peer, or with all for "".
type VerifyRequest struct {
	Peer   string `json:"peer,omitempty"`
	Off    int64  `json:"off,omitempty"`  // the range, bytes
	Len    int64  `json:"len,omitempty"`  // 0: up to the end
	Rate   int64  `json:"rate,omitempty"` // bytes/s; 0: the volume's limit
	Repair bool   `json:"repair,omitempty"`
	From   string `json:"from,omitempty"`   // Repair: whose data is right
	Resume bool   `json:"resume,omitempty"` // go on with the one that was interrupted
	Stop   bool   `json:"stop,omitempty"`   // end the one that runs, whoever started it
}

// WaitFor is a state that `qrbd wait` waits for.
type WaitFor string

// The states that can be waited for.
const (
	WaitConnected WaitFor = "connected"  // every peer is connected
	WaitUpToDate  WaitFor = "up-to-date" // this disk and every peer's are up-to-date
	WaitPrimary   WaitFor = "primary"    // the volume is primary here
)

// WaitRequest asks to be told when a state is reached.
type WaitRequest struct {
	For            WaitFor `json:"for"`
	TimeoutSeconds float64 `json:"timeout_seconds"` // 0: no limit
}

// ReloadReport says what a reload of the configuration did, a line each.
type ReloadReport struct {
	File    string   `json:"file"`
	Applied []string `json:"applied"` // holds now
	Restart []string `json:"restart"` // holds when the agent is started again
	Resize  []string `json:"resize"`  // sizes that differ from the volumes'
	Failed  []string `json:"failed"`  // was tried; the agent is as before
}

// Progress is one line of a long operation's answer. The last line has Done or
// Error.
type Progress struct {
	DoneBytes  int64                 `json:"done_bytes,omitempty"`
	TotalBytes int64                 `json:"total_bytes,omitempty"`
	Waiting    string                `json:"waiting,omitempty"` // what is still missing, in words
	Reports    []volume.VerifyReport `json:"reports,omitempty"`
	Serving    string                `json:"serving,omitempty"` // where the export is
	Rehearsal  *failover.Rehearsal   `json:"rehearsal,omitempty"`
	Done       bool                  `json:"done,omitempty"`
	Error      *ErrorBody            `json:"error,omitempty"`
}

// ErrorBody is a refusal.
type ErrorBody struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// Kind says what an EventLine is.
type Kind string

// The kinds.
const (
	KindChange Kind = "change" // a state has changed
	KindState  Kind = "state"  // what a state is: the agent, or a volume, has just started
	KindGap    Kind = "gap"    // events are missing: From to To
	// Added by a client that follows the stream across lives of the agent.
	KindAway Kind = "away" // the agent does not answer: nothing is known until it is back
	KindBack Kind = "back" // it answers again, and nothing was missed
)

// EventLine is one line of the event stream: an event with its number, or a word on
// the stream itself, which has none.
type EventLine struct {
	Kind Kind      `json:"event"`
	Boot string    `json:"boot,omitempty"` // the life of the agent that counts Seq
	Seq  uint64    `json:"seq"`            // of a gap: the last that is missing
	Time time.Time `json:"time"`
	// Of a gap: the first and the last that are missing. When the agent was restarted,
	// what is missing is the end of the former life from From on, and To is 0 of the new one.
	From   *Position `json:"from,omitempty"`
	To     *Position `json:"to,omitempty"`
	Missed uint64    `json:"missed,omitempty"` // how many, where that is known
	Reason string    `json:"reason,omitempty"`

	*volume.Event // of a change or a state; Time and Reason stand above
}

// Node is the agent as the control API sees it. Volumes are named; an unknown
// name is a *volume.Error with CodeUnknownVolume. Methods block until done,
// refused or ctx ends. Safe for concurrent use.
type Node interface {
	Status() NodeStatus
	// StatusIO is Status with what the volumes have counted.
	StatusIO() NodeStatus
	// Reach has every peer find out whether it reaches this node: some seconds.
	Reach(ctx context.Context) []PeerReach
	// Reload reads the configuration anew and applies what can be applied; a file with
	// faults is refused as a whole.
	Reload(ctx context.Context) (ReloadReport, error)
	Explain(name string) (volume.Explanation, error)
	Create(ctx context.Context, name string, r CreateRequest) error
	// Destroy removes this node's replica; the volume is then one that is not created.
	Destroy(ctx context.Context, name string, r DestroyRequest) error
	// Resize makes this node's replica larger. It may take long.
	Resize(ctx context.Context, name string, r ResizeRequest) error
	Promote(ctx context.Context, name string, r PromoteRequest) error
	Demote(ctx context.Context, name string, r DemoteRequest) error
	Switchover(ctx context.Context, name string, r SwitchoverRequest) error
	Connect(ctx context.Context, name string, r ConnectRequest) error
	Disconnect(ctx context.Context, name string, r DisconnectRequest) error
	Invalidate(ctx context.Context, name string) error
	FailoverPause(ctx context.Context, name string, r FailoverPauseRequest) error
	// FailoverTest moves the volume, and what is on top, to a node and back; told is called
	// as each part of it ends.
	FailoverTest(ctx context.Context, name string, r FailoverTestRequest, told func(string)) (failover.Rehearsal, error)
	// Outdate keeps this node's replica from being promoted before it has been in sync again.
	Outdate(ctx context.Context, name string) error
	// ReplaceDisk puts an empty disk in the place of one that failed.
	ReplaceDisk(ctx context.Context, name string) error
	Archives(name string) ([]volume.ArchiveInfo, error)
	// ExportArchive serves an archive until ctx ends, the time is over or the agent
	// stops; serving is called once it can be used.
	ExportArchive(ctx context.Context, name, id string, r ExportRequest, serving func(address string)) error
	RestoreArchive(ctx context.Context, name, id string, progress func(done, total int64)) error
	RemoveArchive(ctx context.Context, name, id string) error
	Verify(ctx context.Context, name string, r VerifyRequest, progress func(done, total int64)) ([]volume.VerifyReport, error)
}

// Limits of the API.
const (
	bodyMax = 64 << 10
	ringMax = 4096
	// callMax is the end of a call that has no end of its own. A switchover
	// drains, flushes and waits for the other side, each bounded by the volume's
	// write timeout of some 10 s.
	callMax = 60 * time.Second
	// promoteMax is that of a promotion, which may wait for the hook fence-peer: its
	// longest time limit, and a little.
	promoteMax = 11 * time.Minute
	// clientSlack is how much longer the client waits than the server works.
	clientSlack = 5 * time.Second
)
