package resync

import (
	"math/rand"
	"testing"
	"time"

	"github.com/qrbd/qrbd/bitmap"
	"github.com/qrbd/qrbd/protocol"
)

const testBlocks = 4096

func always(int64, int64) bool { return true }

// target is a naive other side: it copies blocks when told to and forgets, at a
// crash, what no flush followed.
type target struct {
	source, cache, durable []byte // a byte per block
	seen                   map[uint64]bool
}

func newTarget(seed int64) (*target, *bitmap.Set) {
	r := rand.New(rand.NewSource(seed))
	t := &target{source: make([]byte, testBlocks), cache: make([]byte, testBlocks), durable: make([]byte, testBlocks), seen: map[uint64]bool{}}
	set := bitmap.NewSet(testBlocks)
	for b := range t.source {
		t.source[b] = byte(r.Intn(4))
		t.cache[b] = t.source[b]
		if r.Intn(3) == 0 {
			t.cache[b] = byte(r.Intn(4))
			set.Set(int64(b), int64(b)+1)
		}
		t.durable[b] = t.cache[b]
		if set.Test(int64(b)) && r.Intn(2) == 0 {
			t.cache[b] = t.source[b] // copied by an earlier sync that never flushed
		}
	}
	return t, set
}

func (t *target) differ(r Run) (d [4]uint64) {
	first := r.Off / bitmap.BlockSize
	for i := range r.Len / bitmap.BlockSize {
		if t.cache[first+i] != t.source[first+i] {
			d[i/64] |= 1 << (i % 64)
		}
	}
	return d
}

func (t *target) copy(r Run) {
	first := r.Off / bitmap.BlockSize
	copy(t.cache[first:first+r.Len/bitmap.BlockSize], t.source[first:])
}

// TestPlanCopies drives plans with answers in any order, ranges that are busy for
// a while, and crashes of the target, and checks after every step that a block
// which differs durably has its bit.
func TestPlanCopies(t *testing.T) {
	for _, kind := range []Kind{Copy, Digest} {
		for seed := range int64(25) {
			planRound(t, kind, seed)
		}
	}
}

func planRound(t *testing.T, kind Kind, seed int64) {
	r := rand.New(rand.NewSource(seed))
	tg, set := newTarget(seed)
	p := New(kind, set, testBlocks*bitmap.BlockSize, Options{WindowBytes: 1 << 20, FlushBytes: 1 << 20}, 0)
	busy := int64(r.Intn(testBlocks)) * bitmap.BlockSize
	free := func(off, n int64) bool { return r.Intn(50) == 0 || busy < off || busy >= off+n }
	type job struct {
		run   Run
		piece bool
	}
	var jobs []job
	var flushes []uint64
	for step := 0; ; step++ {
		if step > 100000 {
			t.Fatalf("kind %d seed %d: does not end", kind, seed)
		}
		for b := range tg.durable {
			if tg.durable[b] != tg.source[b] && !set.Test(int64(b)) {
				t.Fatalf("kind %d seed %d: block %d differs durably and is not marked", kind, seed, b)
			}
		}
		if r.Intn(2) == 0 {
			run, _, done := p.Next(int64(step), free)
			if done {
				break
			}
			if run.Len > 0 {
				n := min(run.Len, int64(1+r.Intn(256))*bitmap.BlockSize)
				p.Narrow(run.ID, n)
				run.Len = n
				if !p.Holds(run.Off, 1) {
					t.Fatal("a run that is out is not held")
				}
				jobs = append(jobs, job{run, false})
			}
		}
		if id, want := p.WantFlush(0); want {
			flushes = append(flushes, id)
		}
		if len(jobs) > 0 && r.Intn(2) == 0 {
			i := r.Intn(len(jobs))
			j := jobs[i]
			jobs = append(jobs[:i], jobs[i+1:]...)
			if kind == Digest && !j.piece {
				d := tg.differ(j.run)
				send, known := p.Answered(0, j.run.ID, d[:])
				if !known {
					t.Fatal("an answer is not known")
				}
				for _, s := range send {
					jobs = append(jobs, job{s, true})
				}
			} else {
				tg.copy(j.run)
				if !p.Acked(0, j.run.ID) {
					t.Fatal("an acknowledgement is not known")
				}
			}
		}
		if len(flushes) > 0 && r.Intn(4) == 0 {
			copy(tg.durable, tg.cache)
			if !p.Flushed(flushes[0]) {
				t.Fatal("a flush is not known")
			}
			flushes = flushes[1:]
		}
		if r.Intn(100) == 0 {
			busy = int64(r.Intn(testBlocks)) * bitmap.BlockSize
		}
	}
	for b := range tg.durable {
		if tg.durable[b] != tg.source[b] {
			t.Fatalf("kind %d seed %d: block %d differs at the end", kind, seed, b)
		}
	}
	if s := p.Stats(); s.Done != s.Total {
		t.Fatalf("stats at the end: %+v", s)
	}
}

func TestUnknownAnswers(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	set.Set(0, 10)
	p := New(Copy, set, testBlocks*bitmap.BlockSize, Options{}, 0)
	run, _, _ := p.Next(0, always)
	if p.Acked(0, run.ID+1) {
		t.Error("an acknowledgement of nothing is taken")
	}
	if p.Flushed(7) {
		t.Error("a flush that nobody asked for is taken")
	}
	if _, known := p.Answered(0, run.ID, make([]uint64, 4)); known {
		t.Error("a copy takes an answer to digests")
	}
	if p.Acked(0, run.ID) {
		t.Error("an acknowledgement is taken of a run that was not sent yet")
	}
	p.Narrow(run.ID, run.Len)
	if !p.Acked(0, run.ID) || p.Acked(0, run.ID) {
		t.Error("an acknowledgement counts once")
	}
	if set.Count() != 10 {
		t.Error("bits were cleared before the flush")
	}
	id, want := p.WantFlush(0)
	if !want || !p.Flushed(id) || set.Count() != 0 {
		t.Errorf("flush wanted %t, %d bits left", want, set.Count())
	}
	if _, _, done := p.Next(0, always); !done {
		t.Error("not done")
	}
}

// TestEarlyAnswer: a target knows a run's number before the run is narrowed to what
// its answer has room for.
func TestEarlyAnswer(t *testing.T) {
	for _, kind := range []Kind{Digest, Verify} {
		set := bitmap.NewSet(testBlocks)
		set.SetAll()
		p := New(kind, set, testBlocks*bitmap.BlockSize, Options{}, 0)
		p.look = RunMax
		run, _, _ := p.Next(0, always)
		if run.Len <= DataMax {
			t.Fatalf("a run of %d bytes is no test", run.Len)
		}
		if _, known := p.Answered(0, run.ID, make([]uint64, 4)); known {
			t.Error("an answer is taken to what was not asked")
		}
		if set.Count() != testBlocks {
			t.Error("bits were cleared")
		}
	}
}

// TestFlushOfManyPieces: single blocks found equal do not pile up until a flush's
// worth of bytes is copied.
func TestFlushOfManyPieces(t *testing.T) {
	const blocks = 4 * ackedMax
	set := bitmap.NewSet(blocks)
	for b := int64(0); b < blocks; b += 2 {
		set.Set(b, b+1)
	}
	p := New(Digest, set, blocks*bitmap.BlockSize, Options{}, 0)
	for range ackedMax {
		run, _, _ := p.Next(0, always)
		p.Narrow(run.ID, run.Len)
		p.Answered(0, run.ID, make([]uint64, 4))
	}
	if _, want := p.WantFlush(0); !want {
		t.Errorf("%d pieces wait for a flush", ackedMax)
	}
}

func TestWindowBounds(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	set.SetAll()
	p := New(Copy, set, testBlocks*bitmap.BlockSize, Options{WindowBytes: 2 << 20}, 0)
	out := int64(0)
	for {
		r, wait, _ := p.Next(0, always)
		if r.Len == 0 {
			if wait == 0 {
				t.Fatal("nothing to do and no wait")
			}
			break
		}
		p.Narrow(r.ID, r.Len)
		out += r.Len
	}
	if out != 2<<20 {
		t.Errorf("%d bytes in flight, the window is 2 MiB", out)
	}
}

func TestRate(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	set.SetAll()
	const rate = 4 << 20
	p := New(Copy, set, testBlocks*bitmap.BlockSize, Options{WindowBytes: 1 << 30, RateBytes: rate}, 0)
	var now, sent int64
	for sent < testBlocks*bitmap.BlockSize {
		r, wait, done := p.Next(now, always)
		if done {
			break
		}
		if r.Len == 0 {
			if wait > time.Second {
				t.Fatalf("waits %v", wait)
			}
			now += int64(wait)
			if _, n := p.ahead(); n == 0 {
				break
			}
			continue
		}
		p.Narrow(r.ID, min(r.Len, DataMax))
		n := min(r.Len, int64(DataMax))
		p.Sent(n)
		sent += n
		p.Acked(0, r.ID)
	}
	took := time.Duration(now)
	want := time.Duration(float64(sent) / rate * 1e9)
	if took < want*8/10 || took > want*12/10 {
		t.Errorf("%d bytes at %d/s took %v of simulated time, not about %v", sent, rate, took, want)
	}
}

func TestVerifyMarks(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	p := New(Verify, set, testBlocks*bitmap.BlockSize, Options{}, 0)
	for {
		r, _, done := p.Next(0, always)
		if done {
			break
		}
		if r.Len == 0 {
			t.Fatal("waits with nothing in flight")
		}
		p.Narrow(r.ID, min(r.Len, DataMax))
		d := make([]uint64, 4)
		if r.Off == 1<<20 {
			d[0] = 0b110
		}
		p.Answered(0, r.ID, d)
	}
	if set.Count() != 2 || !set.Test(257) || !set.Test(258) {
		t.Errorf("%d blocks marked", set.Count())
	}
	bad := p.Bad()
	if len(bad) != 1 || bad[0].Off != 257*bitmap.BlockSize || bad[0].Len != 2*bitmap.BlockSize {
		t.Errorf("reported %+v", bad)
	}
}

func BenchmarkNextAcked(b *testing.B) {
	set := bitmap.NewSet(1 << 22)
	b.ReportAllocs()
	for b.Loop() {
		if set.Count() == 0 {
			set.SetAll()
		}
		p := New(Copy, set, 1<<34, Options{}, 0)
		for range 1000 {
			r, _, done := p.Next(0, always)
			if done {
				break
			}
			if r.Len > 0 {
				p.Narrow(r.ID, min(r.Len, DataMax))
				p.Acked(0, r.ID)
			}
			if id, want := p.WantFlush(0); want {
				p.Flushed(id)
			}
		}
	}
}

// What a target says of an earlier verify on the same connection tells nothing of the
// one that runs, whatever its runs are called.
func TestAnswersToAnEarlierPlan(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	verify := func() *Plan { return New(Verify, set, testBlocks*bitmap.BlockSize, Options{}, 0) }
	first := verify()
	old := first.Step(0, always).Run
	p := verify()
	p.Follow(first.LastID())
	r := p.Step(0, always).Run
	p.Offer(r, r.Len, false)
	if r.ID <= old.ID {
		t.Fatalf("run %d after %d of an earlier plan", r.ID, old.ID)
	}
	stale := &protocol.SyncDiffers{ID: old.ID}
	stale.Differ[0] = 1
	if !p.Take(1, stale) || set.Count() != 0 || p.Stats().Compared != 0 {
		t.Fatalf("%d blocks are marked, %d bytes compared", set.Count(), p.Stats().Compared)
	}
	if !p.Take(1, &protocol.SyncDiffers{ID: r.ID}) || p.Stats().Compared == 0 {
		t.Fatal("its own answer does not count")
	}
	if p.Take(1, &protocol.SyncDiffers{ID: r.ID}) || p.Take(1, &protocol.SyncDiffers{ID: p.LastID() + 1}) {
		t.Fatal("an answer to nothing is taken")
	}
}

// TestWhatIsComparedGoesFurther: on an idle link a run that is compared is longer than one that is copied, and what differs of it is sent
// in runs that are not.
func TestWhatIsComparedGoesFurther(t *testing.T) {
	for kind, want := range map[Kind]int64{Copy: runGood, Digest: compareGood * runGood, Verify: compareGood * runGood} {
		const blocks = 4 * compareGood * runGood / bitmap.BlockSize
		set := bitmap.NewSet(blocks)
		set.Set(0, blocks)
		p := New(kind, set, blocks*bitmap.BlockSize, Options{}, 0)
		p.pace.delivered = 10e9
		st := p.Step(0, always)
		r, _ := p.Offer(st.Run, st.Run.Len, false)
		if r.Len != want {
			t.Errorf("kind %d: run of %d bytes, want %d", kind, r.Len, want)
		}
		if kind != Digest {
			continue
		}
		all := &protocol.SyncDiffers{ID: r.ID}
		for i := range all.Differ {
			all.Differ[i] = ^uint64(0)
		}
		p.Take(1, all)
		for off := r.Off; off < r.Off+r.Len; off += runGood {
			if st := p.Step(1, always); st.Kind != StepData || st.Run.Off != off || st.Run.Len != runGood {
				t.Errorf("what differs at %d: step %d, run %+v", off, st.Kind, st.Run)
			}
		}
		p.pace.rate, p.pace.busy = RateMin, 1
		if p.pace.run() != p.pace.data() {
			t.Errorf("beside clients: runs of %d, of data %d", p.pace.run(), p.pace.data())
		}
	}
}
