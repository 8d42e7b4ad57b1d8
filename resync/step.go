package resync

import (
	"errors"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

// The flow of a sync, without its I/O: the source's owner asks Step what to do,
// does it, and hands every answer from the bulk stream to Take; the target's owner
// keeps a Target.
//
//	source                              bulk stream                target
//	Step: StepRun ─ look at the store
//	      Offer ─► SendZero ───────────► SyncZero ───────► zero, Target.Wrote
//	            ─► SendData ───────────► SyncWrite ──────► write, Target.Wrote
//	            ─► SendDigests ────────► SyncDigests ────► read, Target.Compare
//	Take ◄────────────────────────────── SyncAck, SyncDiffers
//	Step: StepData (what differed) ────► SyncWrite
//	Step: StepFlush ─ flush the store ─► SyncFlush ──────► flush, Target.Flushed
//	Take ◄────────────────────────────── SyncFlushed
//	Step: StepDone

// StepKind says what a source is to do next.
type StepKind uint8

// The steps.
const (
	StepWait  StepKind = iota // nothing: ask again after Wait, or after the next answer
	StepRun                   // see what the store has at Run, then Offer
	StepData                  // read Run and send it, then Sent
	StepFlush                 // flush the own store, then send SyncFlush with Flush
	StepDone                  // everything was handed out and confirmed
)

// Step is the next thing that a source is to do.
type Step struct {
	Kind  StepKind
	Run   Run
	Flush uint64
	Wait  time.Duration
	// Probe: StepRun: ask the store for its first extent at Run, for Offer: the run
	// before was all zeroes, and more may follow. Without, Offer takes the whole run
	// as data. Asking costs: a file system looks for the end of the data, wherever
	// that is, while the run's range is held.
	Probe bool
	// Share: the bulk stream is to get its share of the link beside the write
	// stream, not what that leaves: the plan is held below its floor.
	Share bool
}

// Step returns the next thing to do. free is as for Next.
func (p *Plan) Step(now int64, free func(off, n int64) bool) Step {
	p.asked = now
	st := p.step(now, free)
	st.Share = p.pace.starved >= starvedAfter
	if st.Kind == StepRun || st.Kind == StepFlush {
		if p.owed == 0 {
			p.owed = now
		}
	}
	return st
}

func (p *Plan) step(now int64, free func(off, n int64) bool) Step {
	if len(p.pieces) > 0 {
		r := p.pieces[0]
		p.pieces = p.pieces[1:]
		return Step{Kind: StepData, Run: r}
	}
	if id, want := p.WantFlush(now); want {
		return Step{Kind: StepFlush, Flush: id}
	}
	r, wait, done := p.Next(now, free)
	switch {
	case done:
		return Step{Kind: StepDone}
	case r.Len > 0:
		return Step{Kind: StepRun, Run: r, Probe: p.look > DataMax}
	}
	return Step{Kind: StepWait, Wait: wait}
}

// Send says how a run crosses the wire.
type Send uint8

// The ways.
const (
	SendData    Send = iota // its bytes
	SendZero                // as a run of zeroes, of any length
	SendDigests             // its digests: only what differs follows
)

// Offer narrows a run that Step handed out to what the store has there, and says
// how it is sent. length and zero describe the store's first extent at r.Off.
func (p *Plan) Offer(r Run, length int64, zero bool) (Run, Send) {
	n, send := r.Len, SendDigests
	if p.kind == Copy {
		send = SendData
	}
	if p.look > DataMax && !(zero && length >= r.Len) {
		p.look = DataMax
	}
	if zero && p.kind != Verify {
		if whole := length / bitmap.BlockSize * bitmap.BlockSize; length >= r.Len {
			send = SendZero
		} else if whole > 0 {
			n, send = whole, SendZero
		}
	}
	if send != SendZero {
		n = min(n, p.pace.run())
		if !zero && length < n {
			n = min(n, (length+bitmap.BlockSize-1)/bitmap.BlockSize*bitmap.BlockSize)
		}
	}
	p.Narrow(r.ID, n)
	if send == SendZero {
		p.Plain(r.ID)
	}
	if p.kind == Verify {
		p.pace.spend(n)
	}
	r.Len = n
	if send == SendZero && n == p.look {
		p.Zeroes()
	}
	return r, send
}

// Zeroes says that the run that was read for SendData or SendDigests was all zeroes:
// the next runs look further ahead, and are sent as zeroes without being read.
func (p *Plan) Zeroes() {
	if p.kind != Verify {
		p.look = min(max(p.look, DataMax)*2, RunMax)
	}
}

// Take takes an answer of the target. known is false for one to what was not sent; one
// to an earlier plan (Follow) is passed over.
func (p *Plan) Take(now int64, msg protocol.Message) (known bool) {
	if id := answerID(msg); id > 0 && id <= p.before {
		return true
	}
	switch m := msg.(type) {
	case *protocol.SyncAck:
		known = p.Acked(now, m.ID)
	case *protocol.SyncFlushed:
		known = p.Flushed(m.ID)
	case *protocol.SyncDiffers:
		var send []Run
		send, known = p.Answered(now, m.ID, m.Differ[:])
		p.pieces = append(p.pieces, send...)
	}
	p.owed = 0
	if p.Awaits() {
		p.owed = now
	}
	return known
}

// answerID returns the id that an answer names; 0: it is none.
func answerID(msg protocol.Message) uint64 {
	switch m := msg.(type) {
	case *protocol.SyncAck:
		return m.ID
	case *protocol.SyncFlushed:
		return m.ID
	case *protocol.SyncDiffers:
		return m.ID
	}
	return 0
}

// Owed returns since when the target owes an answer; 0: it does not.
func (p *Plan) Owed() int64 { return p.owed }

// Asked returns when Step was last called, 0: never. A plan that nobody asks is
// not running.
func (p *Plan) Asked() int64 { return p.asked }

// Tick ends an interval of the pace, in which clients had requests under way for a
// share busy (0 to 1) of the time. The owner calls it some ten times a second.
func (p *Plan) Tick(now int64, busy float64) { p.pace.tick(now, busy) }

// Rate returns the rate that the plan is held to now, bytes/s; 0: none.
func (p *Plan) Rate() int64 { return int64(p.pace.limit()) }

// ErrUnflushed: a source sends runs and asks for no flush.
var ErrUnflushed = errors.New("too many runs without a flush")

// targetMax bounds what a target remembers: a source asks for a flush long before.
const targetMax = 64 << 10

// Target is the other side of a plan: what a target has taken since its last
// flush. Not safe for concurrent use.
type Target struct {
	runs []Run
}

// Wrote notes a run that was written, data or zeroes. The error is ErrUnflushed.
func (t *Target) Wrote(r Run) error {
	last := len(t.runs) - 1
	switch {
	case last >= 0 && t.runs[last].Off+t.runs[last].Len == r.Off:
		t.runs[last].Len += r.Len
	case len(t.runs) == targetMax:
		return ErrUnflushed
	default:
		t.runs = append(t.runs, r)
	}
	return nil
}

// Compare answers digests, mine being those of the same blocks here, as many. What
// is equal counts as written, unless it is a verify's. equal is how many bytes are.
func (t *Target) Compare(m *protocol.SyncDigests, mine []uint64) (ans *protocol.SyncDiffers, equal int64, err error) {
	ans = &protocol.SyncDiffers{ID: m.ID}
	for i, d := range m.Digests {
		if mine[i] != d {
			ans.Differ[i/64] |= 1 << (i % 64)
			continue
		}
		off := m.Off + int64(i)*bitmap.BlockSize
		n := min(bitmap.BlockSize, m.Off+m.Len-off)
		equal += n
		if m.Verify {
			continue
		}
		if err := t.Wrote(Run{Off: off, Len: n}); err != nil {
			return nil, equal, err
		}
	}
	return ans, equal, nil
}

// Flushed returns what was taken since the last call: all of it is durable, since
// the store was flushed after it.
func (t *Target) Flushed() []Run {
	runs := t.runs
	t.runs = nil
	return runs
}
