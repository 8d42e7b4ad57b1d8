package quicnet

import "time"

const (
	// settleAsleep and settleAwake are how many writes go by after a change before they count: CPUs that idle differently,
	// and a scheduler that has to find a CPU for one more thread that is always there, need up to 80 ms to settle.
	settleAsleep = 128
	settleAwake  = 768
	// trialCount is how many writes are counted on each side, some 25 ms.
	trialCount = 256
	// cycleMax is what a write that takes longer counts as: one that a scheduler has kept waiting for
	// milliseconds decides nothing.
	cycleMax = 500 * time.Microsecond
	// gainShare: to wait awake pays if it takes one part in so many off the time of a write.
	gainShare = 8
	// trialHold is how long a trial that was won is good for at most: conditions change.
	trialHold = 8 * time.Second
	// restMin, restMax: how long it sleeps after a trial that was lost, doubling with each in a row.
	restMin = 250 * time.Millisecond
	restMax = 8 * time.Second
)

// trial finds out whether writes come faster when their reader waits awake for them, by doing so after it has slept:
//
//	┌─► asleep: mean of 256 writes ─► awake: mean of 256 writes ─┬─ an eighth less: awake, 8 s, while it is less ─┐
//	│                                                            └─ not so: asleep, 1/4 s, 1/2 s, … 8 s ──────────┤
//	└─────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//
// What it compares is the time from one write to the next, with the answer's way and the client's own work: that is
// what there is to gain, or to lose where others want the CPU that waits awake. Such a loss cannot be seen from the waiting
// thread: it is not taken off its CPU while the peer, or the peer's client, waits for that CPU behind it.
//
// In turns of a few writes it would measure the turns: each finds the CPUs as the other has left them.
type trial struct {
	awake bool          // for the next write
	count int           // writes since it fell asleep or woke, up to what settles and what counts
	sum   time.Duration // of the cycles that count, until they are trialCount
	mean  time.Duration // of the cycles that count, a moving one from then on
	slept time.Duration // awake: mean of the cycles before
	until time.Duration // asleep: not awake before; awake: not after
	rest  time.Duration // after the last loss
}

// write notes that the next write has come, a cycle after the last.
func (t *trial) write(now, cycle time.Duration) {
	cycle = min(cycle, cycleMax)
	settle := settleAsleep
	if t.awake {
		settle = settleAwake
	}
	switch {
	case t.count == settle+trialCount:
		t.mean += (cycle - t.mean) / trialCount
		if now >= t.until || t.awake && t.mean > t.slept {
			t.turn(!t.awake, now)
		}
		return
	case t.count >= settle:
		t.sum += cycle
	}
	if t.count++; t.count < settle+trialCount {
		return
	}
	t.mean = t.sum / trialCount
	switch {
	case !t.awake && now >= t.until:
		t.turn(true, now)
	case t.awake && t.mean <= t.slept-t.slept/gainShare:
		t.rest = 0 // won
	case t.awake:
		t.turn(false, now)
		t.lost(now)
	}
}

// stop notes that there are no such writes any more. What has not won has lost.
func (t *trial) stop(now time.Duration) {
	if t.awake {
		t.until = now
		if t.count < settleAwake+trialCount {
			t.lost(now)
		}
	}
	t.awake, t.count, t.sum = false, 0, 0
}

// turn falls asleep or awakes.
func (t *trial) turn(awake bool, now time.Duration) {
	t.slept = t.mean
	t.awake, t.count, t.sum = awake, 0, 0
	t.until = now
	if awake {
		t.until += trialHold
	}
}

// lost has it sleep for a while.
func (t *trial) lost(now time.Duration) {
	t.rest = min(max(2*t.rest, restMin), restMax)
	t.until = now + t.rest
}
