package replica

import (
	"errors"
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// Discard says what is lost here when a sync from a peer overwrites this replica:
// writes that the source does not have. The owner keeps the blocks in an archive
// before they are overwritten, under the name Lost.
type Discard struct {
	Peer   string // the source
	Rule   Rule   // that made this replica the target
	Reason string // in words, for people

	Lost   protocol.Generation // of what is given up; the same when the sync is resumed
	Kept   protocol.Generation // of the source
	Parent protocol.Generation // at which the two parted; 0: not known

	// Diverged: writes that were acknowledged here are lost. Otherwise only such
	// that nobody can rely on: under way when a connection or this node was lost.
	Diverged bool
	// Full: no bitmap says which blocks differ.
	Full bool
	// Resumed: the sync goes on after an interruption; some of the blocks have been
	// overwritten, and are in the archive, already.
	Resumed bool

	// Known when DoArchive asks, and of the side that is given up.
	Volume  protocol.VolumeID
	History []protocol.Generation
	Disk    protocol.Disk // before the handshake
	Archive uint64        // the owner's answer: which archive keeps it
	Blocks  int64         // that will be overwritten at most
}

// ErrNotKept answers DoArchive when nothing is to be kept, by configuration: the sync
// goes on, and when it is resumed nobody is asked again.
var ErrNotKept = errors.New("nothing is archived")

// String returns the discard as a log has it.
func (d Discard) String() string {
	return fmt.Sprintf("%s is given up for %s of %s, rule %s", d.Lost, d.Kept, d.Peer, d.Rule)
}

// discards returns what this replica loses by being overwritten by p, nil: nothing.
// Half-overwritten data is no side of its own, unless it is what is left of one.
func (m *Machine) discards(p *peer, d Decision) *Discard {
	x := &Discard{Peer: p.name, Rule: d.Rule, Lost: m.lost, Kept: p.heard.Current, Full: d.Strategy == protocol.TargetFull, Resumed: m.lost != 0}
	me, peer := m.side(p.sent), p.side()
	x.Diverged = !x.Resumed && m.disk > protocol.Inconsistent && !descends(peer, me)
	if slot := me.slot(p.name).Bitmap; slot == peer.slot(m.cfg.Self).Bitmap {
		x.Parent = slot
	}
	switch {
	case x.Resumed:
		x.Reason = fmt.Sprintf("%s goes on overwriting what %s gave up", p.name, m.cfg.Self)
		return x
	case m.disk <= protocol.Inconsistent || m.current == 0:
		return nil
	case m.vote.superseded:
		x.Diverged = true
		x.Reason = fmt.Sprintf("%s had writes under way that were never acknowledged, when %s was promoted in its place", m.cfg.Self, p.name)
	case x.Diverged:
		x.Reason = fmt.Sprintf("%s wrote after it parted from %s, and its side is given up", m.cfg.Self, p.name)
	case p.dirty.Count() > 0:
		x.Reason = fmt.Sprintf("%s may hold writes that were under way when it parted from %s", m.cfg.Self, p.name)
	default:
		return nil
	}
	x.Lost, x.Disk = m.current, m.disk
	return x
}

// descends reports whether s has everything that was written in the generation
// that the other is at, as far as ids tell.
func descends(s, other Side) bool {
	g := other.Current
	return g == 0 || s.Current == g || s.slot(other.Name).Bitmap == g || s.hadGeneration(g) || slotAt(s, g, other.Name) != ""
}

// archive has the owner prepare to keep what p is about to overwrite; Archived goes
// on. The deadline of the step ends the wait.
func (m *Machine) archive(p *peer) {
	p.step = syncArchive
	p.rxHold = true
	p.deadline = m.now + m.cfg.HandshakeTime
	d := p.discards
	d.Volume, d.Blocks = m.volume, p.total
	d.History = append([]protocol.Generation(nil), m.history...)
	m.emit(Effect{Kind: DoArchive, Peer: p.id, Discard: d})
}

// Archived answers DoArchive: from now on every block that is overwritten here is
// kept first, or, with err (ErrNotKept apart), that is not possible. Then the peer is
// refused and nothing is overwritten. false: the sync does not begin, and d is not
// given up.
func (m *Machine) Archived(now Time, id PeerID, d *Discard, err error) bool {
	m.now = now
	p := m.all[id]
	if p.step != syncArchive || p.discards != d { // of a connection before
		return m.lost == d.Lost
	}
	switch {
	case !m.usable(): // it failed meanwhile
		m.dropPeer(p, refusal(protocol.CodeDiskFailed, "the disk of %s on %s has failed: %s", m.cfg.Name, m.cfg.Self, m.diskWhy))
		return m.lost == d.Lost
	case errors.Is(err, ErrNotKept):
	case err != nil:
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "what %s would lose of %s cannot be archived, so that nothing was overwritten: %v. "+
			"Make room there, or name another place with archive_dir, or give it up for good with archive = \"off\" in the configuration of %s; then run there: qrbd connect %s",
			m.cfg.Self, m.cfg.Name, err, m.cfg.Self, m.cfg.Name))
		return m.lost == d.Lost
	default:
		m.lost, m.vouched, m.noArchive = d.Lost, d.Archive, false
	}
	m.beginTarget(p)
	return true
}

// ArchiveFailed reports that a block which the peer is about to overwrite could not
// be kept. The sync stops here; nothing that is not in the archive was overwritten.
func (m *Machine) ArchiveFailed(now Time, id PeerID, err error) {
	m.now = now
	p := m.all[id]
	if !p.linked {
		return
	}
	m.standAlone(p, refusal(protocol.CodeNotAllowed, "%s stopped being overwritten: %v. Nothing is lost. Make room for the archive, then run on %s: qrbd connect %s",
		m.cfg.Self, err, m.cfg.Self, m.cfg.Name))
}

// Disown makes it durable that an archive does not count as kept up any more,
// whatever it says itself: it could neither keep what is about to be overwritten, nor
// be sealed. Nothing is overwritten before done(nil). An error: the metadata cannot
// be written either, and the disk has failed.
func (m *Machine) Disown(now Time, archive uint64, done func(error)) {
	m.now = now
	if m.vouched == archive && archive != 0 {
		m.vouched = 0
		m.persist()
	}
	m.whenSettled(func() {
		if m.metaDead {
			m.reply(done, refusal(protocol.CodeDiskFailed, "the disk of %s on %s has failed: %s", m.cfg.Name, m.cfg.Self, m.diskWhy))
			return
		}
		m.reply(done, nil)
	})
}

// Discarding returns what the sync from a peer, while this node is its target,
// takes from this replica; nil: nothing.
func (m *Machine) Discarding(id PeerID) *Discard {
	if p := m.all[id]; p.repl == protocol.SyncTarget {
		return p.discards
	}
	return nil
}

// discarded ends the loss: what was given up is overwritten to the last block, or
// (why) is a side of its own again.
func (m *Machine) discarded(p *peer, why string) {
	if m.lost == 0 {
		return
	}
	d := &Discard{Lost: m.lost, Reason: why}
	if p != nil && p.discards != nil {
		d = p.discards
	}
	m.lost = 0
	if m.noArchive { // what is overwritten from here on is not kept
		m.vouched = 0
	}
	m.persist()
	// Before that a crash has the sync resumed, with this archive.
	m.whenDurable(func() { m.emit(Effect{Kind: DoArchiveEnd, Discard: d}) })
}

// forsaken reports whether s, which has newer data than the other and only half of them,
// is given up for the other by an operator: whoever has all of them is lost.
func forsaken(s, other Side) bool {
	return s.Disk == protocol.Inconsistent && other.Disk > protocol.Inconsistent && s.Role != protocol.Primary &&
		s.has(protocol.HelloDiscard) && !other.has(protocol.HelloDiscard)
}
