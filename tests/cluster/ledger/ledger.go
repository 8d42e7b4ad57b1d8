package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Rule says which writes must be found on a disk.
type Rule uint8

const (
	// Acked: every acknowledged write. What protocol C promises after the loss of
	// one node, and every disk that lost nothing.
	Acked Rule = iota
	// Flushed: every write that a later acknowledged flush covers, and every
	// acknowledged FUA write. What any disk promises after a power cut.
	Flushed
	// Ordered: the disk is at some moment of the past, exact up to flushes: when a
	// write is found, everything flushed before it was issued is there too.
	// What the peer of a lost primary promises under protocols A and B.
	Ordered
)

func (r Rule) String() string {
	switch r {
	case Acked:
		return "acked"
	case Flushed:
		return "flushed"
	case Ordered:
		return "ordered"
	}
	return "invalid"
}

// Stamp names a write. Stamp 0 is the zeroes that were there before any.
type Stamp uint64

// op is one write. Times are values of Ledger.clock; 0: has not happened.
type op struct {
	zeroes  bool // a write of zeroes or a trim
	issue   uint64
	ack     uint64
	durable uint64
}

// Ledger notes writes to the region [off, off+size) of a disk.
type Ledger struct {
	id        uint64
	off, size int64

	mu sync.Mutex
	// Guarded by mu.
	clock    uint64
	ops      []op      // by stamp
	sectors  [][]Stamp // by sector of the region: its writes in order of issue
	volatile []Stamp   // acknowledged, not yet covered by a flush
	flushes  int       // acknowledged
}

// New returns a ledger for the region of size bytes at off of a disk that reads
// as zeroes there. Both are multiples of 512.
func New(off, size int64) *Ledger {
	l := &Ledger{id: rand.Uint64(), off: off, size: size, clock: 1}
	l.ops = []op{{zeroes: true, issue: 1, ack: 1, durable: 1}}
	l.sectors = make([][]Stamp, size/sectorSize)
	for i := range l.sectors {
		l.sectors[i] = []Stamp{0}
	}
	return l
}

// Region returns the part of the disk the ledger is about, in bytes.
func (l *Ledger) Region() (off, size int64) { return l.off, l.size }

// Writes returns the number of writes issued and of those acknowledged, and the
// number of flushes acknowledged.
func (l *Ledger) Writes() (issued, acked, flushes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.ops[1:] {
		if o.ack != 0 {
			acked++
		}
	}
	return len(l.ops) - 1, acked, l.flushes
}

// Write notes that a write of len(p) bytes at off is issued now and fills p with
// its content.
func (l *Ledger) Write(p []byte, off int64) Stamp {
	s := l.begin(off, int64(len(p)), false)
	for i := 0; i < len(p); i += sectorSize {
		fill(p[i:i+sectorSize], l.id, uint64(off)/sectorSize+uint64(i/sectorSize), uint64(s))
	}
	return s
}

// Zero notes that a write of zeroes, or a trim, is issued now.
func (l *Ledger) Zero(off, n int64) Stamp { return l.begin(off, n, true) }

func (l *Ledger) begin(off, n int64, zeroes bool) Stamp {
	if off%sectorSize != 0 || n%sectorSize != 0 || off < l.off || off+n > l.off+l.size {
		panic(fmt.Sprintf("ledger: %d bytes at %d of region %d+%d", n, off, l.off, l.size))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	s := Stamp(len(l.ops))
	l.ops = append(l.ops, op{zeroes: zeroes, issue: l.clock})
	for i := (off - l.off) / sectorSize; i < (off+n-l.off)/sectorSize; i++ {
		l.sectors[i] = append(l.sectors[i], s)
	}
	return s
}

// Ack notes that the write is acknowledged. fua: and durable with that.
func (l *Ledger) Ack(s Stamp, fua bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	l.ops[s].ack = l.clock
	if fua {
		l.ops[s].durable = l.clock
	} else {
		l.volatile = append(l.volatile, s)
	}
}

// Flush notes that a flush is issued now. The function it returns is to be
// called when, and only when, the flush is acknowledged.
func (l *Ledger) Flush() (acked func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	began := l.clock
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.clock++
		l.flushes++
		rest := l.volatile[:0]
		for _, s := range l.volatile {
			if l.ops[s].ack < began {
				l.ops[s].durable = l.clock
			} else {
				rest = append(rest, s)
			}
		}
		l.volatile = rest
	}
}

// now returns the time of an event that happens now.
func (l *Ledger) now() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	return l.clock
}

// staleBy returns the write that the sector must hold, or a later one, although
// s was found there; 0: s may be there. requiredBefore is exclusive.
// REQUIRES l.mu.
func (l *Ledger) staleBy(sector int64, s Stamp, rule Rule, requiredBefore uint64) Stamp {
	found := l.ops[s]
	if found.ack == 0 {
		return 0 // still under way when the others were issued
	}
	for _, t := range l.sectors[sector] {
		o := l.ops[t]
		since := o.ack
		if rule != Acked {
			since = o.durable
		}
		if since != 0 && since < requiredBefore && found.ack < o.issue {
			return t
		}
	}
	return 0
}
