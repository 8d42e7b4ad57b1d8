package volume

import (
	"io"
	"runtime"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// enqueue appends a frame and wakes the sender; now: the caller is to call pushNow
// instead, without the lock. REQUIRES v.mu.
func (l *link) enqueue(e *replica.Effect) (now bool) {
	if l.cause != nil {
		return false
	}
	f := frame{msg: e.Msg}
	if e.Msg != nil {
		if t := e.Msg.Type(); t != protocol.TypeBitmapPart && t != protocol.TypePeerRead { // which have bounds of their own
			l.words++
		}
		if l.words > wordsMax {
			l.cause = refuse(protocol.CodeProtocol, "%s does not read its answers: %d wait for it", l.name, l.words)
			l.abort() // lost is reported by send
			return false
		}
	} else {
		f.data = e.Data
		if e.Data.Op == protocol.DataWrite {
			o := e.Req.Tag.(*op)
			f.buf, f.pay = o.buf, o.data
			f.buf.Retain()
		}
	}
	l.queue = append(l.queue, f)
	if l.try != nil && len(l.queue) == 1 && len(f.pay) <= lonelyMax && !l.leaving && l.v.m.InFlight() <= lonelyFlights {
		return true
	}
	kick(l.wake)
	return false
}

// pushNow writes what is queued without waiting, or has the sending goroutine do
// it. With few requests in flight the wake-ups are what a write costs; with many,
// gathering them is worth more.
func (l *link) pushNow() {
	if !l.writeMu.TryLock() {
		kick(l.wake)
		return
	}
	defer l.writeMu.Unlock()
	l.v.mu.Lock()
	if len(l.rest) > 0 || len(l.queue) != 1 || l.leaving || l.wantAck {
		l.v.mu.Unlock()
		kick(l.wake)
		return
	}
	f := l.queue[0]
	l.queue[0] = frame{}
	l.mark(&f)
	l.queue, l.words = l.queue[:0], 0
	l.v.mu.Unlock()
	l.lone = l.appendFrame(l.lone[:0], &f)
	if f.buf != nil {
		f.buf.Release()
	}
	if ok, _ := l.try.TryWrite(l.lone); !ok {
		l.rest = append(l.rest, l.lone...) // an error comes back when send writes it
		kick(l.wake)
		return
	}
	l.handedOver(len(l.lone))
	// Let the transport put it on the wire before the local store is written: on
	// few CPUs it would otherwise wait for this goroutine to block.
	runtime.Gosched()
}

// appendFrame appends the frame with its payload, compressed if that is worth it.
func (l *link) appendFrame(out []byte, f *frame) []byte {
	if f.msg != nil {
		return protocol.AppendFrame(out, f.msg, nil)
	}
	out, ok := l.appendCompressed(out, &f.data, f.pay)
	if ok {
		return out
	}
	return append(protocol.AppendFrame(out, &f.data, f.pay), f.pay...)
}

// send writes queued frames in order.
func (l *link) send() {
	defer l.v.fast.Done()
	var list []frame
	var out []byte
	for {
		l.writeMu.Lock()
		l.v.mu.Lock()
		list, l.queue, l.words = l.queue, list[:0], 0
		ack, leaving := l.wantAck, l.leaving
		l.wantAck = false
		l.ack = l.v.m.AckFor(l.id)
		current := l.v.links[l.id] == l
		l.v.mu.Unlock()
		late := len(l.rest) > 0
		out = append(out, l.rest...) // before what was queued after it
		l.rest = l.rest[:0]
		if ack && current {
			out = protocol.AppendFrame(out, &l.ack, nil)
		}
		var err error
		out, err = l.write(out, list)
		l.writeMu.Unlock()
		if err != nil {
			l.lost(err) // first: nothing is queued afterwards
			l.drain()
			return
		}
		if len(list) > 0 || ack || late {
			continue
		}
		if leaving {
			l.goodbye()
			return
		}
		if cap(out) > 4*gatherMax { // of large payloads, compressed; gathered ones never take so much
			out = nil
		}
		select {
		case <-l.wake:
		case <-l.dead:
			l.lost(io.ErrClosedPipe)
			l.drain()
			return
		}
	}
}

// put writes to the write stream. REQUIRES writeMu.
func (l *link) put(b []byte) error {
	l.writing.Store(l.v.now())
	_, err := l.conn.Write.Write(b)
	l.writing.Store(0)
	if err == nil {
		l.handedOver(len(b))
	}
	return err
}

// mark notes an operation that the next write will hand to the transport. REQUIRES
// writeMu.
func (l *link) mark(f *frame) {
	if f.msg == nil {
		l.marks = append(l.marks, mark{f.data.Op, f.data.Time})
	}
}

// handedOver counts what the transport has taken. REQUIRES writeMu.
func (l *link) handedOver(n int) {
	l.meter.sent.Add(uint64(n))
	if len(l.marks) == 0 {
		return
	}
	now := l.v.now()
	for _, k := range l.marks {
		l.meter.wire[kindOfData(k.op)].Add(time.Duration(now - k.at))
	}
	l.marks = l.marks[:0]
}

// confirmed counts what a peer has confirmed; it is the machine's Confirmed. REQUIRES
// v.mu.
func (v *Volume) confirmed(id replica.PeerID, op protocol.DataOp, took replica.Time) {
	if l := v.links[id]; l != nil {
		l.meter.remote[kindOfData(op)].Add(time.Duration(took))
	}
}

// write sends out and the frames, and releases their buffers whatever happens.
func (l *link) write(out []byte, list []frame) ([]byte, error) {
	var err error
	put := func(b []byte) {
		if err == nil && len(b) > 0 {
			err = l.put(b)
		}
	}
	for i := range list {
		f := &list[i]
		if err == nil {
			whole := len(f.pay) <= gatherMax
			if whole {
				out = l.appendFrame(out, f)
			} else {
				out, whole = l.appendCompressed(out, &f.data, f.pay)
			}
			if whole {
				l.mark(f)
			} else {
				put(protocol.AppendFrame(out, &f.data, f.pay))
				l.mark(f)
				put(f.pay)
				out = out[:0]
			}
			if len(out) >= gatherMax {
				put(out)
				out = out[:0]
			}
		}
		if f.buf != nil {
			f.buf.Release()
		}
		*f = frame{}
	}
	put(out)
	return out[:0], err
}

// drain releases the buffers of what will never be sent.
func (l *link) drain() {
	l.v.mu.Lock()
	list := l.queue
	l.queue = nil
	l.v.mu.Unlock()
	for i := range list {
		if b := list[i].buf; b != nil {
			b.Release()
		}
	}
}

// goodbye ends the sending direction and waits, bounded by finish's timer, for
// the peer to end its own.
func (l *link) goodbye() {
	l.writeMu.Lock()
	l.conn.Write.Close()
	l.writeMu.Unlock()
	<-l.dead
	l.drain()
}

// acknowledge sends what has been reached, at once if nobody is writing.
func (l *link) acknowledge() error {
	v := l.v
	if !l.writeMu.TryLock() {
		v.mu.Lock()
		l.wantAck = true
		v.mu.Unlock()
		kick(l.wake)
		return nil
	}
	defer l.writeMu.Unlock()
	v.mu.Lock()
	current := v.links[l.id] == l
	l.ack = v.m.AckFor(l.id)
	v.mu.Unlock()
	if !current {
		return nil
	}
	return l.put(protocol.AppendFrame(l.ackOut[:0], &l.ack, nil))
}
