package volume

import "sync"

// workQueue hands local operations to the workers, oldest first. Putting never
// blocks: whoever executes effects (the ticker, a link, the journal) goes on
// while the store hangs. What waits is bounded by what clients may have in flight.
type workQueue struct {
	mu     sync.Mutex
	some   sync.Cond // on mu
	list   []*op     // guarded by mu, from head
	head   int
	closed bool
}

func newWorkQueue() *workQueue {
	q := &workQueue{}
	q.some.L = &q.mu
	return q
}

// put appends o; false: the queue is closed and nobody will execute it.
func (q *workQueue) put(o *op) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	if q.head > 0 && len(q.list) == cap(q.list) { // reuse the room in front
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, o)
	q.mu.Unlock()
	q.some.Signal()
	return true
}

// len returns how many operations wait.
func (q *workQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list) - q.head
}

// take returns the next operation, nil when the queue is closed.
func (q *workQueue) take() *op {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.head == len(q.list) && !q.closed {
		q.some.Wait()
	}
	if q.closed {
		return nil
	}
	o := q.list[q.head]
	q.list[q.head] = nil
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return o
}

// close ends the workers and returns what none of them took.
func (q *workQueue) close() []*op {
	q.mu.Lock()
	rest := q.list[q.head:]
	q.list, q.head, q.closed = nil, 0, true
	q.mu.Unlock()
	q.some.Broadcast()
	return rest
}
