package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// patienceMax is how long a goroutine waits awake for a client's next request,
	// and up to what usual pause of the client it does so.
	patienceMax = 40 * time.Microsecond
	// gapMax is what a longer pause counts as, and what a new client begins with: some
	// thirty short ones make up for it.
	gapMax = time.Millisecond
	// gapShare: a pause changes the average by one part in so many.
	gapShare = 8
)

var (
	// busy counts the requests in the devices of all connections of the process. With
	// any of them under way nobody waits awake: the CPU has something to wait for.
	busy atomic.Int64

	// connections counts those of all servers of the process.
	connections atomic.Int64

	// begin is where the clock of patience starts.
	begin = time.Now()

	// Awake waiting on a single CPU keeps the client from running.
	severalCPUs = runtime.NumCPU() > 1
)

// Connections returns how many connections the servers of this process have, handshakes among them. It takes no lock.
func Connections() int64 { return connections.Load() }

// patience decides whether it pays to wait awake for the next request of a client
// that has all its answers. To sleep and to be woken costs about 10 us on each side, as
// much as a small read itself; so a client that has been asking again within
// patienceMax is given that time, and one that has not is not.
//
// Measured with reads of 4 KiB, one at a time: 21 instead of 42 us, at 22 instead of
// 19 us of CPU. A client whose write or flush is answered by another goroutine while
// its reader sleeps gains nothing, and is not waited for.
//
// Owner: the reader goroutine of a connection.
type patience struct {
	idle time.Duration // since when the client has all its answers, after begin; 0: it waits for some
	gap  time.Duration // moving average of its pauses
}

func newPatience() patience { return patience{gap: gapMax} }

// wait begins to wait for the client.
func (p *patience) wait(now time.Duration) { p.idle = max(now, 1) }

// asked notes that the client has sent something.
func (p *patience) asked(now time.Duration) {
	if p.idle != 0 {
		p.gap += (min(now-p.idle, gapMax) - p.gap) / gapShare
		p.idle = 0
	}
}

// awake reports whether to go on waiting awake.
func (p *patience) awake(now time.Duration) bool {
	return severalCPUs && p.idle != 0 && p.gap < patienceMax && now-p.idle < patienceMax
}
