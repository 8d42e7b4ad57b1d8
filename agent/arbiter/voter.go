package arbiter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Record is what is kept of a volume's vote.
type Record struct {
	ID     uint64 `json:"id"`     // of this record: random, made with it; never 0 or 1
	Volume string `json:"volume"` // identity of the volume, in hex; nobody's as long as it has no data
	Name   string `json:"name"`
	Nodes  string `json:"nodes"` // those with data, for people

	Holder string              `json:"holder"` // node that is followed, or has leave to be promoted; "": none
	Term   uint64              `json:"term"`   // of the primary that was followed last
	Voted  protocol.Generation `json:"voted"`  // its generation
	Floor  uint64              `json:"floor"`  // no primary is followed in a term up to here (a forced promotion, protocol.ForcedOver)
	Beat   uint64              `json:"beat"`   // counts replacements
}

// Store keeps a Record. Each method ends with ctx; after an error it is not known whether
// anything was done.
type Store interface {
	// Load returns the record and its revision, 0 when there is none. It sees what was done
	// before it was called, by anybody.
	Load(ctx context.Context) (Record, int64, error)
	// Swap replaces the record of a revision, 0: makes the first one, and returns the new
	// revision; ok false: another one is there.
	Swap(ctx context.Context, revision int64, r Record) (next int64, ok bool, err error)
}

// nobody is the identity of a volume that has no data yet.
var nobody = protocol.VolumeID{}.String()

// ErrForeign: the record is not this volume's, or not known to be the one that the other
// nodes use.
var ErrForeign = errors.New("the vote is another one")

// Options say whose a Voter is.
type Options struct {
	Store  Store
	Self   string
	Volume string // name
	Nodes  string // those with data
	// Identity returns the volume's, as of now, in hex.
	Identity func() string
	Lease    time.Duration
	Now      func() time.Duration // a clock that never goes back
	Random   func() uint64        // never 0 or 1
	// Trusted reports whether a record is the one that the volume uses, as another node has
	// confirmed or this one knows.
	Trusted func(id uint64) error
	// Made is told that this node has made the record; an error unmakes nothing, but no vote
	// is given on it.
	Made func(id uint64) error
	// MayMake reports whether a missing record may be made without an operator's word: every
	// other node follows this primary, and finds none either.
	MayMake func() bool
}

// Voter gives the vote to one node, or not. Not safe for concurrent use.
type Voter struct {
	o   Options
	id  string // the volume's identity, from its hello
	rec Record
	rev int64         // 0: there is none, or it is not known
	at  time.Duration // when rev was first seen

	role  protocol.Role
	rules string
	asks  *protocol.Claim      // what the node's data descend from, said before it asks to be promoted
	waits *protocol.PromoteAsk // until the holder's lease is over
	began int64                // the revision at which it began to wait
}

// NewVoter returns a voter for a new link.
func NewVoter(o Options) *Voter { return &Voter{o: o, role: protocol.Secondary} }

// load looks at the record.
func (v *Voter) load(ctx context.Context) error {
	rec, rev, err := v.o.Store.Load(ctx)
	if err != nil {
		return err
	}
	v.took(rec, rev)
	return v.check()
}

// took notes a record; a new revision is seen now, after it was read: never too early.
func (v *Voter) took(rec Record, rev int64) {
	if rev != v.rev || rev == 0 {
		v.rec, v.rev, v.at = rec, rev, v.o.Now()
	}
}

// check refuses a record that is not the volume's.
func (v *Voter) check() error {
	switch {
	case v.rev == 0 || v.id == "":
		return nil
	case v.rec.Volume != v.id && v.rec.Volume != nobody && v.id == nobody:
		return fmt.Errorf("%w: the key is that of a volume %s (on %s, identity %s), and this replica has no data yet. It is looked at again when it has; if this is a new volume, give it another prefix in [volume.failover.etcd]",
			ErrForeign, v.rec.Name, v.rec.Nodes, v.rec.Volume)
	case v.rec.Volume != v.id && v.rec.Volume != nobody:
		return fmt.Errorf("%w: the key is that of a volume %s of another cluster (on %s, identity %s); this one has identity %s. Give one of the two another prefix in [volume.failover.etcd]",
			ErrForeign, v.rec.Name, v.rec.Nodes, v.rec.Volume, v.id)
	}
	return v.o.Trusted(v.rec.ID)
}

// swap replaces the record; false: somebody else has.
func (v *Voter) swap(ctx context.Context, next Record) (bool, error) {
	next.Beat++
	rev, ok, err := v.o.Store.Swap(ctx, v.rev, next)
	if err != nil {
		v.rev = 0 // not known any more
		return false, err
	}
	if !ok {
		return false, v.load(ctx)
	}
	v.rec, v.rev, v.at = next, rev, v.o.Now()
	return true, nil
}

// promised reports whether another node has the vote.
func (v *Voter) promised() bool {
	return v.rec.Holder != "" && v.rec.Holder != v.o.Self && v.o.Now()-v.at < v.o.Lease
}

// Receive handles what the node says and returns what to answer. An error ends the link:
// nothing is known of the vote.
func (v *Voter) Receive(ctx context.Context, msg protocol.Message) ([]protocol.Message, error) {
	switch m := msg.(type) {
	case *protocol.Ballot:
		return v.onBallot(m)
	case *protocol.Hello:
		return v.onHello(ctx, m)
	case *protocol.Claim:
		return v.onClaim(ctx, m)
	case *protocol.State:
		v.role = m.Role
		return nil, v.release(ctx)
	case *protocol.PromoteAsk:
		c := *m
		return v.onPromoteAsk(ctx, &c)
	case *protocol.Leave: // it counts for nobody here; its return is confirmed by Readmit
		return nil, v.release(ctx)
	case *protocol.Bye, *protocol.Refuse:
		return nil, fmt.Errorf("the volume ends the link: %+v", msg)
	}
	return nil, nil
}

func (v *Voter) onBallot(b *protocol.Ballot) ([]protocol.Message, error) {
	v.rules = b.Rules
	if b.Left {
		return []protocol.Message{&protocol.Readmit{}}, nil
	}
	return nil, nil
}

// onHello answers a handshake as a witness does.
func (v *Voter) onHello(ctx context.Context, h *protocol.Hello) ([]protocol.Message, error) {
	v.id, v.role = h.Volume.String(), h.Role
	if err := v.load(ctx); err != nil {
		return nil, err
	}
	if err := v.release(ctx); err != nil {
		return nil, err
	}
	return []protocol.Message{v.ballot(0), &protocol.Hello{Volume: h.Volume, Size: h.Size, Block: 1, Attempt: v.o.Random(), Instance: v.o.Random(),
		Role: protocol.Secondary, Disk: protocol.Diskless, Mode: protocol.ModeC}}, nil
}

// ballot says what was voted for. token: of a leave; the term that begins with it is higher.
func (v *Voter) ballot(token int64) *protocol.Ballot {
	return &protocol.Ballot{Rules: v.rules, Term: max(v.rec.Term, v.rec.Floor+protocol.TermOf(uint64(token))), Voted: v.rec.Voted, Floor: v.rec.Floor, Witness: true}
}

// release gives the vote back when this node is not primary.
func (v *Voter) release(ctx context.Context) error {
	if v.role == protocol.Primary || v.rev == 0 || v.rec.Holder != v.o.Self {
		return nil
	}
	next := v.rec
	next.Holder = ""
	_, err := v.swap(ctx, next) // if another was quicker, it has it
	return err
}

// judge says whether a primary may be followed.
func (v *Voter) judge(c *protocol.Claim) protocol.NoVote {
	switch {
	case v.role != protocol.Primary || v.rev == 0:
		return protocol.NoFollow
	case c.Term != v.rec.Term && c.Misses(v.rec.Term, v.rec.Voted):
		return protocol.NoBehind
	case c.Term < v.rec.Term || c.Term <= v.rec.Floor:
		return protocol.NoTerm
	case c.Term != v.rec.Term && v.promised():
		return protocol.NoPromise
	}
	return protocol.VoteYes
}

func (v *Voter) onClaim(ctx context.Context, c *protocol.Claim) ([]protocol.Message, error) {
	if c.Stamp == 0 {
		v.asks = &protocol.Claim{Current: c.Current, Overruled: c.Overruled, History: slices.Clone(c.History)}
		return nil, nil
	}
	if v.rev == 0 || v.rec.Holder != v.o.Self {
		if err := v.load(ctx); err != nil {
			return nil, err
		}
	}
	if v.rev == 0 && v.role == protocol.Primary && v.o.MayMake() {
		if err := v.make(ctx, Record{Holder: v.o.Self, Term: c.Term, Voted: c.Current}); err != nil {
			return nil, err
		}
	}
	a := &protocol.ClaimAnswer{Stamp: c.Stamp, Current: c.Current, No: v.judge(c), Term: v.rec.Term}
	if a.No != protocol.VoteYes {
		return []protocol.Message{a}, nil
	}
	next := v.rec
	next.Holder, next.Term, next.Voted = v.o.Self, c.Term, c.Current
	if next.Volume == nobody { // its first primary has given it one
		next.Volume = v.o.Identity()
		v.id = next.Volume
	}
	ok, err := v.swap(ctx, next)
	if err != nil {
		return nil, err
	}
	if !ok {
		if a.No = v.judge(c); a.No == protocol.VoteYes { // the next claim may have it
			a.No = protocol.NoFollow
		}
	}
	a.Term = v.rec.Term
	return []protocol.Message{a}, nil
}

// make makes the first record.
func (v *Voter) make(ctx context.Context, r Record) error {
	r.ID, r.Volume, r.Name, r.Nodes = v.o.Random(), v.id, v.o.Volume, v.o.Nodes
	if err := v.o.Made(r.ID); err != nil { // before it is there: a node never distrusts its own
		return err
	}
	_, err := v.swap(ctx, r)
	return err
}

func (v *Voter) onPromoteAsk(ctx context.Context, a *protocol.PromoteAsk) ([]protocol.Message, error) {
	if err := v.load(ctx); err != nil {
		return nil, err
	}
	if v.rev == 0 && a.Force && v.asks != nil {
		if err := v.make(ctx, Record{Term: 1, Voted: v.asks.Current}); err != nil {
			return nil, err
		}
	}
	v.waits, v.began = nil, v.rev
	return v.decide(ctx, a)
}

// decide answers who asks to be promoted, or has it wait.
func (v *Voter) decide(ctx context.Context, a *protocol.PromoteAsk) ([]protocol.Message, error) {
	no := func(code protocol.Code, format string, args ...any) ([]protocol.Message, error) {
		return []protocol.Message{&protocol.PromoteAnswer{ID: a.ID, Code: code, Text: fmt.Sprintf(format, args...)}}, nil
	}
	switch {
	case v.rev == 0:
		return no(protocol.CodeNotAllowed, "there is no vote of %s in etcd: it was made anew, or is not the one that the volume has used. Both nodes connected make it by themselves; "+
			"if the other one is lost for good: qrbd promote %s --force", v.o.Volume, v.o.Volume)
	case v.asks.Misses(v.rec.Term, v.rec.Voted) && !a.Force:
		return no(protocol.CodeNotAllowed, "a primary of %s with newer data, generation %s, has had the vote: promote a node that has it", v.o.Volume, v.rec.Voted)
	case v.promised() && v.rev != v.began:
		return no(protocol.CodeTwoPrimaries, "%s has the vote, and has just renewed it", v.rec.Holder)
	case v.promised():
		v.waits = a
		return nil, nil
	}
	next := v.rec
	next.Holder = v.o.Self
	if !v.asks.Covers(next.Voted) { // the operator's word
		next.Voted = 0
	}
	if a.Force && v.asks != nil {
		next.Floor = max(next.Floor, v.asks.Overruled)
	}
	ok, err := v.swap(ctx, next)
	if err != nil {
		return nil, err
	}
	if !ok {
		return no(protocol.CodeBusy, "%s was quicker", v.rec.Holder)
	}
	return []protocol.Message{v.ballot(v.rev), &protocol.PromoteAnswer{ID: a.ID, Yes: true}}, nil
}

// Tick looks at the record again: whoever waits for the vote must know since when nobody has
// renewed it. It is called several times in a lease.
func (v *Voter) Tick(ctx context.Context) ([]protocol.Message, error) {
	if v.rev != 0 && v.rec.Holder == v.o.Self {
		return nil, nil // its claims look at it
	}
	if err := v.load(ctx); err != nil {
		return nil, err
	}
	if a := v.waits; a != nil {
		v.waits = nil
		return v.decide(ctx, a)
	}
	return nil, nil
}

// Seen returns the record that was seen last: 0 unknown, 1 there is none, else its ID.
func (v *Voter) Seen() uint64 {
	if v.rev == 0 {
		return 1
	}
	return v.rec.ID
}
