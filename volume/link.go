package volume

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// link is one connection to a peer. Its goroutines: send writes the queued
// frames, receive reads the write stream and applies what the peer sends, flush
// makes it durable, bulkReceive serves the bulk stream, and, while a sync runs
// from here, runPlan drives it. All end when the streams are aborted.
type link struct {
	v    *Volume
	id   replica.PeerID
	name string
	mode protocol.Mode
	conn Conn

	// Guarded by v.mu.
	queue    []frame
	words    int   // messages in queue, writes and bitmaps not counted
	cause    error // why it was ended from here, nil: the streams say why
	wantAck  bool
	leaving  bool // the queue is the last that is sent
	flushSeq uint64

	writeMu sync.Mutex // held while writing to conn.Write; taken before v.mu
	// Guarded by writeMu: kept, so that an acknowledgement costs no allocation.
	ack    protocol.Ack
	ackOut [protocol.HeaderLen + 32]byte

	bulkMu  sync.Mutex // the same for conn.Bulk
	try     TryWriter  // conn.Write, if it is one
	rest    []byte     // guarded by writeMu: taken from the queue, to be written next
	lone    []byte     // guarded by writeMu: pushNow's buffer
	wake    chan struct{}
	resume  chan struct{}
	flushes chan struct{}
	plan    chan struct{}
	dead    chan struct{} // closed when the streams are aborted
	quiet   chan struct{} // closed when nothing of this link is being applied any more
	readers atomic.Int32  // receive and bulkReceive, while they run
	writing atomic.Int64  // when the write to conn.Write under way began; 0: none
	filling atomic.Int64  // the same for conn.Bulk
	once    sync.Once
	bulk    bulkState
}

// frame is one thing to send. A write holds a reference to its buffer until it is
// in the transport's hands.
type frame struct {
	data protocol.Data
	msg  protocol.Message
	buf  *blockdev.Buffer
	pay  []byte
}

const (
	readBuffer = 256 << 10
	// gatherMax is how much of queued frames is copied together for one write
	// to the stream.
	gatherMax = 64 << 10
	// lonelyMax and lonelyFlights bound what pushNow writes: small writes, of
	// which few are in flight.
	lonelyMax     = 16 << 10
	lonelyFlights = 2
	// lingerTime is how long a last word (a refusal, a goodbye) may take.
	lingerTime = 2 * time.Second
	// wordsMax bounds the messages that wait for a peer which asks and does not
	// listen. A sound one is owed a handful.
	wordsMax = 4096
	// ackEvery: so many applied bytes are acknowledged even while more come in.
	ackEvery = 256 << 10
	// bulkTimeout bounds one write to the bulk stream, and the answer to what was
	// sent on it: zeroing 1 GiB on a slow disk takes a while.
	bulkTimeout = time.Minute
)

// AttachPeer implements Control. A connection that replaces a live one ends that
// first: the peer has given it up.
func (v *Volume) AttachPeer(peer string, c Conn) error {
	id, err := v.peerID(peer)
	if err != nil {
		refuseConn(c, err.(*Error))
		return err
	}
	l := &link{v: v, id: id, name: peer, mode: v.opt.Peers[id].mode(), conn: c,
		wake: make(chan struct{}, 1), resume: make(chan struct{}, 1), flushes: make(chan struct{}, 1),
		plan: make(chan struct{}, 1), dead: make(chan struct{}), quiet: make(chan struct{})}
	l.try, _ = c.Write.(TryWriter)
	l.readers.Store(2)
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		e := refuse(protocol.CodeShutdown, "%s is stopping", v.opt.Self)
		refuseConn(c, e)
		return e
	}
	if old := v.links[id]; old != nil {
		v.links[id] = nil
		v.m.Lost(v.now(), id, errors.New("replaced by a new connection"))
		old.abort()
	}
	v.links[id] = l
	err = v.m.Linked(v.now(), id)
	if err != nil {
		v.links[id] = nil
		v.unlockAndRun()
		var r *replica.Refusal
		errors.As(err, &r)
		e := refuse(r.Code, "%s", r.Text)
		refuseConn(c, e)
		return e
	}
	v.fast.Add(4)
	v.unlockAndRun()
	go l.send()
	go l.receive()
	go l.flush()
	go l.bulkReceive()
	return nil
}

// refuseConn tells the peer why and ends the streams, the bulk stream last: its
// end must not reach the peer before the reason.
func refuseConn(c Conn, e *Error) {
	go func() {
		t := time.AfterFunc(lingerTime, c.Write.Abort)
		defer t.Stop()
		if _, err := c.Write.Write(protocol.AppendFrame(nil, &protocol.Refuse{Code: e.Code, Text: e.Text}, nil)); err == nil {
			c.Write.Close()
			io.Copy(io.Discard, io.LimitReader(c.Write, 1<<20)) // until the peer has read it
		}
		c.Write.Abort()
		c.Bulk.Abort()
	}()
}

// Linked reports whether there is a connection to the peer, settled or not.
func (v *Volume) Linked(peer string) bool {
	id, err := v.peerID(peer)
	if err != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.links[id] != nil
}

// PeerUnreachable implements Control.
func (v *Volume) PeerUnreachable(peer string, err error) {
	id, unknown := v.peerID(peer)
	if unknown != nil {
		return
	}
	v.mu.Lock()
	v.m.Unreachable(v.now(), id, err.Error())
	v.unlockAndRun()
}

func (v *Volume) peerID(name string) (replica.PeerID, error) {
	for i, p := range v.opt.Peers {
		if p.Name == name {
			return replica.PeerID(i), nil
		}
	}
	return 0, refuse(protocol.CodeUnknownVolume, "%s is not a peer of volume %s", name, v.opt.Name)
}

// enqueue appends a frame and wakes the sender; now: the caller is to call pushNow
// instead, without the lock. REQUIRES v.mu.
func (l *link) enqueue(e *replica.Effect) (now bool) {
	if l.cause != nil {
		return false
	}
	f := frame{msg: e.Msg}
	if e.Msg != nil {
		if e.Msg.Type() != protocol.TypeBitmapPart {
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
	l.queue, l.words = l.queue[:0], 0
	l.v.mu.Unlock()
	l.lone = f.append(l.lone[:0])
	if f.buf != nil {
		f.buf.Release()
	}
	if ok, _ := l.try.TryWrite(l.lone); !ok {
		l.rest = append(l.rest, l.lone...) // an error comes back when send writes it
		kick(l.wake)
		return
	}
	// Let the transport put it on the wire before the local store is written: on
	// few CPUs it would otherwise wait for this goroutine to block.
	runtime.Gosched()
}

// append appends the frame with its payload.
func (f *frame) append(out []byte) []byte {
	if f.msg != nil {
		return protocol.AppendFrame(out, f.msg, nil)
	}
	return append(protocol.AppendFrame(out, &f.data, f.pay), f.pay...)
}

// finish ends the link after what is queued is sent. REQUIRES v.mu; the link is no
// longer the volume's.
func (l *link) finish(error) {
	l.leaving = true
	kick(l.wake)
	time.AfterFunc(lingerTime, l.abort)
}

// abort ends the streams now.
func (l *link) abort() {
	l.once.Do(func() {
		close(l.dead)
		l.conn.Write.Abort()
		l.conn.Bulk.Abort()
	})
}

// lost reports the connection as gone, if it still is the volume's.
func (l *link) lost(err error) {
	v := l.v
	v.mu.Lock()
	if v.links[l.id] == l {
		v.links[l.id] = nil
		if l.cause != nil {
			err = l.cause
		}
		v.m.Lost(v.now(), l.id, err)
		v.unlockAndRun()
	} else {
		v.mu.Unlock()
	}
	l.abort()
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
	return err
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
			if len(f.pay) <= gatherMax {
				out = f.append(out)
			} else {
				put(protocol.AppendFrame(out, &f.data, f.pay))
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

// dropStalled ends the links whose peer has taken nothing for too long.
func (v *Volume) dropStalled() {
	v.mu.Lock()
	now := v.now()
	var stalled []*link
	for _, l := range v.links {
		if l == nil {
			continue
		}
		since := func(at int64) time.Duration {
			if at == 0 {
				return 0
			}
			return time.Duration(now - at)
		}
		switch wait, bulk := since(l.writing.Load()), max(since(l.filling.Load()), since(l.bulk.waiting)); {
		case wait > v.writeTimeout:
			l.cause = fmt.Errorf("%s has not read for %v", l.name, v.writeTimeout)
		case bulk > v.bulkTimeout:
			l.cause = fmt.Errorf("%s has not gone on with the sync for %v", l.name, v.bulkTimeout)
		default:
			continue
		}
		stalled = append(stalled, l)
	}
	v.mu.Unlock()
	for _, l := range stalled {
		l.lost(nil)
	}
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

// frameReader reads frames from a stream.
type frameReader struct {
	r    *bufio.Reader
	dec  protocol.Decoder
	head [protocol.HeaderLen]byte
	body []byte
	pool *blockdev.Pool
	stop <-chan struct{}
}

func newFrameReader(s Stream, pool *blockdev.Pool, stop <-chan struct{}) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(s, readBuffer), body: make([]byte, protocol.BodyMax), pool: pool, stop: stop}
}

// next returns the next message, valid until the next call, and its payload, which
// the caller releases.
func (f *frameReader) next() (protocol.Message, *blockdev.Buffer, error) {
	for {
		if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
			return nil, nil, err
		}
		h, err := protocol.ParseHeader(f.head[:])
		if err != nil {
			return nil, nil, err
		}
		body := f.body[:h.BodyLen]
		if _, err := io.ReadFull(f.r, body); err != nil {
			return nil, nil, err
		}
		var buf *blockdev.Buffer
		var pay []byte
		if h.PayloadLen > 0 {
			if buf = f.pool.Get(h.PayloadLen, f.stop); buf == nil {
				return nil, nil, io.ErrClosedPipe
			}
			pay = buf.Bytes()
			if _, err := io.ReadFull(f.r, pay); err != nil {
				buf.Release()
				return nil, nil, err
			}
		}
		msg, err := f.dec.Decode(h, f.head[:], body, pay)
		if err == nil {
			return msg, buf, nil
		}
		if buf != nil {
			buf.Release()
		}
		if !errors.Is(err, protocol.ErrIgnored) {
			return nil, nil, err
		}
	}
}

// payload returns the bytes of a frame's payload; a frame may have none.
func payload(buf *blockdev.Buffer) []byte {
	if buf == nil {
		return nil
	}
	return buf.Bytes()
}

// more reports whether the next frame is here already, whole.
func (f *frameReader) more() bool {
	if f.r.Buffered() < protocol.HeaderLen {
		return false
	}
	b, err := f.r.Peek(protocol.HeaderLen)
	if err != nil {
		return false
	}
	h, err := protocol.ParseHeader(b)
	return err == nil && f.r.Buffered() >= protocol.HeaderLen+h.BodyLen+h.PayloadLen
}

// receive reads the write stream.
func (l *link) receive() {
	defer l.v.fast.Done()
	defer l.readerEnds()
	err := l.turn()
	if err == nil {
		err = l.receiveAll()
	}
	l.lost(err)
}

// turn waits until nothing that came over an earlier link to the peer is being
// applied: a write that hangs in the store must not land on what is sent again.
// Bulk data needs no turn: it is refused before the handshake, which is read here.
func (l *link) turn() error {
	v := l.v
	for {
		v.mu.Lock()
		last := v.applying[l.id]
		if last == nil || last.readers.Load() == 0 {
			v.applying[l.id] = l
			v.mu.Unlock()
			return nil
		}
		v.mu.Unlock()
		select {
		case <-last.quiet:
		case <-l.dead:
			return io.ErrClosedPipe
		}
	}
}

func (l *link) readerEnds() {
	if l.readers.Add(-1) == 0 {
		close(l.quiet)
	}
}

func (l *link) receiveAll() error {
	v := l.v
	fr := newFrameReader(l.conn.Write, v.opt.Pool, l.dead)
	owed := 0 // bytes to acknowledge, headers included
	for {
		if owed > ackEvery || owed > 0 && !fr.more() {
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
			err = l.apply(m, buf, !fr.more())
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
	}
	if l.mode == protocol.ModeB && d.Op != protocol.DataFlush {
		if err := l.acknowledge(); err != nil { // received: all that B promises
			return err
		}
	}
	durable := d.Op == protocol.DataFlush || d.Flags&protocol.DataFUA != 0
	switch d.Op {
	case protocol.DataWrite:
		err = v.opt.Store.WriteAt(payload(buf), d.Off, 0)
	case protocol.DataZero:
		var fl blockdev.Flags
		if d.Flags&protocol.DataNoHole != 0 {
			fl = blockdev.NoHole
		}
		err = v.opt.Store.Zero(d.Off, d.Len, fl)
	case protocol.DataTrim:
		err = v.opt.Store.Trim(d.Off, d.Len, 0)
	case protocol.DataFlush:
	}
	v.mu.Lock()
	if v.links[l.id] == l || err != nil {
		v.m.PeerApplied(v.now(), l.id, d.Seq, err)
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
	err := v.flushStore()
	v.mu.Lock()
	if v.links[l.id] == l || err != nil {
		v.m.PeerDurable(v.now(), l.id, seq, err)
	}
	v.unlockAndRun()
	return err
}
