package quicnet

import (
	"testing"
	"time"
)

// stage is a time in which writes take asleep or awake, each of them, on a clock of its own.
type stage struct {
	asleep, awake time.Duration
	lasts         time.Duration
	burst         int           // writes between two pauses; 0: none
	pause         time.Duration //
	settles       int           // writes after it woke that take three times as long
}

// play has a trial meet the stages and returns the share of the last one's writes for which it waited awake.
func play(stages []stage) float64 {
	var t trial
	var now time.Duration
	var all, awake, row int
	for _, s := range stages {
		all, awake = 0, 0
		for end := now + s.lasts; now < end; all++ {
			cycle := s.asleep
			if row++; !t.awake {
				row = 0
			} else {
				awake++
				if cycle = s.awake; row <= s.settles {
					cycle *= 3
				}
			}
			if all%7 == 0 {
				cycle += cycle / 2 // as unsteady as real ones
			}
			now += cycle
			t.write(now, cycle)
			if s.burst > 0 && all%s.burst == s.burst-1 {
				now += s.pause
				t.stop(now)
			}
		}
	}
	return float64(awake) / float64(all)
}

func TestTrial(t *testing.T) {
	const us = time.Microsecond
	quiet := stage{asleep: 98 * us, awake: 60 * us, lasts: 60 * time.Second}
	busy := stage{asleep: 67 * us, awake: 105 * us, lasts: 60 * time.Second} // as measured with a CPU taken
	lots := quiet
	lots.burst, lots.pause = 5000, 15*time.Millisecond
	slow := quiet
	slow.settles = 700 // as long as a scheduler was seen to take
	bursts := busy
	bursts.burst, bursts.pause = 1000, 15*time.Millisecond
	stall := busy
	stall.awake = 4 * time.Millisecond // every awake wait costs the client a time slice
	tests := []struct {
		name     string
		stages   []stage
		min, max float64
	}{
		{"quiet CPUs", []stage{quiet}, 0.98, 1},
		{"quiet CPUs, pauses", []stage{lots}, 0.9, 1},
		{"quiet CPUs, a scheduler that takes its time", []stage{slow}, 0.98, 1},
		{"busy CPUs", []stage{busy}, 0, 0.03},
		{"busy CPUs, bursts", []stage{bursts}, 0, 0.06},
		{"busy CPUs, time slices", []stage{stall}, 0, 0.03},
		{"too small a gain", []stage{{asleep: 98 * us, awake: 90 * us, lasts: 60 * time.Second}}, 0, 0.03},
		{"CPUs become busy", []stage{quiet, busy}, 0, 0.03},
		{"CPUs become quiet", []stage{busy, quiet}, 0.8, 1},
		{"the client becomes slower", []stage{quiet, {asleep: 180 * us, awake: 140 * us, lasts: 60 * time.Second}}, 0.97, 1},
	}
	for _, test := range tests {
		if got := play(test.stages); got < test.min || got > test.max {
			t.Errorf("%s: waits awake for %.3f of the writes, want %v to %v", test.name, got, test.min, test.max)
		}
	}
}

// TestTrialRests: each loss in a row doubles the time until the next attempt, up to restMax, and a gain ends the row.
func TestTrialRests(t *testing.T) {
	var tr trial
	var now time.Duration
	gain := false
	attempt := func() (begun time.Duration) {
		for was := false; ; was = tr.awake {
			cycle := 100 * time.Microsecond
			if tr.awake && gain {
				cycle /= 2
			}
			now += cycle
			tr.write(now, cycle)
			switch {
			case tr.awake && !was:
				begun = now
			case was && (!tr.awake || tr.rest == 0 && tr.count == settleAwake+trialCount):
				return begun
			}
		}
	}
	ended := func() time.Duration { attempt(); return now }
	end := ended()
	for want := restMin; want <= 2*restMax; want *= 2 {
		begun := attempt()
		if rest := begun - end; rest < min(want, restMax) || rest > min(want, restMax)+restMin {
			t.Errorf("it slept for %v after a loss, want %v", rest, min(want, restMax))
		}
		end = now
	}
	gain = true
	attempt()
	if tr.rest != 0 || !tr.awake {
		t.Errorf("after a gain it rests for %v, awake %v", tr.rest, tr.awake)
	}
}
