package volume

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// op is a client's request, or a piece of one, on its way through the machine.
type op struct {
	r    replica.Request
	user *blockdev.Request // nil for a piece
	of   *split            // nil for a whole request
	buf  *blockdev.Buffer  // held by the client until it is answered
	data []byte            // buf's bytes of this piece
	dev  blockdev.Flags
	at   replica.Time // when the client asked

	answered bool // and still with a store that does not answer
	parted   bool // buf is the store's alone
}

// split counts the pieces of a request larger than a frame's payload.
type split struct {
	user *blockdev.Request
	at   replica.Time // when the client asked
	left atomic.Int32
	mu   sync.Mutex
	err  error // the first piece's that failed
}

var opPool = sync.Pool{New: func() any { return new(op) }}

// Submit implements blockdev.Submitter.
func (v *Volume) Submit(r *blockdev.Request) {
	if err := v.checkRequest(r); err != nil || r.Len == 0 && r.Op != blockdev.OpFlush {
		r.Done(r, err)
		return
	}
	if r.Op == blockdev.OpWrite && r.Len > protocol.PayloadMax {
		v.submitPieces(r)
		return
	}
	o := newOp(r)
	o.user = r
	if r.Buf != nil {
		o.buf, o.data = r.Buf, r.Buf.Bytes()[:r.Len]
	}
	v.submit(o)
}

func (v *Volume) checkRequest(r *blockdev.Request) error {
	if r.Op == blockdev.OpFlush {
		return nil
	}
	if err := blockdev.CheckRange(v.size, r.Off, r.Len); err != nil {
		return err
	}
	if r.Flags&blockdev.FastZero != 0 {
		// Whether it is fast depends on every replica's store.
		return blockdev.ErrNotFast
	}
	return nil
}

func newOp(r *blockdev.Request) *op {
	o := opPool.Get().(*op)
	*o = op{}
	o.r = replica.Request{Op: machineOp(r.Op), FUA: r.Flags&blockdev.FUA != 0, NoHole: r.Flags&blockdev.NoHole != 0, Off: r.Off, Len: r.Len, Tag: o}
	o.dev = r.Flags
	return o
}

func machineOp(o blockdev.Op) replica.Op {
	switch o {
	case blockdev.OpRead:
		return replica.Read
	case blockdev.OpWrite:
		return replica.Write
	case blockdev.OpZero:
		return replica.Zero
	case blockdev.OpTrim:
		return replica.Trim
	case blockdev.OpFlush:
		return replica.Flush
	}
	panic("volume: unknown operation " + o.String())
}

func (v *Volume) submitPieces(r *blockdev.Request) {
	n := (r.Len + protocol.PayloadMax - 1) / protocol.PayloadMax
	s := &split{user: r, at: v.now()}
	v.meter.began[OpKindWrite].Add(1)
	s.left.Store(int32(n))
	b := r.Buf.Bytes()
	for i := range n {
		from := i * protocol.PayloadMax
		to := min(from+protocol.PayloadMax, r.Len)
		o := newOp(r)
		o.r.Off, o.r.Len = r.Off+from, to-from
		o.of, o.buf, o.data = s, r.Buf, b[from:to]
		v.submit(o)
	}
}

func (v *Volume) submit(o *op) {
	o.at = v.now()
	if o.of == nil {
		v.meter.began[kindOf(o.r.Op)].Add(1)
	}
	v.mu.Lock()
	v.m.Submit(v.now(), &o.r)
	v.unlockAndWork()
}

// local executes the local part of a request: on the spot when that does not take
// long and the caller may wait for the store, otherwise by a worker.
func (v *Volume) local(r *replica.Request, here bool) {
	if r.Internal() {
		v.hand(&op{r: replica.Request{Op: r.Op, Off: r.Off, Len: r.Len, Tag: r}})
		return
	}
	o := r.Tag.(*op)
	switch r.Op {
	case replica.Read:
		if nowait := v.disk.Load().nowait; nowait != nil {
			if ok, err := nowait.ReadNowait(o.data, r.Off); ok {
				v.localDone(r, err)
				return
			}
		}
	case replica.Write:
		if here && r.Len <= inlineMax && !r.FUA && !v.opt.Archives.Live() {
			v.localDone(r, v.store().WriteAt(o.data, r.Off, 0))
			return
		}
	case replica.Flush:
		if here && v.flushIsShort() {
			v.localDone(r, v.flushStore())
			return
		}
	case replica.Zero, replica.Trim, replica.Pull:
	}
	v.hand(o)
}

// shortFlush is below what handing a flush to another goroutine costs and saves.
const shortFlush = 100 * time.Microsecond

// flushIsShort reports whether the store's flushes have lately been done in less
// time than a hand-over is worth (memory, a disk with a protected cache).
func (v *Volume) flushIsShort() bool {
	took := v.flushTook.Load()
	return took != 0 && took < int64(shortFlush)
}

// flushStore flushes the store and keeps a running mean of how long that takes.
func (v *Volume) flushStore() error {
	began := time.Now()
	err := v.store().Flush()
	took := int64(time.Since(began))
	if old := v.flushTook.Load(); old != 0 {
		took = (3*old + took) / 4
	}
	v.flushTook.Store(took)
	return err
}

// hand gives an operation to the workers.
func (v *Volume) hand(o *op) {
	if !v.work.put(o) {
		v.localDone(o.request(), blockdev.ErrShutdown)
	}
}

// request returns the machine's request behind an operation.
func (o *op) request() *replica.Request {
	if own, ok := o.r.Tag.(*replica.Request); ok {
		return own
	}
	return &o.r
}

func (v *Volume) worker() {
	defer v.ended.Done()
	for o := v.work.take(); o != nil; o = v.work.take() {
		v.execute(o)
	}
}

func (v *Volume) execute(o *op) {
	r := o.request()
	if err := v.keepLocal(r); err != nil {
		v.localDone(r, err)
		return
	}
	var err error
	switch r.Op {
	case replica.Read:
		err = v.store().ReadAt(o.data, r.Off)
	case replica.Write:
		err = v.store().WriteAt(o.data, r.Off, o.dev&blockdev.FUA)
	case replica.Zero:
		err = v.store().Zero(r.Off, r.Len, o.dev)
	case replica.Trim:
		err = v.store().Trim(r.Off, r.Len, o.dev&blockdev.FUA)
	case replica.Flush:
		err = v.flushStore()
	case replica.Pull:
		err = v.writePulled(r)
	}
	v.localDone(r, err)
}

func (v *Volume) localDone(r *replica.Request, err error) {
	fatal := err != nil
	switch {
	case errors.Is(err, blockdev.ErrShutdown):
		fatal = false // it was not executed
	case errors.Is(err, blockdev.ErrNoSpace):
		fatal = r.Op == replica.Flush || r.Op == replica.Read // only what is lost in a cache cannot be told
	}
	now := v.now()
	if err != nil && !errors.Is(err, blockdev.ErrShutdown) {
		v.meter.localBad[kindOf(r.Op)].Add(1)
	}
	v.mu.Lock()
	if r.Late() {
		v.stuckDone(r)
	} else if !r.Internal() {
		v.meter.local[kindOf(r.Op)].Add(time.Duration(now - r.Issued()))
	}
	v.m.LocalDone(now, r, err, fatal)
	v.unlockAndWork()
}

// complete answers the client.
func (v *Volume) complete(r *replica.Request, err error) {
	if r.Internal() {
		v.mu.Lock()
		v.m.Finished(v.now(), r)
		v.unlockAndRun()
		return
	}
	o := r.Tag.(*op)
	err = clientError(err)
	user, of := o.user, o.of
	if of == nil {
		v.meter.done(kindOf(r.Op), r.Len, time.Duration(v.now()-o.at), err)
	}
	if r.Late() { // the store still has it
		v.answerStuck(o)
	} else {
		*o = op{}
		opPool.Put(o)
	}
	if of == nil {
		user.Done(user, err)
		return
	}
	if err != nil {
		of.mu.Lock()
		if of.err == nil {
			of.err = err
		}
		of.mu.Unlock()
	}
	if of.left.Add(-1) == 0 {
		v.meter.done(OpKindWrite, of.user.Len, time.Duration(v.now()-of.at), of.err)
		of.user.Done(of.user, of.err)
	}
}

// clientError gives the machine's errors the names that frontends know.
func clientError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, replica.ErrNotPrimary), errors.Is(err, replica.ErrStopping):
		return errors.Join(blockdev.ErrShutdown, err)
	case errors.Is(err, replica.ErrDiskFailed), errors.Is(err, replica.ErrNoData):
		return errors.Join(blockdev.ErrFailed, err)
	}
	return err
}
