package resync

import (
	"testing"
	"time"

	"github.com/qrbd/qrbd/bitmap"
)

const ms = int64(time.Millisecond)

// TestPaceLeavesClientsFirst: from full speed to the floor within one interval, and
// back within seconds.
func TestPaceLeavesClientsFirst(t *testing.T) {
	c := newPace(&Options{FloorBytes: 4 << 20, WindowBytes: WindowMax}, 0)
	now := int64(0)
	step := func(busy float64, delivered int64) {
		now += 100 * ms
		c.answer(delivered, 3*ms)
		c.tick(now, busy)
	}
	for range 20 {
		step(0, 30<<20)
	}
	if c.limit() != 0 || c.run() != runGood || c.window() < 4*runGood {
		t.Fatalf("idle: limit %.0f, run %d, window %d", c.limit(), c.run(), c.window())
	}
	step(0.9, 30<<20)
	if c.limit() != 4<<20 || c.run() > 128<<10 || c.window() > 1<<20 {
		t.Errorf("busy: limit %.0f, run %d, window %d", c.limit(), c.run(), c.window())
	}
	for range 50 {
		step(0.9, 400<<10)
	}
	rate := c.limit()
	step(0.2, 400<<10)
	if c.limit() != rate {
		t.Errorf("between the marks the rate went from %.0f to %.0f", rate, c.limit())
	}
	for range 40 {
		step(0.01, int64(min(max(c.limit(), 1<<20), 300<<20)/10))
	}
	if l := c.limit(); l != 0 && l < 100<<20 {
		t.Errorf("idle again for 4 s: limit %.0f", l)
	}
}

// TestRunsGrowWithTheLink: small runs where the round trip is short, and the window
// not cut into hundreds of them where it is long.
func TestRunsGrowWithTheLink(t *testing.T) {
	for _, c := range []struct {
		trip      int64
		perTick   int64
		run, most int64 // most: runs in flight
	}{
		{ms / 2, 60 << 20, runGood, 2 * windowRuns},
		{5 * ms, 60 << 20, runGood, runsGood},
		{100 * ms, 12 << 20, 488 << 10, 2 * runsGood}, // no longer than runTime
		{400 * ms, 60 << 20, DataMax, runsGood},
		{20 * ms, 1 << 20, 40 << 10, 2 * windowRuns}, // 10 MiB/s
	} {
		p := newPace(&Options{FloorBytes: RateMin, WindowBytes: WindowMax}, 0)
		for i := range int64(5) {
			p.answer(c.perTick, c.trip)
			p.tick((i+1)*100*ms, 0)
		}
		if p.run() != c.run || p.window() < min(p.pipe(), WindowMax) || p.window()/p.run() > c.most {
			t.Errorf("trip %v, %d bytes a tick: runs of %d, window %d, %d in flight", time.Duration(c.trip), c.perTick, p.run(), p.window(), p.window()/p.run())
		}
	}
}

// TestPaceHalves: clients who keep the volume busy for a third of the time push a
// plan down in steps, never below the floor, nor above the limit.
func TestPaceHalves(t *testing.T) {
	c := newPace(&Options{RateBytes: 64 << 20, FloorBytes: 1 << 20, WindowBytes: WindowMax}, 0)
	last := float64(64 << 20)
	for i := range int64(20) {
		c.answer(int64(last)/10, ms)
		c.tick((i+1)*100*ms, 0.3)
		if c.limit() > last || c.limit() < 1<<20 {
			t.Fatalf("interval %d: %.0f after %.0f", i, c.limit(), last)
		}
		last = c.limit()
	}
	if last != 1<<20 {
		t.Errorf("ends at %.0f, not at the floor", last)
	}
	low := newPace(&Options{RateBytes: 1 << 20, FloorBytes: 4 << 20, WindowBytes: WindowMax}, 0)
	low.tick(100*ms, 1)
	if low.limit() != 1<<20 {
		t.Errorf("a limit below the floor: %.0f", low.limit())
	}
}

// TestPaceHoldsFloor drives a plan under full client load over links of several
// round trips: it delivers its floor, and no more.
func TestPaceHoldsFloor(t *testing.T) {
	for _, trip := range []int64{ms / 2, 20 * ms, 150 * ms} {
		const blocks, floor = 1 << 16, 4 << 20
		set := bitmap.NewSet(blocks)
		set.SetAll()
		p := New(Copy, set, blocks*bitmap.BlockSize, Options{FloorBytes: floor}, 0)
		type answer struct {
			at int64
			id uint64
		}
		var way []answer
		var sent int64
		p.Tick(100*ms, 1)
		for now := 100 * ms; now < 20e9; now += ms / 4 {
			for len(way) > 0 && way[0].at <= now {
				p.Acked(now, way[0].id)
				way = way[1:]
			}
			if now%(100*ms) == 0 {
				p.Tick(now, 1)
			}
			switch st := p.Step(now, always); st.Kind {
			case StepRun:
				r, _ := p.Offer(st.Run, st.Run.Len, false)
				p.Sent(r.Len)
				sent += r.Len
				way = append(way, answer{now + trip, r.ID})
			case StepFlush:
				p.Flushed(st.Flush)
			case StepWait, StepData, StepDone:
			}
		}
		got := float64(sent) / 20
		if got < 0.85*floor || got > 1.5*floor {
			t.Errorf("round trip %v: %.1f MiB/s, the floor is 4", time.Duration(trip), got/(1<<20))
		}
	}
}

// TestStarvedAsksForItsShare: a plan whose link delivers less than the floor, though
// it has work, says so, and stops when it gets it.
func TestStarvedAsksForItsShare(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	set.SetAll()
	p := New(Copy, set, testBlocks*bitmap.BlockSize, Options{FloorBytes: 4 << 20}, 0)
	st := p.Step(0, always)
	r, _ := p.Offer(st.Run, st.Run.Len, false)
	p.Sent(r.Len)
	for i := range int64(starvedAfter + 2) {
		p.Tick((i+1)*100*ms, 1)
		if st := p.Step((i+1)*100*ms+1, always); st.Share != (i+1 >= starvedAfter) {
			t.Errorf("interval %d without an answer: share %v", i+1, st.Share)
		}
	}
	p.pace.answer(2<<20, 0)
	p.Tick(1000*ms, 1)
	if st := p.Step(1001*ms, always); st.Share {
		t.Error("it keeps its share though it is at the floor")
	}
}

// TestVerifyRange: position and figures of a part, stopped half-way.
func TestVerifyRange(t *testing.T) {
	set := bitmap.NewSet(testBlocks)
	p := NewVerify(set, testBlocks*bitmap.BlockSize, 1<<20, 4<<20, Options{}, 0)
	if p.Position() != 1<<20 || p.Stats().Total != 4<<20 {
		t.Fatalf("starts at %d of %d", p.Position(), p.Stats().Total)
	}
	a := p.Step(0, always)
	ra, send := p.Offer(a.Run, a.Run.Len, true)
	b := p.Step(0, always)
	rb, _ := p.Offer(b.Run, b.Run.Len, false)
	if send != SendDigests || ra.Off != 1<<20 || rb.Off != 1<<20+runGood {
		t.Fatalf("runs %+v (%d), %+v", ra, send, rb)
	}
	p.Answered(0, rb.ID, make([]uint64, 4))
	if p.Position() != 1<<20 {
		t.Errorf("position %d though the first run is not answered", p.Position())
	}
	p.Answered(0, ra.ID, make([]uint64, 4))
	if p.Position() != 1<<20+2*runGood || p.Stats().Done != 2*runGood || p.Stats().Compared != 2*runGood {
		t.Errorf("position %d, %+v", p.Position(), p.Stats())
	}
}
