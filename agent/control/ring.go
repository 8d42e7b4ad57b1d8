package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qrbd/qrbd/volume"
)

// Position is a place in a node's stream of events: an event's number within one life
// of the agent. Written as BOOT:SEQ.
type Position struct {
	Boot string `json:"boot"` // random, new each time the agent starts; "": the one that runs
	Seq  uint64 `json:"seq"`
}

// String is the inverse of ParsePosition.
func (p Position) String() string { return p.Boot + ":" + strconv.FormatUint(p.Seq, 10) }

// ParsePosition reads BOOT:SEQ, or SEQ alone for the agent that runs.
func ParsePosition(s string) (Position, error) {
	boot, number, both := strings.Cut(s, ":")
	if !both {
		boot, number = "", s
	}
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return Position{}, fmt.Errorf("%q is no place in the events: a number, or BOOT:NUMBER as events --json shows them", s)
	}
	if b, err := hex.DecodeString(boot); both && (err != nil || len(b) != bootBytes) {
		return Position{}, fmt.Errorf("%q is no place in the events: %q is not the boot of an agent", s, boot)
	}
	return Position{boot, seq}, nil
}

// bootBytes is the length of a boot id, 16 characters as text.
const bootBytes = 8

// Ring keeps the last events of a node, numbered from 1 in each life of the agent.
// Adding never blocks; a reader that falls behind by more than the ring loses events
// and learns which. Safe for concurrent use.
type Ring struct {
	boot string

	mu sync.Mutex
	// Guarded by mu.
	events []entry       // events[seq%len] for the last len sequences
	last   uint64        // number of the newest event; 0: none yet
	wake   chan struct{} // closed and replaced by each addition
}

// entry is an event as it is kept.
type entry struct {
	volume.Event
	kind Kind
}

// NewRing returns a ring that keeps size events; zero: ringMax.
func NewRing(size int) *Ring {
	if size <= 0 {
		size = ringMax
	}
	var b [bootBytes]byte
	rand.Read(b[:]) // never fails
	return &Ring{boot: hex.EncodeToString(b[:]), events: make([]entry, size), wake: make(chan struct{})}
}

// Add appends a change of state.
func (r *Ring) Add(e volume.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.append(e, KindChange)
	r.awake()
}

// AddStates appends the states that states returns, which is called while nothing
// else can be added: no change that comes later in the stream is in them unless it is
// told once more. It must not use the ring.
func (r *Ring) AddStates(states func() []volume.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range states() {
		r.append(e, KindState)
	}
	r.awake()
}

// append numbers an event. REQUIRES mu.
func (r *Ring) append(e volume.Event, k Kind) {
	r.last++
	r.events[r.last%uint64(len(r.events))] = entry{e, k}
}

// awake tells the readers. REQUIRES mu.
func (r *Ring) awake() {
	close(r.wake)
	r.wake = make(chan struct{})
}

// Last returns the place of the newest event.
func (r *Ring) Last() Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Position{r.boot, r.last}
}

// Changed returns a channel that is closed by the next addition.
func (r *Ring) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wake
}

// oldest returns the number of the oldest event that is kept.
func (r *Ring) oldest() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first()
}

// first is oldest. REQUIRES mu.
func (r *Ring) first() uint64 {
	if n := uint64(len(r.events)); r.last > n {
		return r.last - n + 1
	}
	return 1
}

// batchMax bounds what one call of After copies.
const batchMax = 256

// After returns what follows p in order, at most batchMax events, where to go on, and
// a channel that is closed by the next addition. What is missing is a line of
// KindGap: events that are kept no more, and, when p is of another life of the agent,
// all that it had after p.
func (r *Ring) After(p Position) (lines []EventLine, next Position, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Boot == "" {
		p.Boot = r.boot
	}
	if p.Boot != r.boot || p.Seq > r.last {
		lines = append(lines, gap(Position{p.Boot, p.Seq + 1}, Position{r.boot, 0}, errRestarted.Error()))
		p = Position{r.boot, 0}
	}
	oldest := r.first()
	if p.Seq+1 < oldest {
		lines = append(lines, gap(Position{r.boot, p.Seq + 1}, Position{r.boot, oldest - 1}, fmt.Sprintf("only the last %d events are kept", len(r.events))))
		p.Seq = oldest - 1
	}
	for ; p.Seq < r.last && len(lines) < batchMax; p.Seq++ {
		e := r.events[(p.Seq+1)%uint64(len(r.events))]
		lines = append(lines, EventLine{Kind: e.kind, Boot: r.boot, Seq: p.Seq + 1, Time: e.Time, Reason: e.Reason, Event: &e.Event})
	}
	return lines, p, r.wake
}

var errRestarted = errors.New("the agent was restarted: its last events before that are not known")

// gap says that the events from one place to another are missing.
func gap(from, to Position, why string) EventLine {
	l := EventLine{Kind: KindGap, Boot: to.Boot, Seq: to.Seq, Time: time.Now(), From: &from, To: &to, Reason: why}
	if from.Boot == to.Boot {
		l.Missed = to.Seq - from.Seq + 1
	}
	return l
}
