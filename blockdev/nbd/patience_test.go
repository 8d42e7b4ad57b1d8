package nbd

import (
	"testing"
	"time"
)

// TestPatience: who has been asking again at once is waited for, as long as a short
// pause lasts, and who has not is not.
func TestPatience(t *testing.T) {
	if !severalCPUs {
		severalCPUs = true
		defer func() { severalCPUs = false }()
	}
	p := newPatience()
	now := time.Second
	pause := func(d time.Duration) {
		p.wait(now)
		now += d
		p.asked(now)
	}
	awake := func(after time.Duration) bool {
		p.wait(now)
		defer func() { p.idle = 0 }()
		return p.awake(now + after)
	}
	if awake(0) {
		t.Error("a new client is waited for")
	}
	for range 40 {
		pause(10 * time.Microsecond)
	}
	if !awake(patienceMax - 1) {
		t.Errorf("after 40 pauses of 10 us (mean %v) nobody waits", p.gap)
	}
	if awake(patienceMax) {
		t.Error("it waits for longer than patienceMax")
	}
	p.asked(now) // not waited for: no pause
	if !awake(0) {
		t.Error("a request in flight with others counts as a pause")
	}
	pause(time.Hour)
	if awake(0) {
		t.Errorf("after an hour of silence (mean %v) it waits", p.gap)
	}
	for range 16 {
		pause(10 * time.Microsecond)
	}
	if !awake(0) {
		t.Errorf("one long pause counts for more than sixteen short ones (mean %v)", p.gap)
	}
	if p.idle = 0; p.awake(now) {
		t.Error("it waits awake for a client that waits for an answer")
	}
}
