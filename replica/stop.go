package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// Stop takes no more requests and operations; the owner drains first if it can.
// Durable afterwards (MetaDone): whether the volume was closed in order.
func (m *Machine) Stop(now Time) {
	m.now = now
	m.stopping = true
	for _, p := range m.all {
		if p.linked {
			m.emit(Effect{Kind: DoSend, Peer: p.id, Msg: &protocol.Bye{Code: protocol.CodeShutdown, Text: m.cfg.Self + " is stopping"}})
			m.drop(p, refusal(protocol.CodeShutdown, "%s is stopping", m.cfg.Self))
		}
	}
}

// Abandon answers the requests that nobody will finish any more. REQUIRES Stop.
// Those that are with the local store are answered when it is done (LocalDone).
func (m *Machine) Abandon(now Time) {
	m.now = now
	for _, list := range []*[]*Request{&m.held, &m.arming, &m.overlapped, &m.farWait, &m.vote.unanswered} {
		for _, r := range *list {
			m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrStopping})
		}
		*list = nil
	}
	for _, r := range m.genWait {
		r.err = ErrStopping
	}
	m.releaseGenWait()
}

// MarkClean is the last change: nothing is in flight, the store is flushed. The
// activity map need not be replayed.
func (m *Machine) MarkClean(now Time) {
	m.now = now
	if m.role == protocol.Primary || m.crashed || m.flights > 0 || !m.usable() {
		return
	}
	m.cleanMark = true
	m.wantBitmaps = true
	m.persist()
}
