package replica

import (
	"errors"
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

// Op is what a request does.
type Op uint8

// The operations.
const (
	Read Op = iota
	Write
	Zero
	Trim
	Flush
)

// String returns the operation's name.
func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Zero:
		return "zero"
	case Trim:
		return "trim"
	case Flush:
		return "flush"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Errors that requests complete with.
var (
	ErrNotPrimary = errors.New("the volume is not primary on this node")
	ErrDiskFailed = errors.New("the local disk of the volume has failed")
	ErrStopping   = errors.New("the volume is stopping")
)

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

// Request is one operation on the primary. The owner allocates it, fills the
// exported fields, and may reuse it after DoComplete.
type Request struct {
	Op       Op
	FUA      bool
	NoHole   bool
	Off, Len int64
	Tag      any // the owner's

	seq     uint64
	local   bool   // the local part is not done
	pending uint16 // peers whose answer is missing, by PeerID
	needGen bool   // completes only under a generation that a lost peer has not
	all     bool   // Flush: every peer confirms it, whatever its protocol
	covers  uint64 // Flush: highest sequence that the local flush makes durable
	span    int    // index in Machine.spans, or -1
	err     error
}

// Seq returns the request's sequence; zero before it was issued.
func (r *Request) Seq() uint64 { return r.seq }

// EffectKind says what an Effect asks for.
type EffectKind uint8

// The effects.
const (
	DoLocal    EffectKind = iota // execute Req on the local store, then call LocalDone
	DoSend                       // append Data (payload: Req's) or Msg to Peer's write stream
	DoComplete                   // Req is finished with Err
	DoPersist                    // metadata changed: MetaBatch, commit, MetaDone, soon
	DoDrop                       // end Peer's connection, after what was sent; Err says why
	DoConnect                    // have a connection to Peer made
	DoSync                       // run Peer's plan (Plan) until it is done or the peer is lost
	DoReply                      // call Reply with Err
	DoEvent                      // tell Event
	DoResume                     // a held stream of Peer may go on (PeerData)
)

// Effect is one thing the owner is to do.
type Effect struct {
	Kind  EffectKind
	Peer  PeerID
	Req   *Request
	Data  protocol.Data
	Msg   protocol.Message
	Err   error
	Reply func(error)
	Event Event
}

// Event is a state change, for logs and watchers.
type Event struct {
	Peer     string // "" for the volume itself
	Field    string
	Old, New string
	Reason   string
}

// PeerConfig is one peer.
type PeerConfig struct {
	Name string
	Mode protocol.Mode
}

// Config is what the machine needs to know. Times in nanoseconds.
type Config struct {
	Self  string
	Name  string // of the volume, for texts
	Size  int64
	Peers []PeerConfig // at most protocol.PeersMax
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
	AskTime       Time  // a peer's answer to a promotion or handover
	QueueBytes    int64 // sent to a peer and not applied there: writes wait above it
	Sync          resync.Options
}

// PeerSlot is what the metadata knows of a peer.
type PeerSlot struct {
	Name   string
	Bitmap protocol.Generation
	Disk   protocol.Disk
	Dirty  *bitmap.Set
}

// Stored is the machine's durable state.
type Stored struct {
	Volume  protocol.VolumeID
	Disk    protocol.Disk
	Primary bool
	Clean   bool
	Current protocol.Generation
	History []protocol.Generation
	Seq     uint64
	Peers   []PeerSlot // same order as Config.Peers
}

// Machine is the state machine. Not safe for concurrent use.
type Machine struct {
	cfg Config
	out []Effect
	now Time

	volume   protocol.VolumeID
	instance uint64
	role     protocol.Role
	disk     protocol.Disk
	diskWhy  string
	current  protocol.Generation
	history  []protocol.Generation
	crashed  bool // was primary when it stopped without notice
	replayed bool // whole extents were marked when it started
	fenced   bool // promoted by the operator's word
	stopping bool
	seq      uint64 // highest ever heard of: none up to here is used again
	holds    uint64 // highest whose operation this replica has taken in
	idSerial uint64 // rises with every change of role or ids

	peers    []*peer
	activity *bitmap.Activity

	// Requests.
	spans        []span     // writes in flight
	held         []*Request // wait for a freeze to end
	arming       []*Request // wait for the activity map
	overlapped   []*Request // wait for an overlapping write or sync run
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
	mintID       protocol.Generation // that the peers are to confirm
	mintNext     func()
	mintDeadline Time

	// Metadata.
	metaWant    uint64 // version of the state in memory
	metaDone    uint64 // version on disk
	metaBusy    bool   // a batch is being committed
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
}

type afterMeta struct {
	version uint64
	fn      func()
	anyway  bool // also when the metadata cannot be written
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
		volume: st.Volume, disk: st.Disk, current: st.Current, history: st.History, seq: st.Seq, holds: st.Seq, crashed: st.Primary}
	m.instance = cfg.Rand()
	for i, c := range cfg.Peers {
		s := st.Peers[i]
		m.peers = append(m.peers, &peer{id: PeerID(i), name: c.Name, mode: c.Mode, slot: s.Bitmap, dirty: s.Dirty,
			conn: protocol.Connecting, role: protocol.RoleUnknown, disk: protocol.DiskUnknown, retryAt: now})
	}
	switch {
	case m.disk == protocol.UpToDate && len(m.peers) > 0:
		m.disk = protocol.Consistent // another replica may have gone on
	case m.disk == protocol.Failed:
		m.diskWhy = "it failed before the agent was started. Replace it; then, with the agent stopped, run: qrbd create " + cfg.Name + " --force"
	}
	blocks := bitmap.Blocks(cfg.Size)
	if !st.Clean {
		m.replayed = activity.Count() > 0
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

// persist notes that the super page changed and asks for a commit.
func (m *Machine) persist() {
	m.metaWant++
	m.superWant = m.metaWant
	m.emit(Effect{Kind: DoPersist})
}

// commit asks for a commit of what changed outside the super page.
func (m *Machine) commit() {
	m.metaWant++
	m.emit(Effect{Kind: DoPersist})
}

// whenDurable calls fn once the state as it is now is on stable storage, at once
// if it is. fn must check that it still applies.
func (m *Machine) whenDurable(fn func()) {
	if m.metaDone == m.metaWant {
		fn()
		return
	}
	m.after = append(m.after, afterMeta{m.metaWant, fn, false})
}

// whenSettled is whenDurable for what goes on even if the metadata cannot be
// written, and the disk is failed by that.
func (m *Machine) whenSettled(fn func()) {
	if m.metaDone == m.metaWant {
		fn()
		return
	}
	m.after = append(m.after, afterMeta{m.metaWant, fn, true})
}

// BitmapPage is one changed page of a peer's dirty bitmap.
type BitmapPage struct {
	Peer PeerID
	Page int64
	Data []byte
}

// MetaBatch is a consistent snapshot of what must be made durable. The pages are
// durable before the super page is written: it gives them their meaning.
type MetaBatch struct {
	Version  uint64
	Super    *Stored // nil: unchanged; Peers[i].Dirty is nil
	Activity []bitmap.ActivityPage
	Bitmaps  []BitmapPage
}

// MetaBatch takes what changed since the last batch; ok is false when there is
// nothing to do. The owner commits it durably and calls MetaDone. One batch at a
// time.
func (m *Machine) MetaBatch() (b MetaBatch, ok bool) {
	if m.metaBusy || m.metaDone == m.metaWant {
		return MetaBatch{}, false
	}
	m.metaBusy = true
	b.Version = m.metaWant
	if m.superWant > m.superTaken {
		b.Super = m.stored()
		m.superTaken = m.metaWant
	}
	if m.activity.Changed() {
		b.Activity = m.activity.Snapshot(nil)
	}
	if m.wantBitmaps {
		m.wantBitmaps = false
		for _, p := range m.peers {
			for _, page := range p.dirty.ChangedPages(nil) {
				b.Bitmaps = append(b.Bitmaps, BitmapPage{p.id, page, p.dirty.AppendPage(nil, page)})
			}
		}
	}
	return b, true
}

// MetaDone reports the batch of that version as durable, or failed. Metadata
// that cannot be written fails the local disk: nothing is promised without it.
func (m *Machine) MetaDone(now Time, version uint64, b MetaBatch, err error) {
	m.now = now
	m.metaBusy = false
	if err != nil {
		for _, g := range b.Bitmaps {
			m.peers[g.Peer].dirty.MarkChanged(g.Page)
		}
		if len(b.Activity) > 0 {
			m.activity.Failed()
		}
		after := m.after
		m.after = nil    // never durable
		m.superTaken = 0 // nor is what was taken
		m.failDisk("metadata: " + err.Error())
		for _, a := range after {
			if a.anyway {
				a.fn()
			}
		}
		return
	}
	m.metaDone = version
	if len(b.Activity) > 0 {
		m.activity.Written()
	}
	for len(m.after) > 0 && m.after[0].version <= version {
		fn := m.after[0].fn
		m.after = m.after[1:]
		fn()
	}
	m.pumpArming()
	if m.metaWant > m.metaDone {
		m.emit(Effect{Kind: DoPersist})
	}
}

func (m *Machine) stored() *Stored {
	s := &Stored{Volume: m.volume, Disk: m.disk, Primary: m.role == protocol.Primary || m.crashed,
		Clean: m.cleanMark, Current: m.current, History: append([]protocol.Generation(nil), m.history...), Seq: m.seq}
	for _, p := range m.peers {
		s.Peers = append(s.Peers, PeerSlot{Name: p.name, Bitmap: p.slot, Disk: p.disk})
	}
	return s
}

func (m *Machine) remember(g protocol.Generation) {
	if g == 0 {
		return
	}
	for _, h := range m.history {
		if h == g {
			return
		}
	}
	m.history = append([]protocol.Generation{g}, m.history...)
	if len(m.history) > protocol.HistoryMax {
		m.history = m.history[:protocol.HistoryMax]
	}
}

func (m *Machine) setDisk(d protocol.Disk, why string) {
	if m.disk == d || m.disk == protocol.Failed { // for good (P9)
		return
	}
	m.event("", "disk", m.disk.String(), d.String(), why)
	m.disk, m.diskWhy = d, why
	m.idSerial++
	m.persist()
}

func (m *Machine) setRole(r protocol.Role, why string) {
	if m.role == r {
		return
	}
	m.event("", "role", m.role.String(), r.String(), why)
	m.role = r
	m.idSerial++
	m.persist()
}

// usable reports whether the local replica can serve I/O.
func (m *Machine) usable() bool { return m.disk > protocol.Failed }

// failDisk takes the local disk out of use, for good (P9): every request in
// flight fails, the peers are told, nothing is written any more.
func (m *Machine) failDisk(why string) {
	if m.disk == protocol.Failed {
		return
	}
	m.setDisk(protocol.Failed, why)
	fail := func(list *[]*Request) {
		for _, r := range *list {
			m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrDiskFailed})
		}
		*list = nil
	}
	fail(&m.held)
	fail(&m.arming)
	fail(&m.overlapped)
	for _, r := range m.genWait {
		r.err = ErrDiskFailed
	}
	m.releaseGenWait()
	m.broadcastState()
	for _, p := range m.peers {
		m.emit(Effect{Kind: DoResume, Peer: p.id})
		p.rxHold = false
	}
	if m.promote != nil {
		m.endPromote(refusal(protocol.CodeDiskFailed, "the local disk of %s failed: %s", m.cfg.Name, why))
	}
}

const never = Time(1<<63 - 1)

func seconds(t Time) string { return time.Duration(t).String() }

// MetaSettled reports whether all of the state is on stable storage, or never
// will be because the disk failed.
func (m *Machine) MetaSettled() bool {
	return !m.metaBusy && (m.metaDone == m.metaWant || m.disk == protocol.Failed)
}

// InFlight returns how many writes and flushes are issued and not complete.
func (m *Machine) InFlight() int { return m.flights }
