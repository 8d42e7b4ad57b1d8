package control

import (
	"sync"

	"github.com/qrbd/qrbd/volume"
)

// Ring keeps the last events of a node, numbered from 1. Add never blocks; a
// reader that falls behind by more than the ring loses events and learns how
// many. Safe for concurrent use.
type Ring struct {
	mu sync.Mutex
	// Guarded by mu.
	events []volume.Event // events[seq%len] for the last len sequences
	last   uint64         // number of the newest event; 0: none yet
	wake   chan struct{}  // closed and replaced by each Add
}

// NewRing returns a ring that keeps size events; zero: ringMax.
func NewRing(size int) *Ring {
	if size <= 0 {
		size = ringMax
	}
	return &Ring{events: make([]volume.Event, size), wake: make(chan struct{})}
}

// Add appends an event.
func (r *Ring) Add(e volume.Event) {
	r.mu.Lock()
	r.last++
	r.events[r.last%uint64(len(r.events))] = e
	close(r.wake)
	r.wake = make(chan struct{})
	r.mu.Unlock()
}

// Last returns the number of the newest event.
func (r *Ring) Last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// batchMax bounds what one call of After copies.
const batchMax = 256

// After returns the events after since in order, at most batchMax, and a channel
// that is closed by the next Add. A gap is one line with Missed set. A since of
// the future (an agent that restarted numbers from 1 again) is a gap of unknown
// length: everything that is kept follows.
func (r *Ring) After(since uint64) ([]EventLine, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []EventLine
	oldest := uint64(1)
	if n := uint64(len(r.events)); r.last > n {
		oldest = r.last - n + 1
	}
	switch {
	case since > r.last:
		out = append(out, EventLine{Seq: oldest - 1, Missed: 1})
		since = oldest - 1
	case since+1 < oldest:
		out = append(out, EventLine{Seq: oldest - 1, Missed: oldest - 1 - since})
		since = oldest - 1
	}
	for s := since + 1; s <= r.last && len(out) < batchMax; s++ {
		e := r.events[s%uint64(len(r.events))]
		out = append(out, EventLine{Seq: s, Event: &e})
	}
	return out, r.wake
}
