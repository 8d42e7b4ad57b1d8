package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// GivenUp is a side that was given up: what its archive says of it.
type GivenUp struct {
	Lost    protocol.Generation // its generation
	Kept    protocol.Generation // the winner's at that time
	History []protocol.Generation
}

// Restore prepares to put a side that was given up back over this replica. Before
// done(nil) the replica is durably inconsistent, every block counts as out of sync
// toward every peer, and no peer can connect, also after a crash, until Restored or
// the operator gives the half-restored data up, which he cannot before Restored or a
// restart. REQUIRES of the owner: the archive
// of the side has everything that was overwritten since.
func (m *Machine) Restore(now Time, g GivenUp, done func(error)) {
	m.now = now
	name := m.cfg.Name
	var err error
	switch {
	case m.stopping:
		err = refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self)
	case m.role == protocol.Primary:
		err = refusal(protocol.CodeNotAllowed, "%s is primary on %s: demote it first (qrbd demote %s)", name, m.cfg.Self, name)
	case m.putting:
		err = refusal(protocol.CodeBusy, "a restore of %s is under way on %s", name, m.cfg.Self)
	case m.promote != nil || m.drain != nil || m.handover != nil || m.grantHeld():
		err = refusal(protocol.CodeBusy, "a change of the role of %s is under way: try again in a moment", name)
	case !m.usable():
		err = m.failedDisk()
	case m.lost != 0 && m.lost != g.Lost:
		err = refusal(protocol.CodeNotAllowed, "%s is being overwritten after another side, generation %s, was given up: that is the one to restore", name, m.lost)
	}
	for _, p := range m.peers {
		if err == nil && (p.linked || p.alone == aloneNo) {
			err = refusal(protocol.CodeNotAllowed, "%s is %s to %s: run qrbd disconnect %s first", name, p.conn, p.name, name)
		}
	}
	if err != nil {
		m.reply(done, err)
		return
	}
	m.restoring, m.putting, m.lost = true, true, g.Lost
	for _, p := range m.peers {
		m.standStill(p)
		p.dirty.SetAll()
	}
	m.forgetWords()
	m.setDisk(protocol.Inconsistent, "a side that was given up is being restored")
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
	m.whenSettled(func() {
		if !m.usable() {
			m.putting = false
		}
		m.reply(done, m.failedDisk())
	})
}

// failedDisk is the refusal of what needs the local disk; nil: it is in use.
func (m *Machine) failedDisk() error {
	if m.usable() {
		return nil
	}
	return refusal(protocol.CodeDiskFailed, "the disk of %s on %s is %s (%s)", m.cfg.Name, m.cfg.Self, m.disk, m.diskWhy)
}

// standStill keeps a peer away until the operator connects.
func (m *Machine) standStill(p *peer) {
	p.alone = aloneHere
	m.setConn(p, protocol.Standalone, fmt.Sprintf("a restore is under way on %s", m.cfg.Self))
}

// Restored ends a restore: the replica is the side that was given up again, durably
// on its store. It gets a generation of its own, whose parents are that side's: any
// other replica is recognised as diverged, and none as a descendant or an ancestor of
// this one. err: the store failed, or was full; then the restore has not ended.
// REQUIRES Restore.
func (m *Machine) Restored(now Time, g GivenUp, err error, fatal bool, done func(error)) {
	m.now = now
	m.putting = false
	if err != nil {
		if fatal {
			m.failDisk("restore: " + err.Error())
		}
		m.reply(done, err)
		return
	}
	if !m.usable() {
		m.reply(done, m.failedDisk())
		return
	}
	old := m.current
	m.current = protocol.Generation(m.cfg.Rand())
	m.history = m.history[:0]
	for i := len(g.History) - 1; i >= 0; i-- {
		// Whoever is at an id of this history is overwritten without asking: the
		// winner must not be.
		if h := g.History[i]; h != g.Kept && h != old {
			m.remember(h)
		}
	}
	// Two replicas of one generation can each have lost to the other's copy (a repair,
	// a crash): then the winner is at the lost side's own id, and was no less.
	parent := g.Lost
	if g.Lost == g.Kept {
		parent = 0
	} else {
		m.remember(g.Lost)
	}
	for _, p := range m.peers {
		p.slot = parent
		p.heard, p.reconnect = nil, false
		p.reason = "restored: connect when the other side has been told to give its data up"
	}
	m.event("", "generation", old.String(), m.current.String(), "restored what was given up")
	m.restoring, m.lost, m.crashed, m.lacking, m.writer = false, 0, false, false, ""
	m.setDisk(protocol.Consistent, "restored what was given up")
	m.idSerial++
	m.wantBitmaps = true
	m.persist()
	m.whenSettled(func() { m.reply(done, m.failedDisk()) })
}

// unfinished is the refusal while a restore has not ended.
func (m *Machine) unfinished() *Refusal {
	return refusal(protocol.CodeNotAllowed, "a restore of %s on %s has not ended: run qrbd archive restore %s again, or give the half-restored data up with qrbd connect %s --discard-my-data",
		m.cfg.Name, m.cfg.Self, m.cfg.Name, m.cfg.Name)
}

// Restoring reports whether a restore has begun and not ended, in this life of the
// node or one before.
func (m *Machine) Restoring() bool { return m.restoring }

// GivingUp returns the generation that was given up and is not overwritten to the
// end; zero: none.
func (m *Machine) GivingUp() protocol.Generation { return m.lost }
