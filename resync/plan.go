package resync

import (
	"fmt"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// Kind says how a plan treats a run.
type Kind uint8

// The kinds.
const (
	Copy   Kind = iota // send every run
	Digest             // compare first, send what differs
	Verify             // compare only; what differs is marked
)

// Options tune a plan.
type Options struct {
	// WindowBytes bounds the data in flight; how much is, the pace decides by the
	// measured round trip. Zero: WindowMax.
	WindowBytes int64
	// RateBytes limits data and comparison, bytes/s. Zero: no limit.
	RateBytes int64
	// FloorBytes is the rate that clients' requests do not push the plan below,
	// bytes/s; a lower RateBytes wins. Zero: RateMin.
	FloorBytes int64
	// FlushBytes: a flush is asked for after so many copied bytes. Zero: 64 MiB.
	FlushBytes int64
	// FlushTime: or so long after the first of them, ns. Zero: 2 s.
	FlushTime int64
}

const (
	// RunMax is the largest run handed out, bytes. The owner narrows it to what
	// it found there: one extent of zeroes, or PayloadMax of data.
	RunMax = 1 << 30
	// DataMax is the largest run of data, bytes: one frame's payload, and one
	// frame's digests.
	DataMax = protocol.PayloadMax
	// runsMax bounds the runs in flight, whatever their size: small ones hold the
	// floor over a link of a second.
	runsMax = 256
	// reserveMax is how many blocks that were always being written are kept free
	// of new writes together.
	reserveMax = 64
	// ackedMax bounds the runs and pieces that wait for a flush, here and at the
	// target: a flush's worth of single blocks.
	ackedMax = 16 << 10
	// busyWait is how long a range that is being written is left alone.
	busyWait = 5 * time.Millisecond
)

// Run is a range of blocks on its way to the target.
type Run struct {
	ID       uint64
	Off, Len int64 // bytes
}

func (r Run) overlaps(off, n int64) bool { return r.Off < off+n && off < r.Off+r.Len }

type runState struct {
	Run
	offered  bool // narrowed to what is sent: may be answered
	plain    bool // sent without comparing first
	answered bool // its digests were answered; the rest is a copy
	differ   []Run
	left     int   // pieces not yet acknowledged
	at       int64 // when it was handed out
}

type flushed struct {
	id   uint64
	runs []Run
}

// Plan is one sync or verify of one peer.
type Plan struct {
	kind    Kind
	set     *bitmap.Set
	size    int64
	opt     Options
	started int64

	cursor   int64 // next block of this pass
	from     int64 // verify: block to start at
	end      int64 // verify: block to stop at
	nextID   uint64
	before   uint64 // ids up to here are those of earlier plans on the same connection
	runs     []*runState
	want     Run // Len 0: none; kept free of new writes until it can be handed out
	inFlight int64
	look     int64 // length of the next run: grows while zeroes are found
	pieces   []Run // that differed by digest, to be sent
	acked    []Run // acknowledged, not yet covered by a flush
	ackedB   int64
	ackedAt  int64 // when the first of them was
	flushes  []flushed
	pace     pace
	asked    int64 // when Step was last called
	owed     int64 // since when the target owes an answer; 0: it does not
	stats    Stats
	bad      []Run
}

// Stats are a plan's figures, bytes.
type Stats struct {
	Total    int64 // at the start
	Done     int64 // copied, or compared; a bit is cleared only by the flush after it
	Sent     int64 // payload that crossed the wire
	Compared int64 // by digest
	Differed int64 // by digest
	InFlight int64 // handed out and without an answer
}

// New returns a plan over the blocks of set (Verify: over the whole device).
func New(kind Kind, set *bitmap.Set, size int64, opt Options, now int64) *Plan {
	opt = opt.withDefaults()
	p := &Plan{kind: kind, set: set, size: size, opt: opt, started: now, look: DataMax, pace: newPace(&opt, now)}
	p.pace.compares = kind != Copy
	if kind == Verify {
		p.end = bitmap.Blocks(size)
		p.stats.Total = size
	} else {
		p.stats.Total = set.Count() * bitmap.BlockSize
	}
	return p
}

func (o Options) withDefaults() Options {
	if o.WindowBytes == 0 {
		o.WindowBytes = WindowMax
	}
	if o.FloorBytes == 0 {
		o.FloorBytes = RateMin
	}
	if o.FlushTime == 0 {
		o.FlushTime = int64(2 * time.Second)
	}
	if o.FlushBytes == 0 {
		o.FlushBytes = 64 << 20
	}
	return o
}

// Tune makes other options hold from now on. A verify keeps its rate, which may be
// an operator's own.
func (p *Plan) Tune(o Options) {
	if p.kind == Verify {
		o.RateBytes = p.opt.RateBytes
	}
	p.opt = o.withDefaults()
	p.pace.tune(&p.opt)
}

// NewVerify returns a plan that compares length bytes at off, whole blocks or up to
// the device's end, and marks in set what differs.
func NewVerify(set *bitmap.Set, size, off, length int64, opt Options, now int64) *Plan {
	p := New(Verify, set, size, opt, now)
	p.from, p.cursor = off/bitmap.BlockSize, off/bitmap.BlockSize
	p.end = (off + length + bitmap.BlockSize - 1) / bitmap.BlockSize
	p.stats.Total = length
	return p
}

// Follow has the plan count its ids on from an earlier one's, whose answers may still
// come on the same connection: they are of no use, and no fault. Before the first Step.
func (p *Plan) Follow(last uint64) { p.nextID, p.before = last, last }

// LastID returns the last id that was handed out.
func (p *Plan) LastID() uint64 { return p.nextID }

// Position returns up to where a Verify has compared everything, bytes.
func (p *Plan) Position() int64 {
	at := min(p.cursor*bitmap.BlockSize, p.size)
	if p.want.Len > 0 {
		at = min(at, p.want.Off)
	}
	for _, s := range p.runs {
		at = min(at, s.Off)
	}
	return at
}

// Kind returns what the plan does with a run.
func (p *Plan) Kind() Kind { return p.kind }

// Started returns the time of New.
func (p *Plan) Started() int64 { return p.started }

// Stats returns the figures so far.
func (p *Plan) Stats() Stats {
	s := p.stats
	for _, r := range p.runs {
		s.InFlight += r.Len
	}
	if p.kind == Verify {
		s.Done = p.Position() - p.from*bitmap.BlockSize
	} else {
		s.Done = max(0, s.Total-p.set.Count()*bitmap.BlockSize)
		for _, r := range p.acked {
			s.Done += r.Len
		}
		for _, f := range p.flushes {
			for _, r := range f.runs {
				s.Done += r.Len
			}
		}
		s.Done = min(s.Done, s.Total)
	}
	return s
}

// Bad returns the ranges that Verify found different.
func (p *Plan) Bad() []Run { return p.bad }

// Next hands out the next run and holds it. free reports whether a range is not
// being written. wait > 0: nothing now, ask again after wait or after the next
// acknowledgement; done: everything was handed out and confirmed, the set is
// empty.
func (p *Plan) Next(now int64, free func(off, n int64) bool) (r Run, wait time.Duration, done bool) {
	if len(p.runs) >= runsMax || p.inFlight >= p.pace.window() {
		return Run{}, time.Second, false
	}
	if w := p.pace.wait(now); w > 0 {
		p.pace.idle = true
		return Run{}, w, false
	}
	if p.want.Len > 0 {
		if !free(p.want.Off, p.want.Len) {
			p.pace.idle = true
			return Run{}, busyWait, false
		}
		off, length := p.want.Off, p.want.Len
		p.want = Run{}
		return p.handOut(now, off, length), 0, false
	}
	for {
		from, n := p.ahead()
		if n == 0 {
			p.pace.idle = true
			return Run{}, p.passEnd(), p.finished()
		}
		off := from * bitmap.BlockSize
		length := min(n*bitmap.BlockSize, p.size-off)
		// Look ever closer, so that a busy spot does not keep its surroundings
		// waiting.
		ok := free(off, length)
		for !ok && n > 1 {
			n = max(1, n/16)
			length = min(n*bitmap.BlockSize, p.size-off)
			ok = free(off, length)
		}
		if !ok {
			if p.kind == Verify {
				p.reserve(from, 1)
				return Run{}, busyWait, false
			}
			p.cursor = from + n
			continue
		}
		return p.handOut(now, off, length), 0, false
	}
}

// handOut holds a range and returns it as a run.
func (p *Plan) handOut(now, off, length int64) Run {
	p.cursor = (off + length + bitmap.BlockSize - 1) / bitmap.BlockSize
	p.nextID++
	s := &runState{Run: Run{p.nextID, off, length}, left: 1, at: now}
	p.runs = append(p.runs, s)
	p.inFlight += min(length, DataMax)
	return s.Run
}

// reserve keeps new writes off n blocks, so that their turn comes when those under
// way are done: a spot that is written all the time would never be copied.
func (p *Plan) reserve(from, n int64) {
	off := from * bitmap.BlockSize
	p.want = Run{Off: off, Len: min(n*bitmap.BlockSize, p.size-off)}
}

// ahead returns the next blocks to do.
func (p *Plan) ahead() (from, n int64) {
	limit := p.look / bitmap.BlockSize
	if p.look <= DataMax {
		limit = p.pace.run() / bitmap.BlockSize
	}
	if p.kind == Verify {
		return p.cursor, min(p.end-p.cursor, limit)
	}
	return p.set.Next(p.cursor, limit)
}

// passEnd says how long to wait when the cursor has nothing ahead; what a pass had
// to leave out is reserved once the rest is confirmed.
func (p *Plan) passEnd() time.Duration {
	if len(p.runs) > 0 || len(p.flushes) > 0 || len(p.acked) > 0 {
		return time.Second
	}
	if p.finished() {
		return 0
	}
	if from, n := p.set.Next(0, reserveMax); n > 0 {
		p.reserve(from, n)
	}
	return busyWait
}

func (p *Plan) finished() bool {
	if len(p.runs) > 0 || len(p.flushes) > 0 || len(p.acked) > 0 {
		return false
	}
	if p.kind == Verify {
		return p.cursor >= p.end
	}
	return p.set.Count() == 0
}

func (p *Plan) find(id uint64) (int, *runState) {
	for i, s := range p.runs {
		if s.ID == id {
			return i, s
		}
	}
	return 0, nil
}

// Narrow shortens a run to its first n bytes, whole blocks or up to the device's
// end, before anything of it is sent. Every run is narrowed once, if only to its
// length: what a target says of it before is refused.
func (p *Plan) Narrow(id uint64, n int64) {
	_, s := p.find(id)
	if s == nil {
		return
	}
	s.offered = true
	if n >= s.Len {
		return
	}
	if n <= 0 || n%bitmap.BlockSize != 0 {
		panic(fmt.Sprintf("resync: run of %d bytes narrowed to %d", s.Len, n))
	}
	p.inFlight -= min(s.Len, DataMax)
	s.Len = n
	p.inFlight += min(s.Len, DataMax)
	p.cursor = min(p.cursor, (s.Off+n)/bitmap.BlockSize)
}

// Plain says that a run of a Digest plan is sent without comparing it first (a
// range of zeroes costs less to send than to compare).
func (p *Plan) Plain(id uint64) {
	if _, s := p.find(id); s != nil {
		s.plain = true
	}
}

// Sent counts payload bytes that crossed the wire.
func (p *Plan) Sent(n int64) {
	p.stats.Sent += n
	p.pace.spend(n)
}

// Awaits reports whether something was handed out that is not confirmed.
func (p *Plan) Awaits() bool { return len(p.runs) > 0 || len(p.flushes) > 0 }

// Holds reports whether the range overlaps a run in flight, or one that waits for
// writes under way.
func (p *Plan) Holds(off, n int64) bool {
	if p.want.overlaps(off, n) {
		return true
	}
	for _, s := range p.runs {
		if s.overlaps(off, n) {
			return true
		}
	}
	return false
}

// Answered takes the target's answer to a run's digests: bit i of differ set when
// block i differs. It returns the pieces to send (Digest), each a run of its own
// whose acknowledgement is awaited; none: the run is over. known is false for an
// id that is not in flight.
func (p *Plan) Answered(now int64, id uint64, differ []uint64) (send []Run, known bool) {
	i, s := p.find(id)
	if s == nil || !s.offered || s.answered || s.plain || p.kind == Copy {
		return nil, false
	}
	s.answered = true
	blocks := (s.Len + bitmap.BlockSize - 1) / bitmap.BlockSize
	p.stats.Compared += s.Len
	if p.kind == Digest {
		p.pace.spend(s.Len / 8) // digests cost reading, not sending
	}
	p.pace.answer(s.Len, now-s.at)
	first := s.Off / bitmap.BlockSize
	at := func(b int64) bool { return differ[b/64]>>(b%64)&1 == 1 }
	most := blocks
	if p.kind == Digest {
		most = p.pace.data() / bitmap.BlockSize // of what is to be sent
	}
	for b := int64(0); b < blocks; {
		e := b + 1
		for e < blocks && at(e) == at(b) && (!at(b) || e-b < most) {
			e++
		}
		piece := Run{Off: s.Off + b*bitmap.BlockSize}
		piece.Len = min(e*bitmap.BlockSize, s.Len) - b*bitmap.BlockSize
		switch {
		case !at(b) && p.kind == Verify:
		case !at(b):
			// Equal, but perhaps only in the target's cache: the flush decides.
			p.confirmed(now, piece, 0)
		case p.kind == Verify:
			p.stats.Differed += piece.Len
			p.set.Set(first+b, first+e)
			p.note(piece)
		default:
			p.stats.Differed += piece.Len
			p.nextID++
			piece.ID = p.nextID
			s.differ = append(s.differ, piece)
		}
		b = e
	}
	if len(s.differ) == 0 {
		p.remove(i)
		return nil, true
	}
	s.left = len(s.differ)
	return s.differ, true
}

func (p *Plan) note(r Run) {
	if l := len(p.bad); l > 0 && p.bad[l-1].Off+p.bad[l-1].Len == r.Off {
		p.bad[l-1].Len += r.Len
		return
	}
	if len(p.bad) < 1000 {
		p.bad = append(p.bad, r)
	}
}

// confirmed notes that the target has a run, perhaps in its cache only.
func (p *Plan) confirmed(now int64, r Run, weight int64) {
	if len(p.acked) == 0 {
		p.ackedAt = now
	}
	p.acked = append(p.acked, r)
	p.ackedB += weight
}

func (p *Plan) remove(i int) {
	p.inFlight -= min(p.runs[i].Len, DataMax)
	p.runs = append(p.runs[:i], p.runs[i+1:]...)
}

// Acked takes the target's word that a run, or a piece of one, is written. known
// is false for an id that is not in flight.
func (p *Plan) Acked(now int64, id uint64) (known bool) {
	for i, s := range p.runs {
		piece := s.Run
		if s.answered {
			ok := false
			for _, d := range s.differ {
				if d.ID == id {
					piece, ok = d, true
				}
			}
			if !ok {
				continue
			}
		} else if s.ID != id || !s.offered || p.kind != Copy && !s.plain {
			continue
		}
		p.confirmed(now, piece, min(piece.Len, DataMax))
		if s.answered {
			p.pace.answer(piece.Len, 0)
		} else {
			p.pace.answer(min(piece.Len, DataMax), now-s.at)
		}
		if s.left--; s.left == 0 {
			p.remove(i)
		}
		return true
	}
	return false
}

// WantFlush says that a flush should be sent to the target now, and its id:
// enough is acknowledged, or for long enough, or there is nothing else to do. The owner flushes the
// source's own store first: a copy of what the source may still lose is no proof
// that the two are equal.
func (p *Plan) WantFlush(now int64) (id uint64, want bool) {
	if len(p.acked) == 0 {
		return 0, false
	}
	idle := len(p.runs) == 0
	if idle {
		_, n := p.ahead()
		idle = n == 0
	}
	if p.ackedB < p.pace.flushBytes(p.opt.FlushBytes) && len(p.acked) < ackedMax && now-p.ackedAt < p.opt.FlushTime && !idle {
		return 0, false
	}
	p.nextID++
	p.flushes = append(p.flushes, flushed{p.nextID, p.acked})
	p.acked, p.ackedB = nil, 0
	return p.nextID, true
}

// Flushed takes the target's word that everything before that flush is durable;
// the bits are cleared. known is false for an id that was not asked for.
func (p *Plan) Flushed(id uint64) (known bool) {
	if len(p.flushes) == 0 || p.flushes[0].id != id {
		return false
	}
	for _, r := range p.flushes[0].runs {
		p.set.Clear(bitmap.Covered(r.Off, r.Len, p.size))
	}
	p.flushes = p.flushes[1:]
	return true
}

// Spoil says that the range was marked anew, for a reason that the copies made so
// far say nothing of: their confirmation does not clear it.
func (p *Plan) Spoil(off, n int64) {
	keep := func(runs []Run) []Run {
		var out []Run
		for _, r := range runs {
			if !r.overlaps(off, n) {
				out = append(out, r)
			}
		}
		return out
	}
	p.acked = keep(p.acked)
	for i := range p.flushes {
		p.flushes[i].runs = keep(p.flushes[i].runs)
	}
}
