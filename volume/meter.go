package volume

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// OpKind is what a request does, as it is counted.
type OpKind uint8

// The kinds.
const (
	OpKindRead OpKind = iota
	OpKindWrite
	OpKindZero
	OpKindTrim
	OpKindFlush
	opKinds
)

// String returns the kind's name.
func (k OpKind) String() string {
	switch k {
	case OpKindRead:
		return "read"
	case OpKindWrite:
		return "write"
	case OpKindZero:
		return "zero"
	case OpKindTrim:
		return "trim"
	case OpKindFlush:
		return "flush"
	case opKinds:
	}
	panic("volume: unknown kind of operation")
}

// Meter counts what a volume does. It outlives the volume when its owner opens it
// again, so that counters do not fall. Counting neither allocates nor locks. Safe
// for concurrent use.
//
// The stages of a request begin when it is issued, but for whole, and run side by
// side:
//
//	submitted ─ admitted, issued ──► local: the local store has done it
//	│                        ├─────► wire: its frame is in the transport's hands (per peer)
//	│                        └─────► remote: the peer has applied it; a flush, or FUA: made
//	│                                it durable (per peer; a round trip is in it)
//	└──────────────────────────────► whole: the client is answered
//
// On the peer, apply is how long its store took for what the primary sent.
type Meter struct {
	began    [opKinds]atomic.Uint64 // requests of clients
	whole    [opKinds]Latency
	failed   [opKinds]atomic.Uint64
	bytes    [opKinds]atomic.Uint64 // of those that succeeded
	local    [opKinds]Latency
	localBad [opKinds]atomic.Uint64 // the store returned an error
	commits  Latency                // of metadata

	mu    sync.Mutex
	peers map[string]*PeerMeter // guarded by mu
}

// PeerMeter counts what goes to and comes from one peer.
type PeerMeter struct {
	wire, remote, apply [opKinds]Latency
	sent, received      atomic.Uint64 // bytes on the volume's streams
	applied             atomic.Uint64 // bytes of writes that the peer sent
	// Bytes by which compressed payloads were smaller: sent and received would be so many more.
	sentSaved, receivedSaved atomic.Uint64
}

// NewMeter returns a meter that has counted nothing.
func NewMeter() *Meter { return &Meter{peers: map[string]*PeerMeter{}} }

// peer returns the meter of a peer, made when it is asked for first.
func (m *Meter) peer(name string) *PeerMeter {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[name]
	if p == nil {
		p = &PeerMeter{}
		m.peers[name] = p
	}
	return p
}

// fill puts what was counted into a peer's status.
func (p *PeerMeter) fill(s *PeerStatus) {
	s.Sent, s.SentSaved = p.sent.Load(), p.sentSaved.Load()
	s.Received, s.ReceivedSaved = p.received.Load(), p.receivedSaved.Load()
}

// done counts a client's request as answered.
func (m *Meter) done(k OpKind, n int64, took time.Duration, err error) {
	m.whole[k].Add(took)
	switch {
	case err != nil:
		m.failed[k].Add(1)
	case k != OpKindFlush:
		m.bytes[k].Add(uint64(n))
	}
}

func kindOf(o replica.Op) OpKind {
	switch o {
	case replica.Read:
		return OpKindRead
	case replica.Write, replica.Pull:
		return OpKindWrite
	case replica.Zero:
		return OpKindZero
	case replica.Trim:
		return OpKindTrim
	case replica.Flush:
		return OpKindFlush
	}
	panic("volume: unknown operation " + o.String())
}

func kindOfData(o protocol.DataOp) OpKind {
	switch o {
	case protocol.DataZero:
		return OpKindZero
	case protocol.DataTrim:
		return OpKindTrim
	case protocol.DataFlush:
		return OpKindFlush
	case protocol.DataWrite:
	}
	return OpKindWrite
}

// IO is what a Meter has counted since it was made.
type IO struct {
	Ops     map[string]OpIO   `json:"ops"` // by kind: read, write, zero, trim, flush
	Commits Histogram         `json:"metadata_commits"`
	Peers   map[string]PeerIO `json:"peers"`
}

// OpIO is one kind of operation of an IO.
type OpIO struct {
	Begun      uint64    `json:"begun"`
	Failed     uint64    `json:"failed"`
	Bytes      uint64    `json:"bytes"`
	Whole      Histogram `json:"whole"`
	Local      Histogram `json:"local"`
	DiskErrors uint64    `json:"disk_errors"`
}

// PeerIO is one peer of an IO.
type PeerIO struct {
	Sent     uint64 `json:"sent"`     // bytes on the volume's streams
	Received uint64 `json:"received"` // bytes
	Applied  uint64 `json:"applied"`  // bytes of the peer's writes that were applied here
	// Bytes that compression took off Sent and Received.
	SentSaved     uint64 `json:"sent_saved"`
	ReceivedSaved uint64 `json:"received_saved"`

	Wire   map[string]Histogram `json:"wire"`
	Remote map[string]Histogram `json:"remote"`
	Apply  map[string]Histogram `json:"apply"`
}

// Snapshot returns what was counted so far.
func (m *Meter) Snapshot() IO {
	io := IO{Ops: map[string]OpIO{}, Peers: map[string]PeerIO{}, Commits: m.commits.Snapshot()}
	for k := range opKinds {
		o := OpIO{Whole: m.whole[k].Snapshot(), Local: m.local[k].Snapshot(), Failed: m.failed[k].Load(),
			Bytes: m.bytes[k].Load(), DiskErrors: m.localBad[k].Load()}
		o.Begun = max(m.began[k].Load(), o.Whole.Count) // read last: what is answered has begun
		io.Ops[k.String()] = o
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.peers {
		q := PeerIO{Sent: p.sent.Load(), Received: p.received.Load(), Applied: p.applied.Load(),
			SentSaved: p.sentSaved.Load(), ReceivedSaved: p.receivedSaved.Load(),
			Wire: map[string]Histogram{}, Remote: map[string]Histogram{}, Apply: map[string]Histogram{}}
		for k := OpKindWrite; k < opKinds; k++ {
			q.Wire[k.String()] = p.wire[k].Snapshot()
			q.Remote[k.String()] = p.remote[k].Snapshot()
			q.Apply[k.String()] = p.apply[k].Snapshot()
		}
		io.Peers[name] = q
	}
	return io
}
