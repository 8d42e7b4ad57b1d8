package volume

import (
	"bytes"
	"errors"
	"io"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
)

// bulkState is a link's part in syncs. Guarded by v.mu.
type bulkState struct {
	applied int64 // target: bytes written or found equal in this sync
	sent    int64 // target: payload bytes received
}

// startSync runs the peer's plan.
func (v *Volume) startSync(id replica.PeerID) {
	v.mu.Lock()
	l, plan := v.links[id], v.m.Plan(id)
	if l == nil || plan == nil {
		v.mu.Unlock()
		return
	}
	v.fast.Add(1)
	v.mu.Unlock()
	go l.runPlan(plan)
}

// runPlan hands the plan's runs to the target until it is done or the link is
// lost. A read error of the local store ends the connection: what could not be
// read stays out of sync.
func (l *link) runPlan(plan *resync.Plan) {
	defer l.v.fast.Done()
	seed := randomID()
	for {
		ended, err := l.planStep(plan, seed)
		if err != nil {
			l.lost(err)
			return
		}
		if ended {
			return
		}
	}
}

// planStep does the next thing the plan asks for.
func (l *link) planStep(plan *resync.Plan, seed uint64) (ended bool, err error) {
	v := l.v
	v.mu.Lock()
	if v.links[l.id] != l || v.m.Plan(l.id) != plan {
		v.mu.Unlock()
		return true, nil
	}
	if v.late() != nil {
		done := v.lateDone
		v.mu.Unlock()
		select {
		case <-done:
			return false, nil
		case <-l.dead:
			return true, nil
		}
	}
	v.m.PaceNow(v.now())
	st := plan.Step(v.now(), v.m.Free(l.id))
	if st.Kind == resync.StepDone {
		v.m.PlanDone(v.now(), l.id)
		v.unlockAndRun()
		return true, nil
	}
	v.mu.Unlock()
	l.share(st.Share)
	switch st.Kind {
	case resync.StepRun:
		return false, l.sendRun(plan, st.Run, st.Probe, seed)
	case resync.StepData:
		return false, l.sendData(plan, st.Run)
	case resync.StepFlush:
		// What was copied must be as durable here: a survivor may hold writes in
		// its cache only, and no bit will say so once they are cleared.
		if err := v.store().Flush(); err != nil {
			return false, l.storeFailed(OpKindFlush, err)
		}
		return false, l.writeBulk(&protocol.SyncFlush{ID: st.Flush}, nil)
	case resync.StepWait, resync.StepDone:
	}
	t := time.NewTimer(st.Wait)
	defer t.Stop()
	select {
	case <-l.plan:
	case <-t.C:
	case <-l.dead:
		return true, nil
	}
	return false, nil
}

// share gives the bulk stream its share of the link, or takes it back.
func (l *link) share(on bool) {
	if s, ok := l.conn.Bulk.(Sharer); ok && on != l.shared {
		l.shared = on
		s.SetShare(on)
	}
}

// sendRun narrows a run to what the store has there and sends it, as zeroes, as
// digests or as data.
func (l *link) sendRun(plan *resync.Plan, r resync.Run, probe bool, seed uint64) error {
	v := l.v
	length, zero := r.Len, false
	if probe {
		exts, err := v.store().Extents(r.Off, r.Len, 1)
		if err != nil {
			return err
		}
		length, zero = exts[0].Len, exts[0].Zero
	}
	v.mu.Lock()
	r, send := plan.Offer(r, length, zero)
	v.m.PlanProgressed(v.now(), l.id)
	v.unlockAndRun()
	switch send {
	case resync.SendZero:
		return l.writeBulk(&protocol.SyncZero{ID: r.ID, Off: r.Off, Len: r.Len}, nil)
	case resync.SendData:
		return l.sendData(plan, r)
	case resync.SendDigests:
	}
	return l.sendDigests(plan, r, seed)
}

func (l *link) sendData(plan *resync.Plan, r resync.Run) error {
	v := l.v
	buf := v.opt.Pool.Get(int(r.Len), l.dead)
	if buf == nil {
		return io.ErrClosedPipe
	}
	defer buf.Release()
	if err := v.store().ReadAt(buf.Bytes(), r.Off); err != nil {
		v.meter.localBad[OpKindRead].Add(1)
		return err
	}
	if allZero(buf.Bytes()) {
		v.mu.Lock()
		plan.Zeroes()
		v.mu.Unlock()
		return l.writeBulk(&protocol.SyncZero{ID: r.ID, Off: r.Off, Len: r.Len}, nil)
	}
	v.mu.Lock()
	plan.Sent(r.Len)
	v.mu.Unlock()
	return l.writeBulk(&protocol.SyncWrite{ID: r.ID, Off: r.Off, Len: r.Len}, buf.Bytes())
}

var zeroes [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func (l *link) writeBulk(m protocol.Message, pay []byte) error {
	l.bulkMu.Lock()
	defer l.bulkMu.Unlock()
	head := l.packBulk(m, pay)
	if head != nil {
		pay = nil
	} else if head = protocol.AppendFrame(nil, m, pay); len(pay) > 0 && len(pay) <= gatherMax {
		head, pay = append(head, pay...), nil
	}
	l.filling.Store(l.v.now())
	defer l.filling.Store(0)
	if _, err := l.conn.Bulk.Write(head); err != nil {
		return err
	}
	l.meter.sent.Add(uint64(len(head) + len(pay)))
	if len(pay) > 0 {
		_, err := l.conn.Bulk.Write(pay)
		return err
	}
	return nil
}

// bulkReceive serves the bulk stream, as source and as target.
func (l *link) bulkReceive() {
	defer l.v.fast.Done()
	l.lost(l.bulkReceiveAll())
}

func (l *link) bulkReceiveAll() error {
	fr := l.reader(l.conn.Bulk)
	var t resync.Target
	var w waiting
	defer w.release()
	for {
		msg, buf, err := fr.next()
		if err != nil {
			return l.why(err)
		}
		if gathered, err := l.gather(&t, &w, fr, msg, buf); err != nil {
			return err
		} else if gathered {
			continue
		}
		switch m := msg.(type) {
		case *protocol.SyncAck, *protocol.SyncDiffers, *protocol.SyncFlushed:
			err = l.answered(msg)
		case *protocol.PeerReply:
			l.farRead(m, buf)
		case *protocol.SyncWrite:
			err = l.syncApply(&t, resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}, payload(buf))
		case *protocol.SyncZero:
			err = l.syncApply(&t, resync.Run{ID: m.ID, Off: m.Off, Len: m.Len}, nil)
		case *protocol.SyncDigests:
			err = l.syncCompare(&t, m)
		case *protocol.SyncFlush:
			err = l.syncFlush(&t, m.ID)
		default:
			err = refuse(protocol.CodeProtocol, "%s sent %v on the bulk stream", l.name, msg.Type())
		}
		if buf != nil {
			buf.Release()
		}
		if err != nil {
			return err
		}
	}
}

// answered hands the target's answer to the plan.
func (l *link) answered(msg protocol.Message) error {
	v := l.v
	v.mu.Lock()
	plan := v.m.Plan(l.id)
	if plan == nil || v.links[l.id] != l {
		v.mu.Unlock()
		return nil // of a plan that has ended
	}
	known := plan.Take(v.now(), msg)
	v.m.PlanProgressed(v.now(), l.id)
	v.unlockAndRun()
	kick(l.plan)
	if !known {
		return refuse(protocol.CodeProtocol, "%s answered a run that was not sent (%v)", l.name, msg.Type())
	}
	return nil
}

func (l *link) allowed(compareOnly bool, off, n int64) error {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	if l.v.links[l.id] != l {
		return io.ErrClosedPipe
	}
	if err := l.v.m.SyncAllowed(l.id, compareOnly); err != nil {
		return err
	}
	return blockdev.CheckRange(l.v.size, off, n)
}

// syncApply writes a run, data or zeroes.
func (l *link) syncApply(t *resync.Target, r resync.Run, data []byte) error {
	v := l.v
	if err := l.allowed(false, r.Off, r.Len); err != nil {
		return err
	}
	if err := l.enter(0); err != nil {
		return err
	}
	kept := l.keep(blockdev.Extent{Off: r.Off, Len: r.Len, Zero: data == nil})
	var err error
	if kept == nil {
		if data != nil {
			l.overwrites(r.Off, r.Len)
			err = v.store().WriteAt(data, r.Off, 0)
		} else {
			err = v.zeroUnlessZero(r.Off, r.Len, l.overwritesData)
		}
	}
	l.left()
	if kept != nil {
		return kept
	}
	if err != nil {
		return l.storeFailed(OpKindWrite, err)
	}
	if err := t.Wrote(r); err != nil {
		return refuse(protocol.CodeProtocol, "%s: %v", l.name, err)
	}
	v.mu.Lock()
	l.bulk.applied += r.Len
	l.bulk.sent += int64(len(data))
	v.mu.Unlock()
	return l.writeBulk(&protocol.SyncAck{ID: r.ID}, nil)
}

// zeroUnlessZero makes the range read as zeroes, leaving alone what does already:
// a sparse store stays sparse, and terabytes of holes cost nothing. changes is told, before,
// of what is zeroed; nil: nobody wants to know.
func (v *Volume) zeroUnlessZero(off, n int64, changes func(off, n int64) error) error {
	for n > 0 {
		exts, err := v.store().Extents(off, n, 64)
		if err != nil {
			return err
		}
		for _, e := range exts {
			if !e.Zero {
				if changes != nil {
					if err := changes(e.Off, e.Len); err != nil {
						return err
					}
				}
				if err := v.store().Trim(e.Off, e.Len, 0); err != nil {
					return err
				}
			}
			off, n = off+e.Len, n-e.Len
		}
	}
	return nil
}

// overwrites tells the machine that a range of the store is about to be changed by the sync.
func (l *link) overwrites(off, n int64) {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	if l.v.links[l.id] == l {
		l.v.m.Overwrites(l.id, off, n)
	}
}

// overwritesData is overwrites of what is not zeroes in a range that is to be zeroed. Who
// has one peer tells nobody, and need not look.
func (l *link) overwritesData(off, n int64) error {
	if len(l.v.peers()) < 2 {
		return nil
	}
	for buf := make([]byte, min(n, int64(len(zeroes)))); n > 0; {
		b := buf[:min(n, int64(len(buf)))]
		if err := l.v.store().ReadAt(b, off); err != nil {
			return err
		}
		if !allZero(b) {
			l.overwrites(off, int64(len(b)))
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// syncFlush makes what was synced durable; only then are this side's own marks
// toward the source settled.
func (l *link) syncFlush(t *resync.Target, id uint64) error {
	v := l.v
	if err := l.allowed(false, 0, 0); err != nil {
		return err
	}
	if err := v.store().Flush(); err != nil {
		return l.storeFailed(OpKindFlush, err)
	}
	v.mu.Lock()
	v.m.SyncedDurable(l.id, t.Flushed())
	v.mu.Unlock()
	return l.writeBulk(&protocol.SyncFlushed{ID: id}, nil)
}

// storeFailed reports the local store's error to the machine.
func (l *link) storeFailed(doing OpKind, err error) error {
	v := l.v
	v.meter.localBad[doing].Add(1)
	v.mu.Lock()
	v.m.PeerApplied(v.now(), l.id, 0, err)
	v.unlockAndRun()
	return errors.Join(errors.New("the local store failed during the sync"), err)
}
