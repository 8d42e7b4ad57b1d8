package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// Invalidate has this replica overwritten in full by a peer.
func (m *Machine) Invalidate(now Time, done func(error)) {
	m.now = now
	if m.role == protocol.Primary {
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is primary on %s: demote it before its data is given up", m.cfg.Name, m.cfg.Self))
		return
	}
	var from *peer
	for _, p := range m.peers {
		if p.linked && p.settled && p.disk == protocol.UpToDate && (from == nil || p.role == protocol.Primary) {
			from = p
		}
	}
	if from == nil {
		m.reply(done, refusal(protocol.CodeNotAllowed, "no connected peer of %s is up-to-date: there is nothing to copy from", m.cfg.Name))
		return
	}
	from.overwrite = true
	m.restart(from, "the operator has this replica overwritten")
	m.reply(done, nil)
}

// Connect lifts a standalone connection. discard: this side's data is given up if
// the two have diverged.
func (m *Machine) Connect(now Time, id PeerID, discard bool) error {
	m.now = now
	p := m.all[id]
	if discard && m.role == protocol.Primary {
		return refusal(protocol.CodeNotAllowed, "%s is primary on %s: demote it before its data is given up (qrbd demote %s)", m.cfg.Name, m.cfg.Self, m.cfg.Name)
	}
	if m.putting { // what a sync brings would be written over
		return refusal(protocol.CodeBusy, "a restore of %s on %s is under way: wait for its end, or end it there first (interrupt qrbd archive restore)", m.cfg.Name, m.cfg.Self)
	}
	if m.restoring {
		if !discard {
			return m.unfinished()
		}
		m.restoring = false // what was given up stays so
		m.persist()
	}
	if p.linked && p.settled {
		if discard {
			return refusal(protocol.CodeNotAllowed, "%s is connected to %s and they have not diverged: nothing to discard", m.cfg.Self, p.name)
		}
		return nil
	}
	p.discard = discard
	p.alone = aloneNo
	p.retryAt, p.retryWait = now, 0
	if p.linked {
		m.restart(p, "the operator connects")
	}
	m.setConn(p, protocol.Connecting, "")
	m.tryConnect(p)
	return nil
}

func (m *Machine) tryConnect(p *peer) {
	m.scheduleRetry(p)
	m.emit(Effect{Kind: DoConnect, Peer: p.id})
}

// Disconnect ends a connection until Connect. A primary that goes on without the
// peer tells it that it is outdated from now on.
func (m *Machine) Disconnect(now Time, id PeerID) {
	m.now = now
	p := m.all[id]
	p.alone = aloneHere
	m.setConn(p, protocol.Standalone, "disconnected by the operator")
	if p.linked {
		m.leaveOne(p, func() {
			m.emit(Effect{Kind: DoSend, Peer: id, Msg: &protocol.Bye{Code: protocol.CodeOperator, Outdate: m.role == protocol.Primary && p.settled && p.live,
				Text: fmt.Sprintf("disconnected by the operator on %s: run qrbd connect %s there", m.cfg.Self, m.cfg.Name)}})
			m.drop(p, nil)
		})
	}
}

// Unreachable notes why an attempt to connect failed.
func (m *Machine) Unreachable(now Time, id PeerID, why string) {
	m.now = now
	p := m.all[id]
	if !p.linked && p.alone == aloneNo {
		p.reason = why
	}
}

func (m *Machine) scheduleRetry(p *peer) {
	if p.alone != aloneNo {
		return
	}
	p.retryAt = m.now + p.retryWait
	p.retryWait = min(max(2*p.retryWait, m.cfg.RetryMin), m.cfg.RetryMax)
}

// Lost reports that the connection to the peer is gone. reason is for people; a
// *Refusal makes the connection stand alone until somebody acts.
func (m *Machine) Lost(now Time, id PeerID, cause error) {
	m.now = now
	p := m.all[id]
	if !p.linked {
		return
	}
	wasPrimary := p.settled && p.role == protocol.Primary
	settled := p.settled
	p.older = m.wasPrimary(p)
	p.linked, p.settled, p.bare, p.early = false, false, false, nil
	p.epoch++
	m.endSync(p)
	m.setRepl(p, protocol.ReplOff, text(cause))
	if p.alone == aloneNo {
		m.setConn(p, protocol.Connecting, text(cause))
	}
	if settled {
		p.retryWait = 0
	}
	m.scheduleRetry(p)
	m.forget(p)
	m.mintConfirmed(p)
	if wasPrimary {
		m.setPeerRole(p, protocol.RoleUnknown)
		if m.role == protocol.Secondary && m.disk == protocol.UpToDate {
			m.setDisk(protocol.Consistent, "lost the primary "+p.name+": it may have gone on")
		}
		m.primaryLost(p)
	}
	m.setPeerRole(p, protocol.RoleUnknown)
	if p.disk > protocol.Failed {
		m.setPeerDisk(p, protocol.DiskUnknown) // a failed one stays failed
	}
	m.promoteLost(p)
	m.handoverLost(p)
	p.ballot, p.asks, p.waits, p.votedTerm = nil, nil, nil, 0
	m.votersChanged()
	m.fencingLost(p, cause)
}

// restart ends the connection to have a new handshake soon.
func (m *Machine) restart(p *peer, why string) {
	p.retryWait = 0
	m.dropPeer(p, refusal(protocol.CodeRestart, "%s", why))
}

// drop ends a connection from here; the peer will try again.
func (m *Machine) drop(p *peer, cause error) {
	if !p.linked {
		return
	}
	m.emit(Effect{Kind: DoDrop, Peer: p.id, Err: cause})
	m.Lost(m.now, p.id, cause)
}

// dropPeer ends a connection because of what the peer did, telling it why.
func (m *Machine) dropPeer(p *peer, cause error) {
	if r, ok := cause.(*Refusal); ok && p.linked {
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Bye{Code: r.Code, Text: r.Text}})
	}
	m.drop(p, cause)
}

// standAlone refuses the peer: neither side tries again until an operator acts or
// one of them starts anew.
func (m *Machine) standAlone(p *peer, cause *Refusal) {
	m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Refuse{Code: cause.Code, Text: cause.Text}})
	p.alone = aloneRefused
	m.setConn(p, protocol.Standalone, cause.Text)
	m.drop(p, cause)
}

func (m *Machine) setConn(p *peer, c protocol.Conn, reason string) {
	if p.conn != c {
		m.event(p.name, "connection", p.conn.String(), c.String(), reason)
	}
	p.conn, p.reason = c, reason
}

func (m *Machine) setRepl(p *peer, r protocol.Repl, reason string) {
	if p.repl != r {
		m.event(p.name, "replication", p.repl.String(), r.String(), reason)
	}
	p.repl = r
}

func (m *Machine) setPeerRole(p *peer, r protocol.Role) {
	if p.role != r {
		m.event(p.name, "peer-role", p.role.String(), r.String(), "")
	}
	p.role = r
}

func (m *Machine) setPeerDisk(p *peer, d protocol.Disk) {
	if p.disk != d {
		m.event(p.name, "peer-disk", p.disk.String(), d.String(), "")
	}
	p.disk = d
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
