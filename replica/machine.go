package replica

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// Time is the owner's clock in nanoseconds since 1970. The machine compares
// times only with each other.
type Time = int64

// PeerID is a peer's index in Config.Peers and its bit in ack sets.
type PeerID uint8

// Refusal is the answer to an operator or a peer: a code that survives the wire
// and a text that says what to do.
type Refusal struct {
	Code protocol.Code
	Text string
}

func (r *Refusal) Error() string { return r.Text }

func refusal(code protocol.Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Text: fmt.Sprintf(format, args...)}
}

// PeerConfig is one peer.
type PeerConfig struct {
	Name    string
	Mode    protocol.Mode
	Witness bool // it holds no data; witnesses come last

	// Protocol A only; zero Buffer: QueueBytes.
	Buffer       int64        // bytes sent to it and not applied there: writes wait above it
	OnCongestion OnCongestion // what else happens
	Fill         int64        // CongestionPullAhead: so many bytes are enough; zero: Buffer
}

// Config is what the machine needs to know. Times in nanoseconds.
type Config struct {
	Self  string
	Name  string // of the volume, for texts
	Size  int64
	Peers []PeerConfig // at most protocol.PeersMax
	// AskTarget: the owner is asked (DoAskTarget) before a peer overwrites this replica.
	AskTarget bool
	// Policy says what to do about a split brain without an operator's word.
	Policy protocol.SplitPolicy
	// Rand returns random numbers for ids; never zero.
	Rand     func() uint64
	VolumeID func() protocol.VolumeID

	WriteTimeout  Time
	FlushInterval Time
	FlushBytes    int64
	ActivityIdle  Time
	HandshakeTime Time // a handshake step that takes longer drops the connection
	RetryMin      Time // back-off between connection attempts
	RetryMax      Time
	AskTime       Time // a peer's answer to a promotion or handover
	NoData        NoData
	OnReadError   OnReadError
	DiskTimeout   Time  // a local operation that takes longer fails the disk; 0: none does
	QueueBytes    int64 // sent to a peer and not applied there: writes wait above it
	RingMax       int   // operations that a peer has not confirmed: writes wait above it; zero: 64 Ki
	RecentMax     int   // writes that a secondary remembers for the others; zero: 64 Ki
	Sync          resync.Options
	// Confirmed is told how long after it was sent a peer has applied an operation (a
	// flush, or FUA: made it durable). It must not call the machine. nil: not told.
	Confirmed func(id PeerID, op protocol.DataOp, took Time)

	// Quorum: how many nodes must follow a primary, so that it answers. The same on
	// every node, as MinRedundancy, Lease and who is a witness.
	Quorum        Quorum
	MinRedundancy Quorum // so many must hold all of the data
	OnNoQuorum    OnNoQuorum
	Lease         Time // a node that follows a primary follows no other for so long; REQUIRES > 0 with a quorum
	Witness       bool // this node holds no data, and votes

	// Fencing: what must be certain of a peer that is out of reach (fence.go). Not used
	// with a quorum.
	Fencing Fencing
}

// Machine is the state machine. Not safe for concurrent use.
type Machine struct {
	cfg Config
	out []Effect
	now Time

	volume    protocol.VolumeID
	instance  uint64
	role      protocol.Role
	reign     uint64 // how often the role has changed
	disk      protocol.Disk
	diskWhy   string
	current   protocol.Generation
	history   []protocol.Generation
	lost      protocol.Generation // given up, while the sync that overwrites it has not ended
	vouched   uint64              // Stored.Archive
	noArchive bool                // it could not be opened
	crashed   bool                // was primary when it stopped without notice
	heir      bool                // crashed: by a sync from the node that was
	writer    string              // whose writes the newest here are; empty: not known
	lacking   bool                // Stored.Lacking
	replayed  bool                // whole extents were marked when it started
	shaken    bool                // may have lost what was not flushed, and has not found its equal since
	fenced    bool                // promoted by the operator's word
	// restoring: what was given up is half-way back. Peers are kept away.
	restoring bool
	putting   bool // the owner is writing it
	stopping  bool
	seq       uint64 // highest ever heard of: none up to here is used again
	holds     uint64 // highest whose operation this replica has taken in
	idSerial  uint64 // rises with every change of role or ids

	peers    []*peer
	all      []*peer // peers, then those without data
	vote     voting
	activity *bitmap.Activity

	// Requests.
	spans        []span     // writes in flight
	held         []*Request // wait for a freeze to end
	arming       []*Request // wait for the activity map
	overlapped   []*Request // wait for an overlapping write or sync run
	readBack     []*Request // reads that are done, and wait for writes that they may have seen
	genWait      []*Request // done but for the new generation
	flights      int        // issued requests not yet complete, reads excluded
	localDurable uint64     // every write up to here is durable here
	loose        int64      // bytes written that no flush follows
	looseAt      Time       // when the first of them was issued; 0: none
	ownFlush     *Request   // the machine's own flush in flight
	bootFlush    *Request   // the flush of what earlier lives left in the cache
	bootDurable  bool       // and it is done: extents of earlier lives may cool
	frozen       int        // writes wait while > 0 (drain, mint)
	minting      bool
	mintWait     uint16
	offer        *mintOffer // what the peers are to confirm, or were last
	mintTurn     uint64     // counts rounds
	unheard      bool       // proclaim again
	mintNext     func()
	mintDeadline Time

	// Metadata.
	metaWant    uint64 // version of the state in memory
	metaDone    uint64 // version on disk
	metaBusy    bool   // a batch is being committed
	metaAt      Time   // since when
	metaDead    bool   // it could not be written: nothing more is
	wantBitmaps bool   // the next batch includes changed bitmap pages
	after       []afterMeta
	superWant   uint64 // version of the newest change in the super page
	superTaken  uint64
	cleanMark   bool

	// Operations.
	promote  *promotion
	handover *handoverOut
	granted  grant
	drain    *draining
	nextTick struct{ stable, cool, bitmaps Time }
	recent   recentRing

	foreground foreground
	rising     bool // primary, and that is not durable yet
	falling    bool // secondary again, and that is not durable yet

	// A disk that is no copy, or not in all places.
	detached   bool        // the generation was begun without this node's disk
	filling    bool        // the disk was replaced and does not count yet
	left       *bitmap.Set // blocks that the disk lacks; nil: none
	leftFrom   int64       // where the next run is looked for
	pulls      int         // runs in flight
	pullWait   []*Request  // of those, the ones under which a write is in flight
	pullAt     Time        // not before
	fillFlush  *Request
	farWait    []*Request // reads that no peer has room for
	readSerial uint64
	reading    []*Request // with the local store, if there is a disk timeout
	localMoved Time       // when the store last finished something
}

type span struct {
	off, end int64
	req      *Request
}

// New returns the machine for a volume as its metadata has it. activity holds the
// extents that were hot when the metadata was read; unless it was closed in order
// every bit of theirs is set toward every peer.
func New(cfg Config, st Stored, activity *bitmap.Activity, now Time) *Machine {
	m := &Machine{cfg: cfg, now: now, activity: activity, role: protocol.Secondary,
		volume: st.Volume, disk: st.Disk, current: st.Current, history: st.History, seq: st.Seq, holds: st.Seq, crashed: st.Primary, shaken: st.Shaken, lacking: st.Lacking, lost: st.Lost, restoring: st.Restoring,
		vouched: st.Archive, noArchive: st.NoArchive}
	if m.noArchive && m.lost == 0 { // else only what gives Lost up would overwrite anything, and that needs the archive
		m.vouched = 0
	}
	if m.cfg.RingMax == 0 {
		m.cfg.RingMax = ringMax
	}
	if m.cfg.RecentMax == 0 {
		m.cfg.RecentMax = recentMax
	}
	m.instance = cfg.Rand()
	m.recallWriter(&st)
	for i, c := range cfg.Peers {
		s := st.Peers[i]
		p := &peer{id: PeerID(i), name: c.Name, mode: c.Mode, slot: s.Bitmap, dirty: s.Dirty, witness: c.Witness, departed: s.Left, owes: s.Told,
			wroteFirst: s.First, wroteLast: s.Last, wroteKept: s.Last, older: s.Older || st.Primary && st.Own && s.Bitmap == 0,
			congestion: m.congestionOf(c), conn: protocol.Connecting, role: protocol.RoleUnknown, disk: protocol.DiskUnknown, retryAt: now}
		p.fence.kept = s.Fenced && m.fencingOn() // what was noted before it was switched off says nothing any more
		p.fence.sure, p.fence.noted = p.fence.kept, p.fence.kept
		m.all = append(m.all, p)
		if c.Witness || cfg.Witness {
			p.dirty = emptyBits()
			continue
		}
		m.peers = append(m.peers, p)
	}
	m.vote.term, m.vote.voted, m.vote.overruled, m.vote.floor = st.Term, st.Voted, st.Overruled, st.Floor
	if m.quorumOn() && st.Term != 0 {
		m.vote.until = now + cfg.Lease // what was promised is not known any more
	}
	if cfg.Witness {
		m.disk, m.diskWhy = protocol.Diskless, witnessWhy
	}
	if m.quorumOn() && len(m.all) == 0 {
		m.vote.quorate = true
	}
	if m.restoring {
		for _, p := range m.peers {
			p.alone, p.conn, p.reason = aloneHere, protocol.Standalone, m.unfinished().Text
		}
	}
	switch {
	case m.disk == protocol.UpToDate && len(m.peers) > 0:
		m.disk = protocol.Consistent // another replica may have gone on
	case m.disk == protocol.Failed:
		m.diskWhy = "it failed before the agent was started. Replace it and run: qrbd replace-disk " + cfg.Name
	}
	blocks := bitmap.Blocks(cfg.Size)
	if !st.Clean {
		m.replayed = activity.Count() > 0
		// With two replicas a secondary keeps no activity map: it may have lost what it
		// had applied without a trace.
		m.shaken = m.shaken || m.replayed || len(m.peers) < 2
		activity.Active(func(extent int64) {
			from := extent * bitmap.BlocksPerExtent
			for _, p := range m.peers {
				p.dirty.Set(from, min(from+bitmap.BlocksPerExtent, blocks))
			}
		})
		m.wantBitmaps = true
	}
	m.persist()
	return m
}

// Effects returns what is to be done since the last call. The slice is valid
// until the next event.
func (m *Machine) Effects() []Effect {
	out := m.out
	m.out = m.out[:0]
	return out
}

func (m *Machine) emit(e Effect) { m.out = append(m.out, e) }

func (m *Machine) event(peer, field, old, new, reason string) {
	if old != new {
		m.emit(Effect{Kind: DoEvent, Event: Event{peer, field, old, new, reason}})
	}
}

func (m *Machine) reply(fn func(error), err error) {
	if fn != nil {
		m.emit(Effect{Kind: DoReply, Reply: fn, Err: err})
	}
}

func (m *Machine) setDisk(d protocol.Disk, why string) {
	if m.disk == d || m.disk == protocol.Failed { // for good (P9)
		return
	}
	m.event("", "disk", m.disk.String(), d.String(), why)
	m.disk, m.diskWhy = d, why
	if d <= protocol.Outdated {
		m.unbind()
	}
	m.idSerial++
	m.persist()
}

func (m *Machine) setRole(r protocol.Role, why string) {
	if m.role == r {
		return
	}
	m.event("", "role", m.role.String(), r.String(), why)
	m.role = r
	m.reign++
	m.stopVerifies("the role of " + m.cfg.Self + " changed")
	for _, p := range m.peers {
		p.repair = repairNone
	}
	m.idSerial++
	m.persist()
}

// Usable reports whether the local disk is in use: it has not failed.
func (m *Machine) Usable() bool { return m.usable() }

// usable reports whether the local replica can serve I/O.
func (m *Machine) usable() bool { return m.disk > protocol.Failed }

const never = Time(1<<63 - 1)

func seconds(t Time) string { return time.Duration(t).String() }

// InFlight returns how many writes and flushes are issued and not complete.
func (m *Machine) InFlight() int { return m.flights }
