package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// draining is a demotion in progress: no new request is taken, those in flight
// end, everything is flushed, then next is called.
type draining struct {
	flush    *Request
	flushed  bool
	deadline Time
	next     func(error)
}

// Demote makes this node a secondary. The owner has seen to it that no client is
// left; requests that still come fail with ErrNotPrimary.
func (m *Machine) Demote(now Time, done func(error)) {
	m.now = now
	if m.role == protocol.Primary && m.drain == nil && !m.mayServe() && !m.rising {
		// What waits can neither be answered nor finished: it fails.
		why := "demoted by the operator without a quorum"
		if !m.quorumOn() {
			why = "demoted by the operator while it was frozen"
		}
		m.yield(why)
		m.reply(done, nil)
		return
	}
	m.startDrain(done, func(err error) {
		if err != nil {
			m.undrain()
			m.reply(done, err)
			return
		}
		m.stepDown("demoted by the operator", func() { m.reply(done, nil) })
	})
}

// startDrain calls next once nothing is in flight and all of it is flushed.
func (m *Machine) startDrain(done func(error), next func(error)) {
	switch {
	case m.role != protocol.Primary && m.drain == nil:
		m.reply(done, nil)
		return
	case m.drain != nil || m.handover != nil:
		m.reply(done, refusal(protocol.CodeBusy, "another change of the role of %s is under way: try again in a moment", m.cfg.Name))
		return
	}
	m.drain = &draining{next: next, deadline: m.now + m.cfg.WriteTimeout + m.cfg.AskTime}
	m.frozen++
	list := m.held
	m.held = nil
	for _, r := range list {
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	}
	if m.flights == 0 {
		m.drained()
	}
}

// drained flushes when the last request has ended, and goes on after that.
func (m *Machine) drained() {
	d := m.drain
	switch {
	case m.noData():
		m.drain = nil
		d.next(nil) // nothing can be flushed; stepping down is right all the same
	case m.bare() && !m.detached:
		m.mint()
	case m.minting || len(m.arming) > 0 || len(m.vote.unanswered) > 0:
		return // Tick looks again
	case d.flush == nil:
		// The next primary may be one that cannot know what is still on its way
		// to a third replica.
		d.flush = &Request{Op: Flush, Tag: internalTag, span: -1, all: true}
		m.issueFlush(d.flush)
	case d.flushed:
		m.drain = nil
		if err := d.flush.err; err != ErrNoData {
			d.next(err)
			return
		}
		d.next(nil)
	}
}

// Finished takes back an internal request that completed.
func (m *Machine) Finished(now Time, r *Request) {
	m.now = now
	if m.ownFlush == r {
		m.ownFlush = nil
	}
	if m.fillFlush == r {
		m.fillFlushed(r.err)
	}
	if m.drain != nil && m.drain.flush == r {
		m.drain.flushed = true
		m.drained()
	}
}

func (m *Machine) undrain() {
	m.drain = nil
	m.frozen--
	m.pumpHeld()
}

// stepDown makes the secondary role durable, tells the peers and calls then. It
// ends the freeze of the drain before it.
func (m *Machine) stepDown(why string, then func()) {
	m.crashed = false
	m.fenced = false
	m.falling = true
	unfilled := m.leaveUnfilled()
	reign := m.reign
	m.setRole(protocol.Secondary, why)
	// Metadata that still says primary counts as a crash at the next start: that
	// costs a comparison, and nobody can write meanwhile.
	m.whenSettled(func() {
		m.frozen--
		m.falling = false
		if len(m.peers) > 1 {
			m.sendStable() // its last word on who has what
		}
		m.forgetOutrun(reign)
		m.broadcastState()
		if unfilled {
			for _, p := range m.peers {
				if p.linked {
					m.restart(p, m.cfg.Self+" gave up a disk that was not filled yet")
				}
			}
		}
		then()
		m.pumpHeld()
	})
}
