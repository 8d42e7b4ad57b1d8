package linear

import (
	"math"
	"sync"
)

type kind uint8

const (
	read kind = iota
	write
	flush
	lostOne // a primary was lost, and a copy took over or it came back
	lostAll // every copy lost what was not flushed
)

// op is one event of the history. Times are values of History.clock.
type op struct {
	kind      kind
	client    int
	first     int      // the first block
	values    []uint64 // by block: written or read
	torn      []bool   // by block: the read found a mixture
	fua       bool
	term      Term
	call, ret int64 // ret 0: no answer, or an error
}

// Term is the time in which one process is primary without a break.
type Term int

// History notes what clients asked and were told.
type History struct {
	// Volatile: copies may lose what was not flushed (lostAll happens), so flushes
	// count.
	Volatile bool

	mu sync.Mutex
	// Guarded by mu.
	clock int64
	value uint64 // the last one written
	ops   []*op
	ends  []int64 // by Term; 0: goes on
}

// NewTerm begins a term.
func (h *History) NewTerm() Term {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = append(h.ends, 0)
	return Term(len(h.ends) - 1)
}

// End ends a term: nothing that was sent in it and not answered can happen any more.
func (h *History) End(t Term) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.ends[t] = h.clock
}

// Lost notes that from now on the volume's state may lack what a failure may take:
// one copy's, or of all copies that was not flushed. done is called when the volume
// is served again.
func (h *History) Lost(all bool) (done func()) {
	k := lostOne
	if all {
		k = lostAll
	}
	return h.open(&op{kind: k, client: -1})
}

func (h *History) open(o *op) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.call = h.clock
	h.ops = append(h.ops, o)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.clock++
		o.ret = h.clock
	}
}

// write notes that n blocks are written from now on, each with a value of its own.
func (h *History) write(client int, t Term, first, n int, fua bool) (values []uint64, acked func()) {
	o := &op{kind: write, client: client, term: t, first: first, fua: fua, values: make([]uint64, n)}
	h.mu.Lock()
	for i := range o.values {
		h.value++
		o.values[i] = h.value
	}
	h.mu.Unlock()
	return o.values, h.open(o)
}

// read notes that n blocks are read from now on; answered takes what was found.
func (h *History) read(client int, t Term, first, n int) (answered func(p []byte)) {
	o := &op{kind: read, client: client, term: t, first: first, values: make([]uint64, n), torn: make([]bool, n)}
	done := h.open(o)
	return func(p []byte) {
		done() // before the work below
		for i := range n {
			value, whole := identify(p[i*blockSize:(i+1)*blockSize], first+i)
			o.values[i], o.torn[i] = value, !whole
		}
	}
}

func (h *History) flush(client int, t Term) (acked func()) {
	return h.open(&op{kind: flush, client: client, term: t})
}

// forever is after everything that happened.
const forever = math.MaxInt64

// until returns when an operation has ended or can have no effect any more.
// REQUIRES h.mu.
func (h *History) until(o *op) int64 {
	end := int64(forever)
	if o.kind <= flush {
		if e := h.ends[o.term]; e > o.call {
			end = e
		}
	}
	if o.ret != 0 {
		end = min(o.ret, end)
	}
	return end
}

// Counts says what is in a history.
type Counts struct {
	Reads, Writes, Flushes, Unanswered, Losses int
}

// Counts counts operations, not blocks.
func (h *History) Counts() (c Counts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		switch {
		case o.kind == lostOne || o.kind == lostAll:
			c.Losses++
		case o.ret == 0:
			c.Unanswered++
		case o.kind == read:
			c.Reads++
		case o.kind == write:
			c.Writes++
		case o.kind == flush:
			c.Flushes++
		}
	}
	return c
}
