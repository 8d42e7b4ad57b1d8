package sim

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
)

// startSync is volume.startSync.
func (p *process) startSync(id replica.PeerID) {
	l, plan := p.links[id], p.m.Plan(id)
	if l == nil || plan == nil {
		return
	}
	l.planning = true
	seed := p.w.id()
	p.after(p.soon(), func() { l.planStep(plan, seed) })
}

// planStep is link.planStep; next goes on with the loop of runPlan.
func (l *link) planStep(plan *resync.Plan, seed uint64) {
	p := l.p
	next := func(err error) {
		if err != nil {
			l.planning = false
			l.lost(err)
			return
		}
		p.after(p.soon(), func() { l.planStep(plan, seed) })
	}
	if !l.current() || p.m.Plan(l.id) != plan {
		l.planning = false
		return
	}
	if p.late() != nil {
		p.after(milli, func() { next(nil) })
		return
	}
	p.m.PaceNow(p.now())
	st := plan.Step(p.now(), p.m.Free(l.id))
	switch st.Kind {
	case resync.StepDone:
		p.m.PlanDone(p.now(), l.id)
		l.planning = false
		p.run()
		return
	case resync.StepRun:
		l.sendRun(plan, st.Run, st.Probe, seed, next)
		return
	case resync.StepData:
		l.sendData(plan, st.Run, next)
		return
	case resync.StepFlush:
		p.n.disk.flush(p, func(err error) {
			if err != nil {
				next(l.storeFailed(err))
				return
			}
			next(l.writeBulk(&protocol.SyncFlush{ID: st.Flush}, nil))
		})
		return
	case resync.StepWait:
	}
	if l.planKick {
		l.planKick = false
		next(nil)
		return
	}
	l.planWait++
	token := l.planWait
	wake := func() {
		if l.planWait != token || !l.planning {
			return
		}
		l.planWait++
		if l.dead {
			l.planning = false
			return
		}
		l.planStep(plan, seed)
	}
	l.wake = wake
	p.after(int64(st.Wait), wake)
}

// kickPlan wakes the plan's loop.
func (l *link) kickPlan() {
	if fn := l.wake; fn != nil {
		l.wake = nil
		l.p.after(l.p.soon(), fn)
		return
	}
	l.planKick = true
}

// sendRun is link.sendRun.
func (l *link) sendRun(plan *resync.Plan, r resync.Run, probe bool, seed uint64, next func(error)) {
	p := l.p
	length, isZero := r.Len, false
	if probe {
		length, isZero = p.n.disk.zeroRun(r.Off, r.Len)
	}
	p.after(p.soon(), func() {
		r, send := plan.Offer(r, length, isZero)
		p.m.PlanProgressed(p.now(), l.id)
		p.run()
		switch send {
		case resync.SendZero:
			next(l.writeBulk(&protocol.SyncZero{ID: r.ID, Off: r.Off, Len: r.Len}, nil))
		case resync.SendData:
			l.sendData(plan, r, next)
		case resync.SendDigests:
			l.sendDigests(plan, r, seed, next)
		}
	})
}

func (l *link) sendData(plan *resync.Plan, r resync.Run, next func(error)) {
	l.p.n.disk.read(l.p, r.Off, r.Len, func(vals []uint64, err error) {
		if err != nil {
			next(err)
			return
		}
		for _, v := range vals {
			if v != 0 {
				plan.Sent(r.Len)
				next(l.writeBulk(&protocol.SyncWrite{ID: r.ID, Off: r.Off, Len: r.Len}, vals))
				return
			}
		}
		plan.Zeroes()
		next(l.writeBulk(&protocol.SyncZero{ID: r.ID, Off: r.Off, Len: r.Len}, nil))
	})
}

func (l *link) sendDigests(plan *resync.Plan, r resync.Run, seed uint64, next func(error)) {
	l.p.n.disk.read(l.p, r.Off, r.Len, func(vals []uint64, err error) {
		if err != nil {
			next(err)
			return
		}
		next(l.writeBulk(&protocol.SyncDigests{ID: r.ID, Off: r.Off, Len: r.Len, Seed: seed, Verify: plan.Kind() == resync.Verify, Digests: digests(vals, seed)}, nil))
	})
}

func (l *link) writeBulk(m protocol.Message, vals []uint64) error {
	if l.w.trace {
		s := show(m)
		l.w.log("%s -> %s bulk %s", l.p.n.name, l.peer.name, s[:min(len(s), 120)])
	}
	l.w.pass(moment(m.Type()), l.p.n, l.peer)
	return l.e.out[bulkStream].send(l.w.frame(m, vals))
}

// pumpBulk is link.bulkReceiveAll.
func (l *link) pumpBulk() {
	for !l.bulk.busy && !l.bulk.ended && !l.p.dead {
		if l.dead {
			l.bulk.ended = true
			l.lost(errClosed)
			return
		}
		if len(l.bulk.q) == 0 {
			return
		}
		pk := l.bulk.q[0]
		l.bulk.q = l.bulk.q[1:]
		if pk.end != nil {
			l.bulk.ended = true
			l.lost(pk.end)
			return
		}
		msg := l.decode(&l.bulk.dec, pk)
		l.bulk.busy = true
		switch m := msg.(type) {
		case *protocol.SyncAck, *protocol.SyncDiffers, *protocol.SyncFlushed:
			l.bulkDone(l.answered(msg))
		case *protocol.PeerReply:
			l.farRead(m, pk.vals)
			l.bulkDone(nil)
		case *protocol.SyncWrite:
			l.syncApply(resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}, pk.vals)
		case *protocol.SyncZero:
			l.syncApply(resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}, nil)
		case *protocol.SyncDigests:
			l.syncCompare(m)
		case *protocol.SyncFlush:
			l.syncFlush(m.ID)
		default:
			l.bulkDone(fmt.Errorf("%v on the bulk stream", msg.Type()))
		}
	}
}

func (l *link) bulkDone(err error) {
	l.bulk.busy = false
	if err != nil {
		l.bulk.ended = true
		l.lost(err)
		return
	}
	l.pumpBulk()
}

// answered is link.answered.
func (l *link) answered(msg protocol.Message) error {
	p := l.p
	plan := p.m.Plan(l.id)
	if plan == nil || !l.current() {
		return nil
	}
	known := false
	take := func() { known = plan.Take(p.now(), msg) }
	if _, clears := msg.(*protocol.SyncFlushed); clears {
		l.w.o.proven(l, take)
	} else {
		take()
	}
	p.m.PlanProgressed(p.now(), l.id)
	p.run()
	l.kickPlan()
	if !known {
		l.w.count("unknown answer")
		return fmt.Errorf("%s answered a run that was not sent (%v)", l.peer.name, msg.Type())
	}
	return nil
}

func (l *link) allowed(compareOnly bool) error {
	if !l.current() {
		return errClosed
	}
	return l.p.m.SyncAllowed(l.id, compareOnly)
}

// syncApply is link.syncApply.
func (l *link) syncApply(r resync.Run, vals []uint64) {
	if err := l.allowed(false); err != nil {
		l.bulkDone(err)
		return
	}
	l.enter(0, func(err error) {
		if err != nil {
			l.bulkDone(err)
			return
		}
		l.keep(r.Off, r.Len, vals == nil, func(err error) {
			if err != nil {
				l.leave()
				l.bulkDone(err)
				return
			}
			l.overwrites(r, vals)
			l.p.n.disk.write(l.p, r.Off, r.Len, vals, false, func(err error) {
				l.leave()
				if err != nil {
					l.bulkDone(l.storeFailed(err))
					return
				}
				l.w.o.readable(l.p.n)
				if err := l.target.Wrote(r); err != nil {
					l.w.fail("%s: %v", l.peer.name, err)
				}
				l.bulkDone(l.writeBulk(&protocol.SyncAck{ID: r.ID}, nil))
			})
		})
	})
}

// overwrites is link.overwrites and overwritesData.
func (l *link) overwrites(r resync.Run, vals []uint64) {
	if !l.current() {
		return
	}
	if vals != nil {
		l.p.m.Overwrites(l.id, r.Off, r.Len)
		return
	}
	for s := r.Off / sectorSize; s < (r.Off+r.Len)/sectorSize; s++ {
		if l.p.n.disk.at(s) != 0 {
			l.p.m.Overwrites(l.id, s*sectorSize, sectorSize)
		}
	}
}

// syncCompare is link.syncCompare.
func (l *link) syncCompare(m *protocol.SyncDigests) {
	if err := l.allowed(m.Verify); err != nil {
		l.bulkDone(err)
		return
	}
	l.enter(0, func(err error) {
		if err != nil {
			l.bulkDone(err)
			return
		}
		l.p.n.disk.read(l.p, m.Off, m.Len, func(vals []uint64, err error) {
			l.leave()
			if err != nil {
				l.bulkDone(l.storeFailed(err))
				return
			}
			l.compared(m, vals)
		})
	})
}

func (l *link) compared(m *protocol.SyncDigests, vals []uint64) {
	if err := l.allowed(m.Verify); err != nil {
		l.bulkDone(err)
		return
	}
	mine := digests(vals, m.Seed)
	if len(mine) != len(m.Digests) {
		l.w.fail("%s sent %d digests for %d bytes", l.peer.name, len(m.Digests), m.Len)
	}
	ans, _, err := l.target.Compare(m, mine)
	if err != nil {
		l.w.fail("%s: %v", l.peer.name, err)
	}
	l.bulkDone(l.writeBulk(ans, nil))
}

// syncFlush is link.syncFlush.
func (l *link) syncFlush(id uint64) {
	if err := l.allowed(false); err != nil {
		l.bulkDone(err)
		return
	}
	l.p.n.disk.flush(l.p, func(err error) {
		if err != nil {
			l.bulkDone(l.storeFailed(err))
			return
		}
		l.p.m.SyncedDurable(l.id, l.target.Flushed())
		l.bulkDone(l.writeBulk(&protocol.SyncFlushed{ID: id}, nil))
	})
}

func (l *link) storeFailed(err error) error {
	l.p.m.PeerApplied(l.p.now(), l.id, 0, err)
	l.p.run()
	return fmt.Errorf("%w: %w", errStore, err)
}
