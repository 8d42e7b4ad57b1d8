package nbd

import (
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// batchMax replies go into one write: two parts each stay below iovMax, and
	// their short parts below smallMax.
	batchMax = 128
	// flushAt queued replies are sent even though the reader would do it soon.
	flushAt = 64
	// roundsMax writes are made by a goroutine that only came by to queue its own
	// reply; then the writer goroutine takes over.
	roundsMax = 4
)

// replies is a connection's queue of finished requests and the right to send
// them. The role of the writer belongs to whoever finds it free: a goroutine
// that queues a reply, the reader before it waits, or, once the socket is full,
// the connection's writer goroutine, to which alone waiting is allowed. Everyone
// else queues and goes on. So a reply at depth one leaves from the device's own
// callback, and under load one write carries many.
//
// It also keeps the account of the connection's request objects and bytes.
type replies struct {
	st       *stream
	broke    func(error) // ends the connection; called once, when it cannot be written
	maxOut   int
	maxBytes int64
	handoff  chan struct{} // the writer's role passes to the writer goroutine

	// bytes of requests that are not recycled. Added by the reader only.
	bytes atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	head, tail *request // queue
	queued     int
	writing    bool // someone has the writer's role
	reading    bool // the reader is at work and will flush before it waits
	broken     bool // nothing is written any more
	free       *request
	out        int // requests that are not in free
	waiting    bool
	recycled   sync.Cond // the reader waits here; it alone

	// batch is what is being written. Owner: the writer.
	batch *request
}

func (w *replies) init(st *stream, o Options) {
	w.st, w.maxOut, w.maxBytes = st, o.PerConnInFlight, o.PerConnBytes
	w.handoff = make(chan struct{}, 1)
	w.recycled.L = &w.mu
	w.reading = true
}

// push queues a reply and, unless someone else will, sends it. It never waits
// for the client.
func (w *replies) push(r *request) {
	w.mu.Lock()
	r.next = nil
	if w.tail == nil {
		w.head = r
	} else {
		w.tail.next = r
	}
	w.tail = r
	w.queued++
	leave := w.writing || w.reading && !r.submitted.Load() && w.queued < flushAt
	if !leave {
		w.writing = true
	}
	w.mu.Unlock()
	if !leave {
		w.send()
	}
}

// flush sends what is queued. The reader calls it before it waits for anything.
func (w *replies) flush() {
	w.mu.Lock()
	w.reading = false
	leave := w.writing || w.head == nil
	if !leave {
		w.writing = true
	}
	w.mu.Unlock()
	if !leave {
		w.send()
	}
}

// resume says that the reader is at work again.
func (w *replies) resume() {
	w.mu.Lock()
	w.reading = true
	w.mu.Unlock()
}

// send writes the queue without waiting; when that cannot be, or is too much, the
// writer goroutine gets the role. REQUIRES the writer's role.
func (w *replies) send() {
	for range roundsMax {
		if !w.gather() {
			return
		}
		all, err := w.st.tryWrite()
		if err != nil {
			w.fail(err)
		} else if !all {
			break
		}
	}
	w.handoff <- struct{}{} // has room: there is one role, and this is it
}

// run is the writer goroutine. It ends when handoff is closed.
func (w *replies) run() {
	for range w.handoff {
		for more := true; more; more = w.gather() {
			if err := w.st.write(); err != nil {
				w.fail(err)
			}
		}
	}
}

// fail gives the connection up. What is queued is recycled unsent.
func (w *replies) fail(err error) {
	w.mu.Lock()
	first := !w.broken
	w.broken = true
	w.mu.Unlock()
	w.st.reset()
	if first {
		w.broke(fmt.Errorf("sending replies: %w", err))
	}
}

// gather recycles the batch that was written and makes the next one of the
// queue. With nothing queued it gives up the writer's role and returns false.
func (w *replies) gather() bool {
	done := w.batch
	var n int
	var sum int64
	var last *request
	for r := done; r != nil; r = r.next {
		if r.dev.Buf != nil {
			r.dev.Buf.Release()
			r.dev.Buf = nil
		}
		r.payload = nil
		sum += r.holdsBytes
		n++
		last = r
	}
	w.st.reset()
	w.batch = nil

	w.mu.Lock()
	if done != nil {
		w.bytes.Add(-sum)
		last.next = w.free
		w.free = done
		w.out -= n
		if w.waiting {
			w.recycled.Signal()
		}
	}
	if w.head == nil {
		w.writing = false
		w.mu.Unlock()
		return false
	}
	w.batch = w.head
	last = w.head
	for n = 1; n < batchMax && last.next != nil; n++ {
		last = last.next
	}
	w.head = last.next
	last.next = nil
	if w.head == nil {
		w.tail = nil
	}
	w.queued -= n
	broken := w.broken
	w.mu.Unlock()
	if broken {
		return true // recycled in the next round
	}
	for r := w.batch; r != nil; r = r.next {
		w.st.addSmall(r.head[:r.headLen])
		w.st.add(r.payload)
	}
	return true
}

// take returns recycled requests (a list), or a fresh one, once there is room
// for n more bytes. The caller flushed before. wait says that the reader had to
// wait. Owner: the reader goroutine.
func (w *replies) take(local *request, c *conn, n int64) *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if local == nil {
			local = w.free
			w.free = nil
			for r := local; r != nil; r = r.next {
				w.out++
			}
		}
		if local == nil && w.out < w.maxOut {
			w.out++
			local = newRequest(c)
		}
		if local != nil && w.roomFor(n) {
			w.bytes.Add(n)
			return local
		}
		w.waiting = true
		w.recycled.Wait()
		w.waiting = false
	}
}

// roomFor says whether a request of n bytes may start: a lone one always may.
func (w *replies) roomFor(n int64) bool {
	b := w.bytes.Load()
	return b == 0 || b+n <= w.maxBytes
}

// settle returns the reader's idle requests, waits until every request is
// recycled and lets the writer goroutine end. The reader's last call.
func (w *replies) settle(local *request) {
	w.flush()
	w.mu.Lock()
	for local != nil {
		r := local
		local = r.next
		r.next = w.free
		w.free = r
		w.out--
	}
	for w.out > 0 {
		w.waiting = true
		w.recycled.Wait()
		w.waiting = false
	}
	w.mu.Unlock()
	close(w.handoff)
}
