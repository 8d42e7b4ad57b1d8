package replica

import (
	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// PeerSlot is what the metadata knows of a peer.
type PeerSlot struct {
	Name   string
	Bitmap protocol.Generation
	Disk   protocol.Disk
	Dirty  *bitmap.Set
	First  Time // of the writes that the peer may lack; 0: none is known
	Last   Time
	Older  bool // this node was primary when it was last connected to the peer
	Left   bool // it left in order: it is not missed for a quorum
	Fenced bool // it cannot take over before it has been in sync with this node again
	Told   bool // this node left in order, and the peer, which knew, has not confirmed its return
	Writer bool // the newest writes here are the peer's
}

// Stored is the machine's durable state.
type Stored struct {
	Volume  protocol.VolumeID
	Disk    protocol.Disk
	Primary bool
	Own     bool // Primary: it was this node itself, not one that it was synced from; else: the newest writes here are its own
	Clean   bool
	Shaken  bool
	Lacking bool // brought to its generation by a secondary that may lack what clients were promised in it
	Current protocol.Generation
	History []protocol.Generation
	Seq     uint64
	Lost    protocol.Generation // given up, and not overwritten to the end; 0: none
	Archive uint64              // that these metadata vouch for: unless it says itself that it is sealed it has all that was overwritten since; 0: none
	// NoArchive is the owner's: Archive could not be opened. Not stored.
	NoArchive bool
	// Restoring: what was given up is half-way back.
	Restoring bool
	Term      uint64              // of the primary that was followed last; 0: none, or no quorum
	Voted     protocol.Generation // its generation
	Overruled uint64              // an operator's word counts more than what was followed in terms up to here; 0: there is none
	Floor     uint64              // no primary is followed in a term up to here
	Peers     []PeerSlot          // same order as Config.Peers
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

type afterMeta struct {
	version uint64
	fn      func()
	anyway  bool // also when the metadata cannot be written
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
	if m.metaDone == m.metaWant || m.metaDead {
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
	if m.metaBusy || m.metaDead || m.metaDone == m.metaWant {
		return MetaBatch{}, false
	}
	m.metaBusy, m.metaAt = true, m.now
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
	if m.metaDead {
		return
	}
	if err != nil {
		for _, g := range b.Bitmaps {
			m.peers[g.Peer].dirty.MarkChanged(g.Page)
		}
		if len(b.Activity) > 0 {
			m.activity.Failed()
		}
		m.metaLost("metadata: " + err.Error())
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

// metaLost takes the metadata for unwritable, and the disk with them: nothing is
// promised of it without them.
func (m *Machine) metaLost(why string) {
	m.metaDead = true
	after := m.after
	m.after = nil    // never durable
	m.superTaken = 0 // nor is what was taken
	m.failDisk(why)
	for _, a := range after {
		if a.anyway {
			a.fn()
		}
	}
}

// MetaGone tells that the metadata of a failed disk are not there any more.
func (m *Machine) MetaGone() {
	if m.usable() {
		panic("replica: the metadata of a disk in use are gone")
	}
	m.metaLost("its metadata are gone")
}

func (m *Machine) stored() *Stored {
	if m.filling && m.disk == protocol.Inconsistent {
		return m.storedNew()
	}
	s := &Stored{Volume: m.volume, Disk: m.disk, Primary: m.role == protocol.Primary || m.crashed,
		Own: m.ownClaim(), Clean: m.cleanMark, Shaken: m.shaken, Lacking: m.lacking, Current: m.current, History: append([]protocol.Generation(nil), m.history...), Seq: m.seq, Lost: m.lost, Restoring: m.restoring, Archive: m.vouched,
		Term: m.vote.term, Voted: m.vote.voted, Overruled: m.vote.overruled, Floor: m.vote.floor}
	for _, p := range m.all {
		s.Peers = append(s.Peers, PeerSlot{Name: p.name, Bitmap: p.slot, Disk: p.disk, First: p.wroteFirst, Last: p.wroteLast, Older: m.wasPrimary(p), Left: p.departed, Told: p.owes, Fenced: p.fence.kept, Writer: m.writer == p.name})
		p.wroteKept = p.wroteLast
	}
	return s
}

// storedNew is the state of a replica that holds nothing: it was never in sync, and
// whatever it meets overwrites all of it.
func (m *Machine) storedNew() *Stored {
	s := &Stored{Disk: protocol.Inconsistent, Term: m.vote.term, Voted: m.vote.voted, Overruled: m.vote.overruled, Floor: m.vote.floor}
	for _, p := range m.all {
		s.Peers = append(s.Peers, PeerSlot{Name: p.name, Disk: p.disk, Left: p.departed, Told: p.owes, Fenced: p.fence.kept})
	}
	return s
}

// MetaSettled reports whether all of the state is on stable storage, or never
// will be because the disk failed.
func (m *Machine) MetaSettled() bool {
	return m.metaDead || !m.metaBusy && (m.metaDone == m.metaWant || m.disk == protocol.Failed)
}
