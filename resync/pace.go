package resync

import (
	"math"
	"time"

	"github.com/qrbd/qrbd/bitmap"
)

// pace decides how fast a plan may go. Clients come first: while they keep the
// volume busy, a plan falls to its floor, in small runs of which one is in flight;
// while they leave it alone, nothing but the limit and the window holds it.
//
//	clients busy      per interval
//	>= half the time  the floor, at once
//	>= a quarter      half of the rate, not below the floor
//	< an eighth       half as much again; without limit once it is not the rate that holds
//
// Between an eighth and a quarter the rate stays: a plan takes what clients leave
// it, and does not swing.
//
// The window is twice what the link delivers in a round trip: enough to keep it
// full, and no more, since what is in flight holds its range. The round trip is
// that of a run (sent, written by the target, acknowledged), the shortest of the
// last seconds, so that the plan's own queue does not count.
type pace struct {
	compares  bool  // runs are compared first
	max, min  int64 // bytes/s; max 0: no limit
	windowMax int64

	rate   float64 // bytes/s that are granted now; 0: no limit of the pace's own
	busy   float64 // share of the last interval in which clients had requests under way
	allow  float64 // bytes that may be sent now
	at     int64   // when allow was last refilled
	tickAt int64

	answered  int64      // bytes answered since tickAt
	delivered float64    // bytes/s that the link lately delivered at its best
	trips     [2]float64 // ns, shortest round trip of a run: this period and the one before
	tripsAt   int64
	trip      float64 // ns, mean round trip of the last runs
	idle      bool    // since tickAt there was nothing to send, or it was not the link that held
	starved   int     // intervals in a row that delivered less than the floor, though there was work
}

const (
	// RateMin is the default floor. A database that keeps the volume busy for
	// days still gets its replica back: 4 MiB/s are 340 GiB a day.
	RateMin = 4 << 20
	// WindowMax is the default bound of the data in flight: 2 x 100 ms at 1.3 Gbit/s.
	WindowMax = 32 << 20

	// windowRuns are in flight at least while clients leave the volume alone: some
	// are read here, some cross the wire, some are written there, some are acknowledged.
	windowRuns = 12
	// tripsPeriod is how long the shortest round trip is remembered, twice at most.
	tripsPeriod = 5 * time.Second
	// burst is what may be sent at once after a pause, as time at the rate.
	burst = 100 * time.Millisecond
	// runTime is how long one run may take at the rate: short, so that a client's
	// request that comes meanwhile waits little.
	runTime = 4 * time.Millisecond
	runMin  = 16 << 10
	// runGood is what a run has on an idle link. It is read and written by a system
	// call during which a node with few threads does not serve its transport: four
	// times as much is a fifth slower. Where the window holds more than runsGood such
	// runs, the runs grow with it, up to DataMax.
	runGood  = 256 << 10
	runsGood = 32
	// compareGood is how many times as much a run has that is compared: reading it and making digests take a fifth of what
	// copying does, and each run wakes both sides.
	compareGood = 4
	// starvedAfter so many intervals below the floor, the plan asks for its share
	// of the link.
	starvedAfter = 5
)

func newPace(o *Options, now int64) pace {
	return pace{max: o.RateBytes, min: o.FloorBytes, windowMax: o.WindowBytes, at: now, tickAt: now, tripsAt: now, trips: [2]float64{math.Inf(1), math.Inf(1)}}
}

// limit returns the rate that holds now, bytes/s; 0: none.
func (c *pace) limit() float64 {
	switch {
	case c.rate == 0:
		return float64(c.max)
	case c.max == 0:
		return c.rate
	}
	return min(c.rate, float64(c.max))
}

// floor returns the rate below which clients do not push the plan.
func (c *pace) floor() float64 {
	if c.max > 0 {
		return float64(min(c.min, c.max))
	}
	return float64(c.min)
}

// tick ends an interval in which clients had requests under way for a share busy
// of the time.
func (c *pace) tick(now int64, busy float64) {
	took := float64(now-c.tickAt) / 1e9
	if took < 0.015 {
		return
	}
	got := float64(c.answered) / took
	c.delivered = max(got, 0.9*c.delivered)
	c.busy = busy
	switch {
	case busy >= 0.5:
		c.rate = c.floor()
	case busy >= 0.25:
		if c.rate == 0 {
			c.rate = c.delivered
		}
		c.rate = max(c.floor(), c.rate/2)
	case busy < 0.125 && c.rate > 0:
		if c.rate = c.rate * 3 / 2; c.rate > 4*c.delivered && c.rate > 4*c.floor() {
			c.rate = 0
		}
	}
	if got < 0.9*c.floor() && !c.idle {
		c.starved++
	} else {
		c.starved = 0
	}
	if now-c.tripsAt >= int64(tripsPeriod) {
		c.trips, c.tripsAt = [2]float64{math.Inf(1), c.trips[0]}, now
	}
	c.answered, c.tickAt, c.idle = 0, now, false
}

// answer notes that a run of n bytes was answered after a round trip.
func (c *pace) answer(n, trip int64) {
	c.answered += n
	if trip > 0 {
		if c.trip == 0 {
			c.trip = float64(trip)
		}
		c.trip += (float64(trip) - c.trip) / 8
		c.trips[0] = min(c.trips[0], float64(trip))
	}
}

// window returns how many bytes may be in flight.
func (c *pace) window() int64 {
	trip := min(c.trips[0], c.trips[1])
	switch {
	case !c.throttled():
		return min(max(windowRuns*c.run(), c.pipe()), c.windowMax)
	case math.IsInf(trip, 1):
		return 1 // one run
	}
	// The mean, not the shortest: what is in flight has to cover the limit on a link
	// whose round trips vary.
	return min(max(1, int64(2*c.limit()*max(trip, c.trip)/1e9)), c.windowMax)
}

// pipe returns twice what the link delivers in a round trip; 0: not known.
func (c *pace) pipe() int64 {
	trip := min(c.trips[0], c.trips[1])
	if math.IsInf(trip, 1) {
		return 0
	}
	return int64(2 * c.delivered * trip / 1e9)
}

// throttled reports whether clients hold the plan back.
func (c *pace) throttled() bool { return c.rate > 0 && c.busy >= 0.25 }

// run returns how much one run may have: what takes runTime.
func (c *pace) run() int64 {
	if c.compares {
		return c.runOf(compareGood * runGood)
	}
	return c.data()
}

// data returns how much data may cross the wire as one.
func (c *pace) data() int64 { return c.runOf(runGood) }

func (c *pace) runOf(good float64) int64 {
	r := c.delivered
	switch {
	case c.throttled():
		r = c.limit()
	case r == 0:
		return runGood // nothing is known of the link
	}
	most := min(max(good, float64(min(c.pipe(), c.windowMax)/runsGood)), DataMax)
	n := int64(min(r*runTime.Seconds(), most)) / bitmap.BlockSize * bitmap.BlockSize
	return max(n, runMin)
}

// flushBytes returns after how many copied bytes a flush is due: what the target
// flushes at once is what a client's flush there may have to wait for.
func (c *pace) flushBytes(most int64) int64 {
	if r := c.limit(); r > 0 {
		return min(most, max(int64(r), 1<<20))
	}
	return most
}

// wait refills the allowance and returns the time until something may be sent.
func (c *pace) wait(now int64) time.Duration {
	r := c.limit()
	if r == 0 {
		c.allow, c.at = 0, now
		return 0
	}
	if now > c.at {
		c.allow = min(c.allow+float64(now-c.at)/1e9*r, burst.Seconds()*r)
		c.at = now
	}
	if c.allow >= 0 {
		return 0
	}
	return time.Duration(-c.allow/r*1e9) + time.Millisecond
}

// spend takes what is sent, or compared, off the allowance. A run is let through
// as long as there is any, and paid for afterwards.
func (c *pace) spend(n int64) {
	if c.limit() > 0 {
		c.allow -= float64(n)
	}
}

// tune makes the limits of o hold from now on; what was measured stays.
func (c *pace) tune(o *Options) {
	c.max, c.min, c.windowMax = o.RateBytes, o.FloorBytes, o.WindowBytes
	c.allow = 0
}
