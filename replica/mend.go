package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/resync"
)

const (
	// mendEvery is how long something may be out of order before the background
	// check acts, and mendMax what it waits at most when that does not help: every
	// attempt is a line in the log and a pause of replication.
	mendEvery = Time(5e9)
	mendMax   = Time(300e9)
	// planStall: a plan that was asked, and is not any more, for so long, hangs. A
	// write to a peer that takes nothing is ended before.
	planStall = Time(90e9)
)

// tickMend is the background check: a sync that should be running, and is not, is
// started by a new handshake, whatever the reason. So no block stays out of sync
// because of a step that was forgotten.
func (m *Machine) tickMend(p *peer) {
	why := m.needsMending(p)
	switch {
	case why == "":
		if p.settled && p.repl == protocol.Established && m.now >= p.mendAt {
			p.mendWait = 0
		}
		return
	case m.now < p.mendAt:
		return
	}
	p.mendWait = min(max(2*p.mendWait, mendEvery), mendMax)
	m.restart(p, why+": compare again")
	p.mendAt = m.now + p.mendWait
}

// needsMending says what is out of order with a connection that has settled, ""
// when nothing is. Bits of a verify wait for the operator, or the next connection.
func (m *Machine) needsMending(p *peer) string {
	if !p.settled || m.stopping || p.bare || m.bare() {
		return ""
	}
	plan := p.plan
	switch {
	case plan != nil && plan.Asked() == 0 && m.now-plan.Started() > mendEvery:
		return fmt.Sprintf("the %s that was started does not run", planWord(plan.Kind()))
	case plan != nil && plan.Asked() != 0 && m.now-plan.Asked() > planStall:
		return fmt.Sprintf("the %s does not go on", planWord(plan.Kind()))
	case p.repl == protocol.ReplOff && m.usable() && p.disk > protocol.Failed:
		return "connected, both disks are in order, and nothing is replicated"
	case m.deserted(p):
		return "the primary that kept the two in sync is gone"
	case p.repl != protocol.Established || !p.unsettled():
		return ""
	case m.role == protocol.Primary || p.role == protocol.Primary || m.primary() == "" && p.role == protocol.Secondary:
		return fmt.Sprintf("%d blocks are out of sync and nothing copies them", p.dirty.Count())
	}
	return ""
}

// unsettled reports whether blocks are marked toward p that it is to get: not only by a
// verify, whose bits wait for the operator or the next connection.
func (p *peer) unsettled() bool {
	return p.dirty.Count() > p.verified || p.spoiled && p.dirty.Count() > 0
}

// deserted reports whether this secondary and p have only been told by a primary that
// is gone that they are in sync, or one has followed it without the other, and nobody has
// taken its place.
func (m *Machine) deserted(p *peer) bool {
	return p.repl == protocol.Established && (p.lastWhy == RuleDefer || p.heard.Current != m.current) && m.primary() == "" && p.heard.Primary == ""
}

func planWord(k resync.Kind) string {
	if k == resync.Verify {
		return "verify"
	}
	return "sync"
}
