package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// aloneCause says why a connection stands alone.
type aloneCause uint8

const (
	aloneNo      aloneCause = iota
	aloneHere               // this node's operator disconnected
	aloneThere              // the peer's operator disconnected
	aloneRefused            // the handshake was refused
)

// syncStep is where a source or target stands.
type syncStep uint8

const (
	syncNone      syncStep = iota
	syncBitmap             // source: waits for the target's bitmap
	syncPersist            // source: base and bits are being made durable
	syncWaitReady          // source: SyncStart is sent
	syncAsk                // target: the owner is asked
	syncWaitStart          // target: waits for SyncStart
	syncArchive            // target: what is lost by the sync is being archived
	syncRunning            // both
	syncEnding             // source: the cleared slot is being made durable
	syncWaitAck            // source: SyncDone is sent
)

// peer is what the machine knows of one other replica.
type peer struct {
	id   PeerID
	name string
	mode protocol.Mode

	conn   protocol.Conn
	alone  aloneCause
	reason string // why not connected, in words
	repl   protocol.Repl
	role   protocol.Role
	disk   protocol.Disk

	// The connection.
	linked    bool
	epoch     uint64 // rises with every link and loss
	settled   bool   // the handshake is over
	sent      *protocol.Hello
	heard     *protocol.Hello // of this connection or, when not linked, the last one
	heardAt   Time
	serial    uint64 // idSerial when the hello was sent
	decision  Decision
	deadline  Time // of the handshake step under way
	retryAt   Time
	retryWait Time
	reconnect bool // has been connected since this node started
	discard   bool // operator: give our data up to this peer
	overwrite bool // operator: have this peer overwrite us in full
	// knowsCrash: what this node, a crashed primary, may have more or less than the
	// peer is settled.
	knowsCrash bool
	differs    bool // it has agreed to a forced promotion, and knows of blocks that are out of sync

	// Data toward the peer.
	slot   protocol.Generation // bitmap id; zero: in sync, or as good as
	dirty  *bitmap.Set
	live   bool // in the ack set of new writes
	claims bool // may have kept a flag of afterCrash
	apart  bool // not live, and not at the generation that this primary has begun
	// passed: it was lost with requests that may be under way (Request.without).
	passed bool
	ring   sentRing
	acked  protocol.Ack
	moved  Time   // when acked last rose, or the first operation was sent after a rest
	last   uint64 // last sequence sent
	congestion
	aheadAt     Time // when this primary went ahead of it (ahead.go)
	knowsBehind bool // it has said since that it is outdated

	// Since the two parted.
	wroteFirst   Time // when this side wrote what p may lack; 0: never
	wroteLast    Time
	wroteKept    Time      // wroteLast as the metadata has it, or is about to
	older        bool      // this node was primary when it was last connected to p
	joined       bool      // was live since this node became primary
	left         bool      // a generation was begun without it, or a sync to it, since it was in sync
	lacks        bool      // was lost with writes that nobody waited for and that it had not applied
	loose        bool      // was lost with applied writes that it had not made durable
	lostInstance uint64    // who it was then
	reads        []farRead // asked of it
	bare         bool      // primary, and what is on its disk does not count

	// Sync and verify.
	step        syncStep
	base        protocol.Generation
	startVolume protocol.VolumeID // target: of SyncStart
	digest      bool
	nextWord    Time     // target: of its next sign of life while the owner is asked
	patience    Time     // source: the end of waiting for those
	discards    *Discard // target: what the sync takes from here; nil: nothing
	plan        *resync.Plan
	total       int64 // blocks at its start
	endPending  bool  // the end waits for a generation being minted
	lastWhy     Rule
	outrun      bool   // since it was connected a sync from here has changed another peer: its word of that one, as a primary, may be older
	outrunIn    uint64 // Machine.reign of the first such sync

	lastStats   resync.Stats // of the last sync or verify
	verify      VerifyResult // the one under way, or the last
	verifyReply func(error)
	lastRun     uint64 // the last id of a verify: its answers may come during the next
	spoiled     bool   // a write that p has failed here since the two were connected: its blocks are to be copied
	verified    int64  // so many bits were set when a verify had marked some: they wait for the next connect
	repair      repair // operator: which of two secondaries is right
	mendAt      Time   // not before: the background check
	mendWait    Time   // what it last waited

	// Data from the peer.
	rxSeq     uint64
	rxHold    bool
	rxWord    uint64 // first word of the bitmap that may come next
	rxTaken   uint64 // what is applied whatever becomes of the connection
	rxApplied uint64
	rxDurable uint64
	// early: its word that it is primary, while another is followed (successor.go); nil: none.
	early      *protocol.State
	earlyUntil Time

	fresh map[PeerID]*bitmap.Set // target: marked toward others only because of this sync, and unchanged

	// As told by the primary, on a secondary.
	stable uint64
	weak   bool
	told   bool   // heard of in Stable since the primary was last found
	marked uint64 // what it may lack up to here is marked in dirty, not in the recent ring

	// Votes (quorum.go).
	witness    bool
	departed   bool             // it left in order, and is not missed
	owes       bool             // it knows that this node left in order, and has not confirmed the return
	ballot     *protocol.Ballot // of this connection
	saidLeft   bool             // it was told on this connection that this node has left
	asks       *protocol.Claim  // what it has, if it would be primary
	waits      *protocol.PromoteAsk
	votedFor   protocol.Generation // it follows this primary in it
	votedTerm  uint64
	votedAt    Time // the claim was sent
	answeredAt Time // it has answered a claim, or was connected

	fence fenceState // fence.go

	// On a primary.
	since uint64 // up to here it may have writes that it was not sent on this connection: a sync brought them, or an earlier one
}

// oldestUnapplied returns when the oldest operation was sent that the peer has not
// applied, or now.
func (p *peer) oldestUnapplied(now Time) Time {
	if r := &p.ring; r.applied < r.tail {
		return r.at(r.applied).at
	}
	return now
}

// sent is one operation on its way to a peer.
type sent struct {
	seq uint64
	off int64
	n   int64
	req *Request // whoever waits for it; nil when nobody does (any more)
	at  Time
	op  protocol.DataOp
	fua bool
}

// sentRing holds, in order, what a peer was sent and has not confirmed as
// durable. What it holds when the peer is lost is out of sync.
//
// Invariant: head <= durable' <= applied <= received <= tail in stream order.
type sentRing struct {
	buf      []sent // length is a power of two
	head     uint64 // absolute index of the oldest entry
	applied  uint64 // first entry not applied
	received uint64 // first entry not received
	tail     uint64 // one past the newest
	bytes    int64  // not yet applied
}

func (r *sentRing) at(i uint64) *sent { return &r.buf[i&uint64(len(r.buf)-1)] }

func (r *sentRing) len() int { return int(r.tail - r.head) }

func (r *sentRing) push(s sent) {
	if int(r.tail-r.head) == len(r.buf) {
		grown := make([]sent, max(64, 2*len(r.buf)))
		for i := r.head; i < r.tail; i++ {
			grown[i&uint64(len(grown)-1)] = *r.at(i)
		}
		r.buf = grown
	}
	*r.at(r.tail) = s
	r.tail++
	r.bytes += s.payload()
}

func (s *sent) payload() int64 {
	if s.op == protocol.DataWrite {
		return s.n
	}
	return 0
}

func (r *sentRing) reset() { *r = sentRing{buf: r.buf} }

// overlapsUnapplied reports whether an operation on the range is on its way.
func (r *sentRing) overlapsUnapplied(off, n int64) bool {
	for i := r.applied; i < r.tail; i++ {
		if s := r.at(i); s.op != protocol.DataFlush && s.off < off+n && off < s.off+s.n {
			return true
		}
	}
	return false
}
