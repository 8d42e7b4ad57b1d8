package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// handoverOut is a planned switchover, at the old primary.
type handoverOut struct {
	id       uint64
	to       PeerID
	sent     bool
	deadline Time
	done     func(error)
}

// Switchover hands the role over to a peer: drain, flush, step down durably, then
// the peer becomes primary in the same generation. If it refuses, the role comes
// back; if it falls silent, nobody is primary and the text says so.
func (m *Machine) Switchover(now Time, id PeerID, done func(error)) {
	m.now = now
	p := m.all[id]
	if m.role == protocol.Primary {
		m.stopVerify(p, "switchover")
	}
	switch {
	case m.role != protocol.Primary:
		where := m.primary()
		if where == "" {
			m.reply(done, refusal(protocol.CodeNotAllowed, "%s is not primary on %s, nor on any node it is connected to", m.cfg.Name, m.cfg.Self))
			return
		}
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is primary on %s: run the switchover there", m.cfg.Name, where))
		return
	case m.metaDead && p.fence.noted:
		m.reply(done, refusal(protocol.CodeNotAllowed, "the metadata of %s on %s cannot be written any more, and may say that %s is fenced: replace the disk first (qrbd replace-disk %s)", m.cfg.Name, m.cfg.Self, p.name, m.cfg.Name))
		return
	case m.frozenWhy() != "":
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s is frozen on %s: %s", m.cfg.Name, m.cfg.Self, m.frozenWhy()))
		return
	case !m.mayServe():
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s has no quorum on %s: nothing can be handed over; %s", m.cfg.Name, m.cfg.Self, m.missing()))
		return
	case p.repl != protocol.Established || p.disk != protocol.UpToDate || !p.live:
		m.reply(done, refusal(protocol.CodeNotAllowed, "%s cannot take over: replication is %s, its disk is %s. Wait for it: qrbd wait %s --for up-to-date",
			p.name, p.repl, p.disk, m.cfg.Name))
		return
	}
	for _, q := range m.peers {
		if q.live && q.unsettled() {
			m.reply(done, refusal(protocol.CodeBusy, "%s lacks %d blocks of %s, which the other nodes do not know: it is brought up to date now, wait for it (qrbd wait %s --for up-to-date)",
				q.name, q.dirty.Count(), m.cfg.Self, m.cfg.Name))
			return
		}
	}
	if m.filling {
		m.reply(done, refusal(protocol.CodeBusy, "the new disk of %s is being filled: wait for it (qrbd wait %s --for up-to-date), or demote %s", m.cfg.Self, m.cfg.Name, m.cfg.Self))
		return
	}
	if err := m.mayHandOver(p); err != nil {
		m.reply(done, err)
		return
	}
	m.dropNotes(p)
	m.startDrain(done, func(err error) {
		if err == nil && !p.live {
			err = refusal(protocol.CodeNotAllowed, "%s was lost during the switchover; %s stays primary", p.name, m.cfg.Self)
		}
		if err == nil {
			err = m.mayHandOver(p) // one may have been lost meanwhile
		}
		if err != nil {
			m.undrain()
			m.reply(done, err)
			return
		}
		m.unfence(p, "the role is handed over to it") // durable with the role
		m.handover = &handoverOut{id: m.cfg.Rand(), to: id, deadline: m.now + 2*m.cfg.AskTime, done: done}
		m.stepDown("switchover to "+p.name, func() {
			if m.handover == nil {
				return
			}
			m.handover.sent = true
			m.emit(Effect{Kind: DoSend, Peer: id, Msg: &protocol.Handover{ID: m.handover.id, Current: m.current, Seq: m.seq}})
		})
	})
}

func (m *Machine) onHandover(p *peer, h *protocol.Handover) {
	epoch := p.epoch
	answer := func(err error) {
		if p.epoch != epoch || !p.linked {
			return
		}
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.HandoverAnswer{ID: h.ID, Yes: err == nil, Text: text(err)}})
	}
	var err error
	switch {
	case m.role == protocol.Primary || m.primary() != "" || m.promote != nil || m.drain != nil || m.stopping || h.Seq > seqMax:
		err = refusal(protocol.CodeBusy, "%s takes part in another change of the role", m.cfg.Self)
	case m.quorumOn() && (m.hasLeft() || !m.vote.quorate):
		err = refusal(protocol.CodeNotAllowed, "%s has no quorum; %s", m.cfg.Self, m.missing())
	case p.repl != protocol.Established || m.disk != protocol.UpToDate || m.current != h.Current:
		err = refusal(protocol.CodeNotAllowed, "%s is %s, at generation %s", m.cfg.Self, m.disk, m.current)
	}
	if err != nil {
		answer(err)
		return
	}
	m.seq = max(m.seq, h.Seq)
	m.frozen++
	m.rising = true
	m.setPeerRole(p, protocol.Secondary)
	m.beginTerm()
	m.setRole(protocol.Primary, "switchover from "+p.name)
	m.endReign(p)
	m.forgetJoined()
	m.whenDurable(func() {
		if !m.rising {
			answer(refusal(protocol.CodeDiskFailed, "the disk of %s failed", m.cfg.Self))
			return
		}
		m.frozen--
		m.rising = false
		answer(nil)
		m.becamePrimary()
	})
}

func (m *Machine) onHandoverAnswer(p *peer, a *protocol.HandoverAnswer) {
	h := m.handover
	if h == nil || h.id != a.ID || h.to != p.id {
		return
	}
	m.handover = nil
	if a.Yes {
		m.reply(h.done, nil)
		return
	}
	m.frozen++
	m.setRole(protocol.Primary, p.name+" refused the switchover")
	m.rising = m.usable()
	m.whenSettled(func() {
		if m.role != protocol.Primary {
			m.reply(h.done, refusal(protocol.CodeDiskFailed, "%s refuses the switchover: %s. %s cannot take the role back: its disk failed", p.name, a.Text, m.cfg.Self))
			return
		}
		m.frozen--
		m.rising = false
		m.becamePrimary()
		m.reply(h.done, refusal(protocol.CodeNotAllowed, "%s refuses the switchover: %s. %s is primary again", p.name, a.Text, m.cfg.Self))
	})
}

func (m *Machine) handoverLost(p *peer) {
	if h := m.handover; h != nil && h.to == p.id {
		m.handover = nil
		m.reply(h.done, refusal(protocol.CodeTimeout, "%s fell silent during the switchover: it may be primary now. Look there with qrbd status; if it is not, promote one node by hand", p.name))
	}
}
