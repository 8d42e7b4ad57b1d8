package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// Receive takes a message other than Data and Ack from the peer's write stream.
// The message is the machine's until Receive returns.
func (m *Machine) Receive(now Time, id PeerID, msg protocol.Message) {
	m.now = now
	p := m.all[id]
	if !p.linked {
		return
	}
	switch v := msg.(type) {
	case *protocol.Hello:
		m.onHello(p, v)
		return
	case *protocol.Refuse:
		p.alone = aloneRefused
		why := refusal(v.Code, "%s", v.Text)
		m.setConn(p, protocol.Standalone, why.Text)
		m.drop(p, why)
		return
	case *protocol.Bye:
		m.onBye(p, v)
		return
	case *protocol.Verdict:
		if p.witness || m.cfg.Witness {
			break
		}
		m.onVerdict(p, v)
		return
	case *protocol.Ballot:
		m.onBallot(p, v)
		return
	case *protocol.Readmit:
		m.onReadmit(p)
		return
	case *protocol.Bond:
		if p.settled {
			m.onBond(p)
			return
		}
	}
	if !p.settled {
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent %v before the handshake was over", p.name, msg.Type()))
		return
	}
	if m.quorumOn() && m.receiveVote(p, msg) {
		return
	}
	switch v := msg.(type) {
	case *protocol.BitmapPart:
		m.onBitmapPart(p, v)
	case *protocol.BitmapDone:
		m.onBitmapDone(p, v)
	case *protocol.SyncStart:
		m.onSyncStart(p, v)
	case *protocol.SyncReady:
		m.onSyncReady(p)
	case *protocol.SyncDone:
		m.onSyncDone(p, v)
	case *protocol.SyncDoneAck:
		m.onSyncDoneAck(p)
	case *protocol.NewGeneration:
		m.onNewGeneration(p, v)
	case *protocol.GenerationAck:
		m.onGenerationAck(p, v)
	case *protocol.GoneAhead:
		m.onGoneAhead(p)
	case *protocol.PeerRead:
		m.onPeerRead(p, v)
	case *protocol.Stable:
		m.onStable(p, v)
	case *protocol.State:
		if !m.tooEarly(p, v) {
			m.onState(p, v)
			m.takeEarly()
		}
	case *protocol.PromoteAsk:
		m.onPromoteAsk(p, v)
	case *protocol.PromoteAnswer:
		m.onPromoteAnswer(p, v)
	case *protocol.Handover:
		m.onHandover(p, v)
	case *protocol.HandoverAnswer:
		m.onHandoverAnswer(p, v)
	default:
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent %v on the write stream", p.name, msg.Type()))
	}
}

func (m *Machine) onBye(p *peer, b *protocol.Bye) {
	if b.Outdate && m.role == protocol.Secondary && m.disk > protocol.Outdated {
		m.setDisk(protocol.Outdated, p.name+" goes on without this replica")
	}
	m.saidBye(p, b)
	if b.Code == protocol.CodeOperator {
		p.alone = aloneThere
		m.setConn(p, protocol.Standalone, b.Text)
	}
	m.drop(p, refusal(b.Code, "%s", b.Text))
}

func (m *Machine) onState(p *peer, s *protocol.State) {
	wasPrimary := p.role == protocol.Primary
	m.stillAsking(p)
	m.setPeerRole(p, s.Role)
	m.setPeerDisk(p, s.Disk)
	p.knowsBehind = p.knowsBehind || p.repl == protocol.Ahead && s.Disk <= protocol.Outdated
	if s.Role != protocol.Primary {
		m.released(p)
	}
	if p.heard != nil {
		p.heard.Role, p.heard.Disk, p.heard.Current, p.heard.Primary = s.Role, s.Disk, s.Current, s.Primary
	}
	switch {
	case s.Role == protocol.Primary && m.role == protocol.Primary && m.quorumOn():
		m.restart(p, "two primaries: the one that has no quorum gives way")
		return
	case s.Role == protocol.Primary && m.role == protocol.Primary:
		m.standAlone(p, refusal(protocol.CodeTwoPrimaries, "%s", Decision{Strategy: protocol.RefusedStrategy, Rule: RuleTwoPrimaries}.Text(m.cfg.Self, p.name, m.cfg.Name)))
		return
	case s.Disk <= protocol.Failed && p.live && s.Role != protocol.Primary && (m.role == protocol.Primary || !wasPrimary):
		// It cannot hold what it is sent; the connection stays for its word.
		m.endSync(p)
		m.setRepl(p, protocol.ReplOff, "the disk of "+p.name+" is "+s.Disk.String())
		m.forget(p)
		m.mintConfirmed(p)
		if m.role == protocol.Primary && !m.noData() {
			m.mint() // at once: what failed there must be known as old, should it come back
		}
		return
	case p.bare && s.Role == protocol.Primary && s.Disk == protocol.UpToDate && s.Current == m.current:
		m.primaryWhole(p)
	}
	switch {
	case s.Role == protocol.Primary && !wasPrimary:
		m.stopVerifies(p.name + " is primary")
		if p.repl == protocol.Established && p.lastWhy != RuleDefer && p.slot == 0 && p.dirty.Count() == 0 && s.Current == m.current {
			m.foundEqual(p) // what it has is what counts from now on
		}
		m.grantUsed(p)
	case s.Primary != "" && s.Primary != m.cfg.Self:
		m.stopVerify(p, p.name+" follows the primary "+s.Primary)
	}
	if wasPrimary && s.Role != protocol.Primary {
		m.endReign(p) // it has just said for the last time how far the others are
	}
	if p.repl == protocol.Established && p.lastWhy != RuleDefer && s.Current == m.current && m.role == protocol.Secondary {
		m.raiseDisk(p)
	}
}

// broadcastState tells every connected peer what changed here.
func (m *Machine) broadcastState() { m.tellState(nil) }

// tellState tells it to all but one.
func (m *Machine) tellState(but *peer) {
	for _, p := range m.all {
		if p != but && p.linked && p.settled {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.State{Role: m.role, Disk: m.disk, Current: m.current, Primary: m.primary()}})
		}
	}
}

// raiseDisk makes a consistent replica up-to-date once it is known to equal a
// good one.
func (m *Machine) raiseDisk(p *peer) {
	if (m.disk == protocol.Consistent || m.disk == protocol.Outdated) && p.disk >= protocol.Consistent &&
		!(m.disk == protocol.Outdated && p.disk == protocol.Outdated) {
		m.setDisk(protocol.UpToDate, "equal to "+p.name)
		m.broadcastState()
	}
}

// primary returns the primary's name as far as this node is connected to it.
func (m *Machine) primary() string {
	if m.role == protocol.Primary {
		return m.cfg.Self
	}
	for _, p := range m.all {
		if p.linked && p.settled && p.role == protocol.Primary {
			return p.name
		}
	}
	return ""
}

// receiveVote takes what has to do with votes, and, on a link without data, everything.
func (m *Machine) receiveVote(p *peer, msg protocol.Message) bool {
	switch v := msg.(type) {
	case *protocol.Claim:
		m.onClaim(p, v)
	case *protocol.ClaimAnswer:
		m.onClaimAnswer(p, v)
	case *protocol.Leave:
		m.onLeave(p)
	case *protocol.PromoteAsk:
		m.onPromoteAsk(p, v)
	case *protocol.PromoteAnswer:
		m.onPromoteAnswer(p, v)
	default:
		if !p.witness && !m.cfg.Witness {
			return false
		}
		if s, ok := msg.(*protocol.State); ok {
			m.onWitnessState(p, s)
			return true
		}
		m.dropPeer(p, refusal(protocol.CodeProtocol, "%s sent %v on a link that carries no data", p.name, msg.Type()))
	}
	return true
}
