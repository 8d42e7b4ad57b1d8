package sim

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
	"github.com/qrbd/qrbd/resync"
)

// link imitates volume.link: its goroutines send, receive, flush, bulkReceive and
// runPlan are chains of events.
type link struct {
	p    *process
	w    *World
	id   replica.PeerID
	peer *node
	mode protocol.Mode
	e    *end

	queue    []outFrame
	wantAck  bool
	leaving  bool
	flushSeq uint64
	storing  int // its operations in the store

	dead     bool // aborted
	sending  bool // the sender is awake or writing
	turned   bool // nothing of an earlier link is being applied any more
	rx       lane
	bulk     lane
	owed     int // bytes
	owedAt   int64
	hold     func() // the receiver waits for this stream to be released
	flushing bool
	reflush  bool
	planning bool
	planKick bool
	planWait uint64 // names the wait that may be ended by a kick
	wake     func() // ends the wait
	target   resync.Target
}

// lane is the receiving side of one stream.
type lane struct {
	q     []packet
	busy  bool
	ended bool
	dec   protocol.Decoder
}

type outFrame struct {
	data protocol.Data
	msg  protocol.Message
	vals []uint64
}

func newLink(p *process, id replica.PeerID, peer *node, e *end) *link {
	return &link{p: p, w: p.w, id: id, peer: peer, mode: p.w.sc.mode(p.n, peer), e: e}
}

func (l *link) begin() {
	l.e.link = l
	for kind, list := range l.e.early {
		for _, pk := range list {
			l.p.after(0, func() { l.arrived(kind, pk) })
		}
		l.e.early[kind] = nil
	}
}

func (l *link) current() bool { return l.p.links[l.id] == l }

// active reports whether something is still being done for the link.
func (l *link) active() bool { return l.rx.busy || l.bulk.busy || l.flushing || l.planning }

// refuse is volume.refuseConn.
func (l *link) refuse(code protocol.Code, text string) {
	l.dead = true
	l.e.link = l
	l.e.out[writeStream].send(l.w.frame(&protocol.Refuse{Code: code, Text: text}, nil))
	l.e.out[writeStream].send(packet{end: errEOF})
	l.w.at(l.w.between(10*milli, 2*second), l.e.abort)
}

func (l *link) enqueue(e *replica.Effect) {
	f := outFrame{msg: e.Msg}
	if e.Msg == nil {
		f.data = e.Data
		if e.Data.Op == protocol.DataWrite {
			f.vals = e.Req.Tag.(*clientOp).vals
		}
	}
	l.queue = append(l.queue, f)
	l.kickSend()
}

// payload makes bytes of sector values: each sector begins with its value. They are
// valid until the next call.
func (w *World) payload(vals []uint64) []byte {
	if n := len(vals) * sectorSize; n > len(w.bytes) {
		w.bytes = make([]byte, n)
	}
	b := w.bytes[:len(vals)*sectorSize]
	for i, v := range vals {
		binary.LittleEndian.PutUint64(b[i*sectorSize:], v)
	}
	return b
}

// frame encodes a message with the values of its payload.
func (w *World) frame(m protocol.Message, vals []uint64) packet {
	return packet{frame: protocol.AppendFrame(nil, m, w.payload(vals)), vals: vals}
}

func (l *link) finish() {
	l.leaving = true
	l.kickSend()
	l.p.after(2*second, l.abort)
}

func (l *link) abort() {
	if l.dead {
		return
	}
	l.dead = true
	l.e.abort()
	if fn := l.hold; fn != nil {
		l.hold = nil
		fn()
	}
	l.pumpRx()
	l.pumpBulk()
}

// lost is link.lost.
func (l *link) lost(err error) {
	if l.current() {
		l.p.links[l.id] = nil
		l.p.w.log("%s lost %s: %v", l.p.n.name, l.peer.name, err)
		l.p.m.Lost(l.p.now(), l.id, err)
		l.p.run()
	}
	l.abort()
}

// deadStream: the session is gone. Whoever reads or writes finds out at its own
// time.
func (l *link) deadStream(why error) {
	l.p.after(l.p.soon(), func() { l.arrived(writeStream, packet{end: why}) })
	l.p.after(l.p.soon(), func() { l.arrived(bulkStream, packet{end: why}) })
}

func (l *link) kickSend() {
	if l.sending || l.dead {
		return
	}
	l.sending = true
	l.p.after(l.p.soon(), l.send)
}

// send is one round of link.send.
func (l *link) send() {
	if l.dead {
		l.sending = false
		l.queue = nil
		return
	}
	list := l.queue
	l.queue = nil
	ack, leaving := l.wantAck, l.leaving
	l.wantAck = false
	a := l.p.m.AckFor(l.id)
	st := l.e.out[writeStream]
	var err error
	if ack && l.current() {
		err = l.sendAck(st, a)
	}
	for i := range list {
		f := &list[i]
		if err != nil {
			break
		}
		if f.msg != nil {
			if l.w.trace {
				l.w.log("%s -> %s %s", l.p.n.name, l.peer.name, show(f.msg))
			}
			l.w.pass(moment(f.msg.Type()), l.p.n, l.peer)
			err = st.send(l.w.frame(f.msg, nil))
			continue
		}
		if l.w.trace {
			l.w.log("%s -> %s data %d op %d [%d +%d] fl %d", l.p.n.name, l.peer.name, f.data.Seq, f.data.Op, f.data.Off, f.data.Len, f.data.Flags)
		}
		err = st.send(l.w.frame(&f.data, f.vals))
	}
	if err != nil {
		l.sending = false
		l.lost(err)
		return
	}
	idle := len(list) == 0 && !ack
	if idle && leaving {
		st.send(packet{end: errEOF}) // goodbye; finish's timer ends it
		return
	}
	if idle {
		l.sending = false
		if len(l.queue) > 0 || l.wantAck || l.leaving {
			l.kickSend()
		}
		return
	}
	if st.full() {
		st.wake = func() { l.p.enter(l.send) }
		return
	}
	l.p.after(l.p.soon(), l.send)
}

func show(m protocol.Message) string {
	s := fmt.Sprintf("%v %+v", m.Type(), m)
	if len(s) > 400 {
		s = s[:400]
	}
	return s
}

// acknowledge is link.acknowledge.
func (l *link) acknowledge() error {
	if l.sending || l.w.p(0.05) {
		l.wantAck = true
		l.kickSend()
		return nil
	}
	if !l.current() {
		return nil
	}
	return l.sendAck(l.e.out[writeStream], l.p.m.AckFor(l.id))
}

func (l *link) sendAck(st *stream, a protocol.Ack) error {
	if l.w.trace {
		l.w.log("%s -> %s ack %d/%d/%d", l.p.n.name, l.peer.name, a.Received, a.Applied, a.Durable)
	}
	return st.send(l.w.frame(&a, nil))
}

// arrived takes a packet of a stream.
func (l *link) arrived(kind int, pk packet) {
	if kind == writeStream {
		l.rx.q = append(l.rx.q, pk)
		l.pumpRx()
		return
	}
	l.bulk.q = append(l.bulk.q, pk)
	l.pumpBulk()
}

// decode reads a frame as frameReader.next does.
func (l *link) decode(d *protocol.Decoder, pk packet) protocol.Message {
	frame := pk.frame
	h, err := protocol.ParseHeader(frame)
	if err != nil {
		l.w.fail("%s: header from %s: %v", l.p.n.name, l.peer.name, err)
	}
	body := frame[protocol.HeaderLen:][:h.BodyLen]
	msg, err := d.Decode(h, frame[:protocol.HeaderLen], body, l.w.payload(pk.vals))
	if err != nil {
		l.w.fail("%s: frame from %s: %v", l.p.n.name, l.peer.name, err)
	}
	return msg
}

// turn is link.turn.
func (l *link) turn() bool {
	if l.turned || l.dead {
		return true
	}
	if l.p.late() != nil {
		l.w.count("waited for what is late")
		l.p.after(milli, l.pumpRx)
		return false
	}
	l.p.applying[l.id] = l
	l.turned = true
	return true
}

// pumpRx is link.receiveAll.
func (l *link) pumpRx() {
	if !l.turn() {
		return
	}
	for !l.rx.busy && !l.rx.ended && !l.p.dead {
		if l.dead {
			l.rx.ended = true
			l.lost(errClosed)
			return
		}
		if l.owed > 256<<10 || l.owed > 0 && (len(l.rx.q) == 0 || l.w.now-l.owedAt > 100*milli) {
			l.owed = 0
			if err := l.acknowledge(); err != nil {
				l.rxEnd(err)
				return
			}
		}
		if len(l.rx.q) == 0 {
			return
		}
		pk := l.rx.q[0]
		l.rx.q = l.rx.q[1:]
		if pk.end != nil {
			l.rxEnd(pk.end)
			return
		}
		msg := l.decode(&l.rx.dec, pk)
		switch m := msg.(type) {
		case *protocol.Data:
			if l.owed == 0 {
				l.owedAt = l.w.now
			}
			l.owed += protocol.HeaderLen + len(pk.vals)*sectorSize
			l.rx.busy = true
			l.apply(m, pk.vals)
		case *protocol.Ack:
			if l.current() {
				l.p.m.Acked(l.p.now(), l.id, *m)
			}
			l.p.run()
		default:
			if _, ok := msg.(*protocol.Handover); ok {
				l.p.inherit(l.p.n.peers[l.id].proc)
			}
			if l.current() {
				l.p.take(l, msg)
			}
			l.p.run()
			l.rx.busy = true
			l.holdOn(l.rxDone)
		}
	}
}

// rxDone goes on after a message that took time.
func (l *link) rxDone(err error) {
	l.rx.busy = false
	if err != nil {
		l.rxEnd(err)
		return
	}
	l.pumpRx()
}

func (l *link) rxEnd(err error) {
	l.rx.ended = true
	l.lost(err)
}

// holdOn calls then once the machine does not hold the stream.
func (l *link) holdOn(then func(error)) {
	if !(l.current() && l.p.m.Held(l.id)) {
		then(nil)
		return
	}
	if l.dead {
		then(errClosed)
		return
	}
	l.hold = func() {
		if l.dead {
			then(errClosed)
			return
		}
		l.holdOn(then)
	}
}

func (l *link) resumed() {
	if l.hold == nil {
		return
	}
	l.p.after(l.p.soon(), func() {
		if fn := l.hold; fn != nil {
			l.hold = nil
			fn()
		}
	})
}

// apply is link.apply.
func (l *link) apply(d *protocol.Data, vals []uint64) {
	p := l.p
	if !l.current() {
		l.rxDone(errClosed)
		return
	}
	wait, err := p.m.PeerData(p.now(), l.id, d)
	p.run()
	if errors.Is(err, replica.ErrDiskFailed) {
		l.rxDone(nil) // the connection stays for what it has to say
		return
	}
	if err != nil {
		l.rxDone(err)
		return
	}
	if wait {
		l.holdOn(func(err error) {
			if err != nil || !l.current() {
				l.rxDone(errClosed)
				return
			}
			if !p.m.MayApply() {
				l.rxDone(nil)
				return
			}
			l.applyNow(d, vals)
		})
		return
	}
	l.applyNow(d, vals)
}

func (l *link) applyNow(d *protocol.Data, vals []uint64) {
	p := l.p
	durable := d.Op == protocol.DataFlush || d.Flags&protocol.DataFUA != 0
	seq := d.Seq
	done := func(err error) {
		if l.current() || err != nil {
			p.m.PeerApplied(p.now(), l.id, seq, err)
		}
		if err == nil && durable && l.mode == protocol.ModeC {
			l.flushSeq = seq
			l.kickFlush()
		}
		p.run()
		if err == nil && durable && l.mode != protocol.ModeC {
			l.makeDurable(seq, func(error) { l.rxDone(nil) })
			return
		}
		l.rxDone(nil) // a failed store is the machine's business
	}
	l.enter(d.Seq, func(err error) {
		if err != nil {
			l.rxDone(err)
			return
		}
		if l.mode == protocol.ModeB && d.Op != protocol.DataFlush {
			_ = l.acknowledge()
		}
		left := func(err error) {
			l.leave()
			done(err)
		}
		if d.Op == protocol.DataFlush {
			left(nil)
			return
		}
		if d.Op != protocol.DataWrite {
			vals = nil
		}
		l.keep(d.Off, d.Len, d.Op != protocol.DataWrite, func(err error) {
			if err != nil {
				l.leave()
				l.rxDone(err)
				return
			}
			p.n.disk.write(p, d.Off, d.Len, vals, false, left)
		})
	})
}

func (l *link) kickFlush() {
	if l.flushing {
		l.reflush = true
		return
	}
	l.flushing = true
	l.p.after(l.p.soon(), l.flush)
}

// flush is one round of link.flush.
func (l *link) flush() {
	if l.dead {
		l.flushing = false
		return
	}
	l.reflush = false
	l.makeDurable(l.flushSeq, func(err error) {
		if err == nil {
			err = l.acknowledge()
		}
		if err == nil && l.reflush && !l.dead {
			l.p.after(l.p.soon(), l.flush)
			return
		}
		l.flushing = false
	})
}

// makeDurable is link.makeDurable.
func (l *link) makeDurable(seq uint64, then func(error)) {
	p := l.p
	p.n.disk.flush(p, func(err error) {
		if l.current() || err != nil {
			p.m.PeerDurable(p.now(), l.id, seq, err)
		}
		p.run()
		then(err)
	})
}

var errStore = errors.New("the local store failed during the sync")
