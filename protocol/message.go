package protocol

// Limits of the wire. A decoder rejects what exceeds them before it allocates.
const (
	BodyMax       = 40 << 10  // bytes of a frame without header and payload
	PayloadMax    = 1 << 20   // bytes of a frame's payload
	NameMax       = 64        // bytes of a node's or volume's name
	TextMax       = 1024      // bytes of a message for people
	PeersMax      = 15        // peers of a volume
	HistoryMax    = 32        // generations remembered
	ChangesMax    = 16        // ranges of a Changes
	BitmapWordMax = 4096      // words of one BitmapPart (32 KiB)
	DigestsMax    = 256       // digests of one SyncDigests: 1 MiB of DigestBlock
	DigestBlock   = 4096      // bytes that one digest of SyncDigests covers
	ReadMax       = 256 << 10 // bytes of one PeerRead
	ReadsMax      = 256       // PeerReads of a connection without an answer
)

// DataOp is what a Data frame does to the replica.
type DataOp uint8

// Data operations.
const (
	DataWrite DataOp = iota + 1
	DataZero
	DataTrim
	DataFlush // a flush point; Off and Len are zero
)

// Data flags.
const (
	DataFUA    uint8 = 1 << iota // durable before Ack.Durable reaches it
	DataNoHole                   // DataZero only
)

// Data is one replicated operation, in the primary's order. Sequences ascend
// along a stream, with gaps. The payload of a DataWrite has Len bytes (at most
// PayloadMax); the others have none and Len may be any length.
type Data struct {
	Op    DataOp
	Flags uint8
	Seq   uint64
	Time  int64 // primary's clock, ns since 1970
	Off   int64
	Len   int64
}

// Ack is cumulative: every Data frame of the stream with a sequence up to the
// value has reached that stage.
type Ack struct {
	Received uint64 // is in the peer's memory
	Applied  uint64 // is written to the peer's store
	Durable  uint64 // is on the peer's stable storage
}

// VolumeID is the random identity of a volume, given at its first promotion and
// adopted by every replica at its first sync. Zero: none yet.
type VolumeID [16]byte

// PeerSlot is what a replica knows of one other replica.
type PeerSlot struct {
	Name   string
	Bitmap Generation // the generation at which that peer was last in sync; 0: it is in sync
	Dirty  uint64     // blocks out of sync toward it
}

// Hello flags.
const (
	HelloCrashedPrimary uint32 = 1 << iota // was primary when it stopped without notice
	HelloReconnect                         // has been connected to the receiver since it started
	HelloDiscard                           // the operator gives this side's data up
	HelloFullTarget                        // the operator asked this side to be overwritten in full (invalidate)
	HelloPeerFenced                        // promoted by the operator's word while the receiver was away
	HelloReplayed                          // set bits include whole extents of an activity map: compare before copying
	HelloTarget                            // is being overwritten by a node other than the receiver
	HelloWasPrimary                        // was primary when it parted from the receiver
	HelloShaken                            // stopped without notice, may have lost what was not flushed, and has not found its equal since
	HelloMayLack                           // follows a primary other than the receiver under A, or under B and shaken: may lack what that one acknowledged
	HelloRepairTarget                      // the operator has this side's marked blocks overwritten by the receiver's
	HelloRepairSource                      // the operator has the receiver's marked blocks overwritten by this side's
	HelloUnvoted                           // with a quorum: none has followed the sender's generation, so that nothing was acknowledged in it
	HelloOwnWrites                         // the newest writes that the sender has are its own, of when it was primary
	HelloYourWrites                        // ... are the receiver's
	HelloOtherWrites                       // ... are neither's
)

// Hello opens a volume's connection, both ways.
type Hello struct {
	Volume   VolumeID
	Size     int64
	Block    uint32 // dirty-tracking granularity, bytes
	Attempt  uint64 // names this handshake in Verdict
	Instance uint64 // random, new each time the sender's volume starts
	Role     Role
	Disk     Disk
	Mode     Mode
	Flags    uint32
	Seq      uint64 // highest sequence applied
	Current  Generation
	Slots    []PeerSlot // at most PeersMax
	History  []Generation
	Primary  string // the primary it is connected to, itself included; "" if none
	Policy   SplitPolicy
	Changes  Changes
}

// Strategy is a handshake's outcome from the sender's side.
type Strategy uint8

// Strategies.
const (
	NoSync Strategy = iota + 1
	SourceBitmap
	SourceFull
	TargetBitmap
	TargetFull
	SplitBrain
	Unrelated
	Retry // the state changed meanwhile: say hello again
	RefusedStrategy
)

// String returns the word shown to people.
func (s Strategy) String() string {
	return word(uint8(s), "?", "no-sync", "source-bitmap", "source-full", "target-bitmap", "target-full",
		"split-brain", "unrelated", "retry", "refused")
}

// Verdict is the deciding side's word on two Hellos, from the receiver's side
// (a receiver reads TargetBitmap when it is to be overwritten).
type Verdict struct {
	Attempt  uint64 // of the receiver's Hello
	Strategy Strategy
	Rule     string // name of the rule that decided
	Digest   bool   // blocks are compared before they are sent
}

// Code names an error across the wire.
type Code uint16

// Error codes.
const (
	CodeNone            Code = iota
	CodeInternal             // a bug or a condition without its own code
	CodeVersion              // no common protocol version
	CodeUnknownVolume        // the volume is not configured there
	CodeNotCreated           // configured, but not created
	CodeSize                 // sizes differ
	CodeVolumeID             // another volume with the same name
	CodeUnrelated            // no generation in common
	CodeSplitBrain           // both sides wrote since they parted
	CodeTwoPrimaries         // both sides are primary
	CodePrimaryIsTarget      // the primary's data is the older
	CodeDiskFailed           // the store failed
	CodeBusy                 // another operation is under way
	CodeNotAllowed           // the state forbids it; the text says which
	CodeTimeout              // the answer did not come in time
	CodeShutdown             // the node is stopping
	CodeOperator             // an operator asked for it
	CodeModeMismatch         // protocols A, B, C differ
	CodeCorrupt              // a digest did not match
	CodeProtocol             // the peer broke the protocol
	CodeName                 // a node's name is not the one configured for its key
	CodeCertificate          // a node's certificate has expired
	CodeDuplicate            // another session of the same two nodes goes on
	CodeRestart              // the handshake is to be had again
	CodeTransport            // the two sides have different transports configured
)

// Refuse ends a handshake with a reason; the connection stands alone on both
// sides until an operator acts or a side starts anew.
type Refuse struct {
	Code Code
	Text string
}

// Bye ends a connection in order. Outdate: the sender goes on as primary, so
// the receiver's data is older from now on.
type Bye struct {
	Code    Code
	Outdate bool
	Text    string
}

// PeerRead asks an up-to-date secondary for what it holds, on the write stream:
// every operation sent before it is in what is read. At most ReadsMax have no
// answer at any time.
type PeerRead struct {
	ID  uint64
	Off int64
	Len int64 // 1 to ReadMax
}

// PeerReply answers a PeerRead, on the bulk stream, in any order. The payload has
// Len bytes; it has none when Zero is set (the range reads as zeroes) or Code is
// not CodeNone (it could not be read).
type PeerReply struct {
	ID   uint64
	Len  int64
	Zero bool
	Code Code
}

// BitmapPart carries words of the sync target's dirty bitmap toward the source,
// and, when there are more replicas, of all that will be overwritten back to the
// target before SyncStart: word i covers blocks [64*(First+i), 64*(First+i)+64).
type BitmapPart struct {
	First uint64
	Words []uint64 // 1 to BitmapWordMax
}

// BitmapDone ends the bitmap; Blocks is the number of set bits sent.
type BitmapDone struct{ Blocks uint64 }

// SyncStart says that from this place in the stream on the source replicates
// every write, and copies Blocks dirty blocks on the bulk stream. The target
// makes "inconsistent, current generation = Base" durable before it answers
// SyncReady and before it applies anything.
type SyncStart struct {
	Base   Generation
	Volume VolumeID
	Blocks uint64
	Digest bool
}

// SyncReady answers SyncStart.
type SyncReady struct{}

// SyncDone: every block is copied and durable on the target, which now adopts
// the source's ids and is up-to-date.
type SyncDone struct {
	Current Generation
	Seq     uint64     // of the last write that the source has
	Slots   []PeerSlot // of the source; Dirty is 0 only if that replica equals the source
	History []Generation
}

// SyncDoneAck: the target's new ids are durable.
type SyncDoneAck struct{}

// NewGeneration tells connected peers of a minted generation before any write
// of it is issued. Weak peers are not there: their slots become Parent.
type NewGeneration struct {
	Parent  Generation
	Current Generation
	Weak    []string
}

// GoneAhead, from a primary under protocol A: from this place in the stream on the peer
// gets no writes before the next handshake, and is outdated.
type GoneAhead struct{}

// GenerationAck: the new generation is durable on the sender.
type GenerationAck struct{ Current Generation }

// PeerStable is one entry of Stable.
type PeerStable struct {
	Name    string
	Durable uint64 // that peer has everything up to here on stable storage
	InSync  bool   // false: it lacks what followed
	Settled bool   // it lacks nothing of what preceded either (a sync has ended)
}

// Stable tells a secondary how far the others are.
type Stable struct{ Peers []PeerStable }

// State tells the peer that something about the sender changed.
type State struct {
	Role    Role
	Disk    Disk
	Current Generation
	Primary string
}

// PromoteAsk asks a connected peer's leave to become primary.
type PromoteAsk struct {
	ID    uint64
	Force bool
}

// PromoteAnswer answers it. Yes with CodeBusy, to Force: blocks that the sender knows of are
// out of sync between the two, and have to be compared.
type PromoteAnswer struct {
	ID   uint64
	Yes  bool
	Code Code
	Text string
}

// Ballot goes before Hello on a volume with a quorum: what the sender has voted
// for, and whether it may.
type Ballot struct {
	Rules string     // the quorum's settings, the same on every node
	Term  uint64     // of the primary that it followed last, or is
	Voted Generation // of the primary that it followed last
	// Floor: it follows no primary whose term is not above. Overruled: as in its claims.
	Floor, Overruled uint64

	Witness bool // it holds no data
	Left    bool // it left in order, and somebody who knew has not confirmed since (Readmit) that it is back
	Serving bool // it is primary, and a quorum follows it
}

// Claim says that the sender is primary in Term, with the data of Current. It is
// answered. Without a Stamp it goes before PromoteAsk, of a sender that would be
// primary, and is not.
type Claim struct {
	Term    uint64
	Stamp   int64 // the sender's clock, ns; 0: a candidate's
	Current Generation
	// Overruled: by an operator's word this line of the data counts, whatever a primary
	// whose term is not above was followed in. 0: nobody has said so.
	Overruled uint64
	History   []Generation // what Current descends from
}

// NoVote says why a Claim is not followed.
type NoVote uint8

// Reasons.
const (
	VoteYes   NoVote = iota
	NoTerm           // a later term is known
	NoBehind         // another generation was followed, which the claimant's data does not descend from
	NoPromise        // another primary was followed until a moment ago, and may still answer
	NoFollow         // it cannot: another primary is seen, or its data is not the claimant's
)

// ClaimAnswer answers a Claim with a Stamp. With VoteYes the sender follows no other
// primary for the length of a lease from when it had the Claim, and that it has
// followed this one is on its stable storage.
type ClaimAnswer struct {
	Stamp   int64
	Term    uint64 // of the primary that it follows, or followed last
	Current Generation
	No      NoVote
}

// Leave says that the sender leaves in order: on its stable storage is that it has
// no vote until the receiver has confirmed its return.
type Leave struct{}

// Readmit confirms the return of a node that left: it counts again, durably.
type Readmit struct{}

// Bond says, on a volume with fencing, that the receiver is in sync, and that the
// sender has no durable note any more that the receiver is fenced.
type Bond struct{}

// Handover is the last message of a primary that has drained, flushed and made
// its secondary role durable: the receiver becomes primary.
type Handover struct {
	ID      uint64
	Current Generation
	Seq     uint64
}

// HandoverAnswer answers it once the new role is durable, or says why not.
type HandoverAnswer struct {
	ID   uint64
	Yes  bool
	Text string
}

// ConnectAsk asks the node that opens streams to open this volume's.
type ConnectAsk struct{ Volume string }

// ReachAsk asks the peer to find out whether it reaches this node at the address that
// it has configured, which takes it some seconds. Only to peers with FeatureReach. One
// at a time.
type ReachAsk struct{ ID uint64 }

// ReachAnswer says what came of a ReachAsk.
type ReachAnswer struct {
	ID      uint64
	RTT     int64  // ns; 0: not reached, and Reason says why
	Largest uint32 // UDP payload that passes, bytes; 0: not known
	Address string // that was tried
	Build   string // what runs there
	Reason  string
}

// Standing is how a volume's failover stands on a node.
type Standing uint8

// The standings.
const (
	StandingOff      Standing = iota // it is not configured, or not enabled
	StandingReady                    // secondary, and may take the role over
	StandingUnable                   // secondary, and does not take the role: Reason
	StandingStarting                 // primary, and what belongs on top is being started
	StandingRunning                  // primary, and what belongs on top runs
	StandingStopping                 // what is on top is being stopped
	StandingStopped                  // primary, and nothing runs on top: Reason
)

// Failover tells how a volume's failover stands on the sender, at the begin of a session
// and at each change. Only to peers with FeatureFailover.
type Failover struct {
	Volume   string
	Standing Standing
	// Whether failover is paused, for all nodes: of two nodes' words the one with the higher
	// Change holds, of equal ones the paused one. By is the node on which it was said.
	Paused bool
	Change uint64
	By     string
	// Vote is the record of the volume's vote in etcd that the sender has seen: 0 it has not
	// looked or has no use for it, 1 there is none, else its id.
	Vote uint64
	// Move asks the receiver, if it is primary, to hand the role over to the sender.
	Move   bool
	Reason string
}

// SyncWrite is a block run on the bulk stream; the payload has Len bytes.
type SyncWrite struct {
	ID  uint64
	Off int64
	Len int64
}

// SyncZero is a run that reads as zeroes, of any length.
type SyncZero struct {
	ID  uint64
	Off int64
	Len int64
}

// SyncDigests asks which blocks of [Off, Off+Len) differ: one XXH64 with Seed
// for each 4 KiB block. Verify: only report, nothing will be sent.
type SyncDigests struct {
	ID      uint64
	Off     int64
	Len     int64
	Seed    uint64
	Verify  bool
	Digests []uint64 // at most DigestsMax
}

// SyncDiffers answers: bit i of the words set when block i differs.
type SyncDiffers struct {
	ID     uint64
	Differ [DigestsMax / 64]uint64
}

// SyncAck: the run of that id is written (not yet durable).
type SyncAck struct{ ID uint64 }

// SyncFlush asks to make all runs before it durable.
type SyncFlush struct{ ID uint64 }

// SyncFlushed answers.
type SyncFlushed struct{ ID uint64 }

// NodeHello opens a session on its control stream, both ways.
type NodeHello struct {
	Major, Minor uint16
	Features     uint64
	Name         string
	Instance     uint64 // random, new each time the agent starts
}

// Ping is a heartbeat; Pong returns its fields.
type Ping struct {
	ID   uint64
	Time int64
}

// Pong answers a Ping.
type Pong struct {
	ID   uint64
	Time int64
}

// Close ends a session over TCP, on its control stream: its last frame. Over QUIC
// the connection's own close says the same.
type Close struct {
	Code Code
	Text string
}

// JoinTicketLen is the length of a Join's ticket.
const JoinTicketLen = 32

// Join is the first frame of a TCP connection that carries a stream of a session.
// The ticket is one that only the two ends of the session's control connection
// know (RFC 8446 section 7.5, label JoinLabel).
type Join struct{ Ticket [JoinTicketLen]byte }

// JoinLabel is the exporter label of tickets.
const JoinLabel = "EXPORTER-qrbd session ticket"

// StreamKind says what a stream is for.
type StreamKind uint8

// Stream kinds.
const (
	StreamWrite StreamKind = iota + 1 // ordered: handshake, writes, acks, state
	StreamBulk                        // resync and verify
)

// StreamOpen is the first frame of a volume's stream.
type StreamOpen struct {
	Kind    StreamKind
	Volume  string
	Attempt uint64 // pairs a volume's two streams
}
