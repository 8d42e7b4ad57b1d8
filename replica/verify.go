package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

// VerifyOptions say what a verify compares, and how fast.
type VerifyOptions struct {
	// Off and Len are the range, bytes, widened to whole blocks. Len 0: up to the
	// end of the volume.
	Off, Len int64
	// Rate limits it, bytes/s. 0: the volume's own limit.
	Rate int64
}

// VerifyResult is what a verify found, also one that was stopped.
type VerifyResult struct {
	Off, Len int64 // the range
	Next     int64 // everything from Off up to here was compared; Off+Len: all of it
	Compared int64 // bytes
	Differed int64 // bytes in blocks that differ, all of them marked out of sync
	Bad      []resync.Run
}

// Verify starts comparing with a peer. done is called at the end, with an error
// when it ends early; LastVerify then has what was found up to there. started is
// false when it was refused.
//
// Writes are held off the blocks that are being compared, for a round trip, and a
// block that is being written is compared after that: so a difference is never one
// of time. What differs is marked out of sync, and stays so until the next
// handshake, or Repair, has it copied.
func (m *Machine) Verify(now Time, id PeerID, opt VerifyOptions, done func(error)) (started bool) {
	m.now = now
	p := m.all[id]
	if err := m.mayVerify(p, &opt); err != nil {
		m.reply(done, err)
		return false
	}
	o := m.cfg.Sync
	if opt.Rate > 0 {
		o.RateBytes = opt.Rate
	}
	p.verify = VerifyResult{Off: opt.Off, Len: opt.Len, Next: opt.Off}
	p.verifyReply = done
	p.plan = resync.NewVerify(p.dirty, m.cfg.Size, opt.Off, opt.Len, o, m.now)
	p.plan.Follow(p.lastRun)
	m.setRepl(p, protocol.VerifySource, "")
	m.emit(Effect{Kind: DoSync, Peer: p.id})
	return true
}

// mayVerify checks and completes the options.
func (m *Machine) mayVerify(p *peer, opt *VerifyOptions) error {
	switch {
	case opt.Off < 0 || opt.Len < 0 || opt.Off >= m.cfg.Size || opt.Len > m.cfg.Size-opt.Off:
		return refusal(protocol.CodeNotAllowed, "%d bytes at %d are not within %s, which has %d bytes", opt.Len, opt.Off, m.cfg.Name, m.cfg.Size)
	case p.repl == protocol.VerifySource:
		return refusal(protocol.CodeBusy, "%s is being compared with %s already: qrbd status %s shows how far; qrbd verify %s %s --stop ends it",
			m.cfg.Self, p.name, m.cfg.Name, m.cfg.Name, p.name)
	case p.repl != protocol.Established || p.disk <= protocol.Inconsistent || m.disk <= protocol.Inconsistent:
		return refusal(protocol.CodeNotAllowed, "%s cannot be compared with %s now: replication is %s, disks are %s and %s. It must be established with both disks consistent",
			m.cfg.Self, p.name, p.repl, m.disk, p.disk)
	case m.primary() != "" && m.primary() != m.cfg.Self:
		return refusal(protocol.CodeNotAllowed, "run verify on the primary, %s: only there are writes held off the blocks being compared", m.primary())
	case m.role != protocol.Primary && p.heard.Primary != "" && p.heard.Primary != m.cfg.Self:
		return refusal(protocol.CodeNotAllowed, "run verify on the primary, %s, which %s is connected to", p.heard.Primary, p.name)
	case m.role != protocol.Primary && (p.lastWhy == RuleDefer || p.heard.Current != m.current):
		return refusal(protocol.CodeBusy, "the primary that kept %s or %s in sync is gone: they are compared in a moment, try again then", m.cfg.Self, p.name)
	case m.role == protocol.Primary && !p.live:
		return refusal(protocol.CodeNotAllowed, "%s is not in sync with %s yet: wait until it is (qrbd wait %s --for up-to-date)", p.name, m.cfg.Self, m.cfg.Name)
	}
	end := m.cfg.Size
	if opt.Len > 0 {
		end = min(end, (opt.Off+opt.Len+bitmap.BlockSize-1)/bitmap.BlockSize*bitmap.BlockSize)
	}
	opt.Off = opt.Off / bitmap.BlockSize * bitmap.BlockSize
	opt.Len = end - opt.Off
	return nil
}

// StopVerify ends a verify under way; what it found stands.
func (m *Machine) StopVerify(now Time, id PeerID, why string) {
	m.now = now
	m.stopVerify(m.all[id], why)
}

func (m *Machine) stopVerify(p *peer, why string) {
	if p.plan == nil || p.repl != protocol.VerifySource {
		return
	}
	m.setRepl(p, protocol.Established, why)
	m.endVerify(p, refusal(protocol.CodeBusy, "the verify of %s with %s was stopped: %s", m.cfg.Name, p.name, why))
}

// stopVerifies ends the verifies that a new primary, which takes writes that are
// not held off here, would spoil.
func (m *Machine) stopVerifies(why string) {
	for _, p := range m.peers {
		m.stopVerify(p, why)
	}
}

// endVerify keeps what was found and answers the operator.
func (m *Machine) endVerify(p *peer, err error) {
	s := p.plan.Stats()
	p.verify.Next, p.verify.Compared, p.verify.Differed, p.verify.Bad = p.plan.Position(), s.Compared, s.Differed, p.plan.Bad()
	p.lastStats = s
	p.lastRun = p.plan.LastID()
	done := p.verifyReply
	p.plan, p.verifyReply = nil, nil
	if s.Differed > 0 {
		p.verified = p.dirty.Count()
		m.wantBitmaps = true
		m.commit()
		m.event(p.name, "verify", "", "differs", fmt.Sprintf("%d bytes of %d differ and are marked out of sync", s.Differed, s.Compared))
	} else if err == nil {
		m.event(p.name, "verify", "", "equal", fmt.Sprintf("%d bytes compared", s.Compared))
	}
	m.reply(done, err)
	m.pumpOverlapped()
}

// LastVerify returns what the last verify of the peer found.
func (m *Machine) LastVerify(id PeerID) VerifyResult { return m.all[id].verify }

// Repair has the blocks that are marked out of sync copied, by a new handshake:
// from this replica, or from the peer's. A primary's data is never the target: its
// clients have read it. Without a primary the operator's word goes to the peer with
// the hello. The owner watches the peer's bits for the end.
func (m *Machine) Repair(now Time, id PeerID, fromPeer bool) error {
	m.now = now
	p := m.all[id]
	switch {
	case !p.settled || p.repl != protocol.Established:
		return refusal(protocol.CodeNotAllowed, "%s cannot be repaired now: replication with %s is %s", m.cfg.Name, p.name, p.repl)
	case p.dirty.Count() == 0:
		return nil
	case m.role == protocol.Primary && fromPeer:
		return refusal(protocol.CodeNotAllowed, "%s is primary on %s, and its data is not overwritten under its clients. If that of %s is right: qrbd switchover %s --to %s, then verify with --repair there",
			m.cfg.Name, m.cfg.Self, p.name, m.cfg.Name, p.name)
	case m.role != protocol.Primary && m.primary() != "":
		return refusal(protocol.CodeNotAllowed, "run verify with --repair on the primary, %s", m.primary())
	case m.role != protocol.Primary:
		p.repair = repairFromHere
		if fromPeer {
			p.repair = repairFromPeer
		}
	}
	p.verified = 0
	m.restart(p, fmt.Sprintf("the operator has %d blocks repaired", p.dirty.Count()))
	return nil
}

// repair is an operator's word on which replica of two secondaries is right.
type repair uint8

const (
	repairNone repair = iota
	repairFromHere
	repairFromPeer
)
