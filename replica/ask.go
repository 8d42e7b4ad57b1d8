package replica

import "github.com/qrbd/qrbd/protocol"

// askMax bounds the wait for an owner that is asked whether its replica may be
// overwritten: the longest time limit of a command, and a little.
const askMax = Time(11 * 60e9)

// askTarget asks the owner before p overwrites this replica. Nothing has been
// changed, and p replicates nothing yet: nobody's writes wait.
func (m *Machine) askTarget(p *peer) {
	p.step = syncAsk
	p.deadline = m.now + askMax
	p.nextWord = m.now + m.cfg.HandshakeTime/3
	m.emit(Effect{Kind: DoAskTarget, Peer: p.id, Discard: p.discards, Token: p.epoch})
}

// TargetAllowed answers DoAskTarget. An error refuses the peer: the connection stands
// alone until an operator acts.
func (m *Machine) TargetAllowed(now Time, id PeerID, token uint64, err error) {
	m.now = now
	p := m.all[id]
	switch {
	case p.step != syncAsk || p.epoch != token: // of a connection before
	case err != nil:
		m.standAlone(p, refusal(protocol.CodeNotAllowed, "%s does not let %s overwrite its replica: %v", m.cfg.Self, p.name, err))
	default:
		m.readyTarget(p)
	}
}

// tickAsk tells the source now and then that the target is still asking.
func (m *Machine) tickAsk(p *peer) {
	if p.step == syncAsk && m.now >= p.nextWord {
		p.nextWord = m.now + m.cfg.HandshakeTime/3
		m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.State{Role: m.role, Disk: m.disk, Current: m.current, Primary: m.primary()}})
	}
}

// stillAsking is the source's side of tickAsk.
func (m *Machine) stillAsking(p *peer) {
	if p.step == syncBitmap {
		p.deadline = min(m.now+m.cfg.HandshakeTime, p.patience)
	}
}
