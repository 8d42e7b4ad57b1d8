package volume

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/replica"
)

// receive reads the write stream.
func (l *link) receive() {
	defer l.v.fast.Done()
	err := l.turn()
	if err == nil {
		err = l.receiveAll()
	}
	l.lost(err)
}

// turn waits until nothing that came over an earlier link, to this peer or another, is
// in the store: a write that hangs there must not land on what is sent again, and a
// replica that waits for its store is no partner. Bulk data needs no turn: it is refused
// before the handshake, which is read here.
func (l *link) turn() error {
	v := l.v
	for {
		v.mu.Lock()
		if v.late() == nil || !v.m.Usable() { // nothing is applied to a failed disk
			v.applying[l.id] = l
			v.mu.Unlock()
			return nil
		}
		done := v.lateDone
		v.mu.Unlock()
		select {
		case <-done:
		case <-time.After(time.Second): // the disk may have failed
		case <-l.dead:
			return io.ErrClosedPipe
		}
	}
}

func (l *link) receiveAll() error {
	v := l.v
	fr := l.reader(l.conn.Write)
	owed := 0 // bytes to acknowledge, headers included
	var owedAt replica.Time
	for {
		if owed > ackEvery || owed > 0 && (!fr.more() || v.now()-owedAt > ackTime) {
			owed = 0
			if err := l.acknowledge(); err != nil {
				return err
			}
		}
		msg, buf, err := fr.next()
		if err != nil {
			return l.why(err)
		}
		switch m := msg.(type) {
		case *protocol.Data:
			if err = l.keepAhead(fr, m); err == nil {
				err = l.apply(m, buf, !fr.more())
			}
			if owed == 0 {
				owedAt = v.now()
			}
			owed += protocol.HeaderLen + len(payload(buf))
		case *protocol.Ack:
			v.mu.Lock()
			if v.links[l.id] == l {
				v.m.Acked(v.now(), l.id, *m)
			}
			v.unlockAndRun()
		default:
			v.mu.Lock()
			if v.links[l.id] == l {
				v.m.Receive(v.now(), l.id, msg)
			}
			v.unlockAndRun()
			_, err = l.holdOn()
		}
		if buf != nil {
			buf.Release()
		}
		if err != nil {
			return err
		}
	}
}

// why puts the end of a stream into words.
func (l *link) why(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s closed the connection", l.name)
	case errors.Is(err, protocol.ErrCorrupt):
		return fmt.Errorf("%s sent a frame whose digest does not match: %w", l.name, err)
	case errors.Is(err, compress.ErrFrame):
		return fmt.Errorf("%s sent a payload that cannot be expanded: %w", l.name, err)
	}
	return err
}

// holdOn waits while the machine holds the stream. A link that is not the volume's
// any more is not held: its last words are still read, but nothing may be applied.
func (l *link) holdOn() (current bool, err error) {
	for {
		l.v.mu.Lock()
		current, held := l.v.links[l.id] == l, l.v.m.Held(l.id)
		l.v.mu.Unlock()
		if !current || !held {
			return current, nil
		}
		select {
		case <-l.resume:
		case <-l.dead:
			return false, io.ErrClosedPipe
		}
	}
}

// apply carries out one replicated operation, in stream order. last: no other is
// waiting in the read buffer.
func (l *link) apply(d *protocol.Data, buf *blockdev.Buffer, last bool) error {
	v := l.v
	v.mu.Lock()
	if v.links[l.id] != l {
		v.mu.Unlock()
		return io.ErrClosedPipe
	}
	wait, err := v.m.PeerData(v.now(), l.id, d)
	entered := err == nil && !wait && v.late() == nil
	if entered {
		l.entered(d.Seq)
	}
	v.unlockAndRun()
	if errors.Is(err, replica.ErrDiskFailed) {
		return nil // the connection stays for what it has to say
	}
	if err != nil {
		return err
	}
	if wait {
		if current, err := l.holdOn(); err != nil || !current {
			return errors.Join(io.ErrClosedPipe, err)
		}
		v.mu.Lock()
		may := v.m.MayApply()
		v.mu.Unlock()
		if !may {
			return nil
		}
	}
	if !entered {
		if err := l.enter(d.Seq); err != nil {
			return err
		}
	}
	if l.mode == protocol.ModeB && d.Op != protocol.DataFlush {
		// Received: all that B promises, and from here on it is applied, whatever
		// becomes of the connection. An error says so to receiveAll soon enough.
		_ = l.acknowledge()
	}
	if err := l.keep(rangeOf(d)...); err != nil {
		l.left()
		return err
	}
	durable := d.Op == protocol.DataFlush || d.Flags&protocol.DataFUA != 0
	l.storeAt.Store(v.now())
	switch d.Op {
	case protocol.DataWrite:
		err = v.store().WriteAt(payload(buf), d.Off, 0)
	case protocol.DataZero:
		var fl blockdev.Flags
		if d.Flags&protocol.DataNoHole != 0 {
			fl = blockdev.NoHole
		}
		err = v.store().Zero(d.Off, d.Len, fl)
	case protocol.DataTrim:
		err = v.store().Trim(d.Off, d.Len, 0)
	case protocol.DataFlush:
	}
	began, now := l.storeAt.Swap(0), v.now()
	l.countApplied(kindOfData(d.Op), d.Len, time.Duration(now-began), err)
	v.mu.Lock()
	l.leave()
	if v.links[l.id] == l || err != nil {
		v.m.PeerApplied(now, l.id, d.Seq, err)
	}
	// A and B: what follows must not overtake the flush point. C: it may, so
	// that a flush runs beside the stream unless it is short and nothing waits.
	here := l.mode != protocol.ModeC || last && v.flushIsShort()
	if err == nil && durable && !here {
		l.flushSeq = d.Seq
		kick(l.flushes)
	}
	v.unlockAndRun()
	if err == nil && durable && here {
		l.makeDurable(d.Seq)
	}
	return nil // a failed store is the machine's business
}

// countApplied counts an operation of the peer that was carried out here. A flush
// counts when it is durable.
func (l *link) countApplied(k OpKind, n int64, took time.Duration, err error) {
	switch {
	case err != nil:
		l.v.meter.localBad[k].Add(1)
	case k != OpKindFlush:
		l.meter.apply[k].Add(took)
		if k == OpKindWrite {
			l.meter.applied.Add(uint64(n))
		}
	}
}

// flush makes what was applied durable, beside the stream: flushes that arrive
// while one runs share the next.
func (l *link) flush() {
	defer l.v.fast.Done()
	for {
		select {
		case <-l.flushes:
		case <-l.dead:
			return
		}
		l.v.mu.Lock()
		seq := l.flushSeq
		l.v.mu.Unlock()
		if l.makeDurable(seq) != nil {
			return
		}
		if l.acknowledge() != nil {
			return
		}
	}
}

func (l *link) makeDurable(seq uint64) error {
	v := l.v
	began := v.now()
	err := v.flushStore()
	now := v.now()
	if err != nil {
		v.meter.localBad[OpKindFlush].Add(1)
	} else {
		l.meter.apply[OpKindFlush].Add(time.Duration(now - began))
	}
	v.mu.Lock()
	if v.links[l.id] == l || err != nil {
		v.m.PeerDurable(now, l.id, seq, err)
	}
	v.unlockAndRun()
	return err
}
