package volume

import (
	"errors"
	"fmt"
	"io"
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
	v     *Volume
	id    replica.PeerID
	name  string
	mode  protocol.Mode
	conn  Conn
	meter *PeerMeter

	// Guarded by v.mu.
	queue    []frame
	words    int   // messages in queue, writes and bitmaps not counted
	cause    error // why it was ended from here, nil: the streams say why
	wantAck  bool
	leaving  bool // the queue is the last that is sent
	flushSeq uint64
	asked    []serve    // reads of the peer that wait for a server
	servers  int        // goroutines that serve them
	storing  int        // its operations in the store of disk, see enter
	disk     *localDisk // that it entered last

	writeMu sync.Mutex // held while writing to conn.Write; taken before v.mu
	// Guarded by writeMu: kept, so that an acknowledgement costs no allocation.
	ack    protocol.Ack
	ackOut [protocol.HeaderLen + 32]byte

	bulkMu  sync.Mutex // the same for conn.Bulk
	packed  []byte     // guarded by bulkMu: packBulk's buffer
	try     TryWriter  // conn.Write, if it is one
	rest    []byte     // guarded by writeMu: taken from the queue, to be written next
	marks   []mark     // guarded by writeMu: operations in what is to be written next
	lone    []byte     // guarded by writeMu: pushNow's buffer
	wake    chan struct{}
	resume  chan struct{}
	flushes chan struct{}
	plan    chan struct{}
	dead    chan struct{} // closed when the streams are aborted
	writing atomic.Int64  // when the write to conn.Write under way began; 0: none
	filling atomic.Int64  // the same for conn.Bulk
	storeAt atomic.Int64  // when the store was given what the peer sent; 0: it has nothing
	once    sync.Once
	bulk    bulkState
	shared  bool // runPlan's: the bulk stream has its share
}

// frame is one thing to send. A write holds a reference to its buffer until it is
// in the transport's hands.
type frame struct {
	data protocol.Data
	msg  protocol.Message
	buf  *blockdev.Buffer
	pay  []byte
}

// mark is an operation on its way into the transport's hands.
type mark struct {
	op protocol.DataOp
	at replica.Time // when it was issued
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
	// ackTime: and what was applied so long ago, ns, is. Small writes on a slow disk
	// take longer than WriteTimeout to make ackEvery.
	ackTime = int64(100e6)
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
	l := &link{v: v, id: id, name: peer, mode: v.peers()[id].mode(), conn: c, meter: v.meter.peer(peer),
		wake: make(chan struct{}, 1), resume: make(chan struct{}, 1), flushes: make(chan struct{}, 1),
		plan: make(chan struct{}, 1), dead: make(chan struct{})}
	l.try, _ = c.Write.(TryWriter)
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
	for i, p := range v.peers() {
		if p.Name == name {
			return replica.PeerID(i), nil
		}
	}
	return 0, refuse(protocol.CodeUnknownVolume, "%s is not a peer of volume %s", name, v.opt.Name)
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

// dropStalled ends the links whose peer has taken nothing for too long.
func (v *Volume) dropStalled() {
	timeout := v.tuned.Load().WriteTimeout
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
		owed := int64(0)
		if plan := v.m.Plan(l.id); plan != nil {
			owed = plan.Owed()
		}
		switch wait, bulk := since(l.writing.Load()), max(since(l.filling.Load()), since(owed)); {
		case wait > timeout:
			l.cause = fmt.Errorf("%s has not read for %v", l.name, timeout)
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
