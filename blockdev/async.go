package blockdev

import (
	"fmt"
	"sync"
)

// inlineReadMax is the largest read, in bytes, that Submit tries to serve by
// itself: copying 64 KiB takes about as long as waking a worker.
const inlineReadMax = 64 << 10

// AsyncQueue is a Submitter over a Device: a fixed number of workers execute
// requests in the order of submission, so that at most that many are on the
// device at once and as many again wait; more hold the submitter back.
//
// Owner: the workers belong to the queue; Close ends them.
type AsyncQueue struct {
	dev    Device
	nowait NowaitReader // nil when dev is none
	work   sync.WaitGroup

	mu       sync.Mutex
	notEmpty sync.Cond // on mu
	notFull  sync.Cond // on mu
	// Guarded by mu.
	ring   []*Request // the next n from head, circular
	head   int
	n      int
	closed bool
}

var _ Submitter = (*AsyncQueue)(nil)

// Async returns a queue of workers (at least one) over dev, which stays the
// caller's to close, after the queue. Small reads that dev can serve without
// waiting (NowaitReader) are served inside Submit.
func Async(dev Device, workers int) *AsyncQueue {
	workers = max(workers, 1)
	q := &AsyncQueue{dev: dev, ring: make([]*Request, workers)}
	q.nowait, _ = dev.(NowaitReader)
	q.notEmpty.L = &q.mu
	q.notFull.L = &q.mu
	q.work.Add(workers)
	for range workers {
		go q.worker()
	}
	return q
}

// Size returns the device's size in bytes.
func (q *AsyncQueue) Size() int64 { return q.dev.Size() }

// Extents is the device's; it blocks.
func (q *AsyncQueue) Extents(off, n int64, limit int) ([]Extent, error) {
	return q.dev.Extents(off, n, limit)
}

// Submit starts r, or waits for room first: as long as the device takes to
// finish one request. After Close, r gets ErrShutdown.
func (q *AsyncQueue) Submit(r *Request) {
	if r.Op == OpRead && q.nowait != nil && r.Len <= inlineReadMax && !q.isClosed() {
		if done, err := q.nowait.ReadNowait(r.payload(), r.Off); done {
			r.Done(r, err)
			return
		}
	}
	q.mu.Lock()
	for q.n == len(q.ring) && !q.closed {
		q.notFull.Wait()
	}
	if q.closed {
		q.mu.Unlock()
		r.Done(r, ErrShutdown)
		return
	}
	q.ring[(q.head+q.n)%len(q.ring)] = r
	q.n++
	q.mu.Unlock()
	q.notEmpty.Signal()
}

func (q *AsyncQueue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// Close refuses new requests, executes those already queued, and returns when
// all are done and the workers have ended. It may be called again.
func (q *AsyncQueue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.notEmpty.Broadcast()
	q.notFull.Broadcast()
	q.work.Wait()
	return nil
}

func (q *AsyncQueue) worker() {
	defer q.work.Done()
	for {
		r := q.take()
		if r == nil {
			return
		}
		r.Done(r, Execute(q.dev, r))
	}
}

// take returns the next request, or nil when the queue is closed and empty.
func (q *AsyncQueue) take() *Request {
	q.mu.Lock()
	for q.n == 0 && !q.closed {
		q.notEmpty.Wait()
	}
	if q.n == 0 {
		q.mu.Unlock()
		return nil
	}
	r := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	q.mu.Unlock()
	q.notFull.Signal()
	return r
}

// Execute performs r on dev and returns its result. It blocks, and does not call
// r.Done.
func Execute(dev Device, r *Request) error {
	switch r.Op {
	case OpRead:
		return dev.ReadAt(r.payload(), r.Off)
	case OpWrite:
		return dev.WriteAt(r.payload(), r.Off, r.Flags)
	case OpZero:
		return dev.Zero(r.Off, r.Len, r.Flags)
	case OpTrim:
		return dev.Trim(r.Off, r.Len, r.Flags)
	case OpFlush:
		return dev.Flush()
	}
	panic(fmt.Sprintf("blockdev: request with %v", r.Op))
}

// payload returns the request's bytes. A request of no bytes may have no buffer.
func (r *Request) payload() []byte {
	if r.Buf == nil && r.Len == 0 {
		return nil
	}
	return r.Buf.Bytes()[:r.Len]
}
