package quicnet

import (
	"net"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patienceMax is how long the reader waits awake for a peer's next write, and up to
	// what usual wait it does so.
	patienceMax = 200 * time.Microsecond
	// usualMax is the usual wait from which on there is nothing to be found out.
	usualMax = 2 * patienceMax
	// waitLong is what a longer wait counts as, and what a new socket begins with: some
	// ten short ones make up for it.
	waitLong = time.Millisecond
	// pauseMin is how long peers are silent between one piece of work and another.
	pauseMin = 10 * time.Millisecond
	// waitShare: a wait changes the average by one part in so many.
	waitShare = 8
	// writeMin and writeMax bound what counts as a write that came by itself. Less is an
	// acknowledgement, a flush or a heartbeat. More is many at once: then the CPUs have other work.
	writeMin = 256
	writeMax = 16 << 10
)

// clockStart is where the clock of patience starts.
var clockStart = time.Now()

// patience decides whether it pays to wait awake for what peers send next. To be woken on a CPU that has gone idle takes a virtual machine some
// 15 us on the way there, and as much for who is woken next: a third of what one small write takes. So a peer that
// sends small writes one at a time, each soon after the answer to the last, is waited for awake, as long as a trial finds that
// writes come faster for it. Who sends the writes receives nothing but small answers, and never waits so: its CPU is what the
// peer and the client want.
//
// While it waits awake a runtime with one thread looks at its other sockets (the control API, the metrics) every 10 ms.
//
// Owner: the goroutine that reads the socket.
type patience struct {
	raw     syscall.RawConn
	calm    func() bool           // whether nothing else in the process is waited for; nil: never
	several bool                  // CPUs. Awake waiting on a single one keeps others from running
	look    func(fd uintptr) bool // kept, so that a wait costs no allocation
	now     func() time.Duration  // after clockStart
	ready   func(fd uintptr) bool // whether there is something to read
	since   time.Duration         // when the wait began
	wrote   time.Duration         // when the last write came
	usual   time.Duration         // moving average of the waits for writes
	trial   trial
}

// newPatience returns the patience of a socket's reader.
func newPatience(udp *net.UDPConn, calm func() bool) *patience {
	p := &patience{calm: calm, several: runtime.NumCPU() > 1, usual: waitLong, ready: readable,
		now: func() time.Duration { return time.Since(clockStart) }}
	p.raw, _ = udp.SyscallConn() // the reader meets the error
	p.look = p.lookAt
	return p
}

// await is called before each read. It waits awake if that pays, and returns when there is something to read or when it pays no
// more: the caller reads either way, and may sleep then.
func (p *patience) await() {
	p.since = p.now()
	if p.pays() {
		_ = p.raw.Read(p.look) // the reader meets the error
	}
}

// pays reports whether to begin to wait awake.
func (p *patience) pays() bool {
	return p.trial.awake && p.usual < patienceMax && p.several && p.raw != nil && p.calm != nil && p.calm()
}

// lookAt waits awake on the socket; always true: what is left of the wait is the caller's.
func (p *patience) lookAt(fd uintptr) bool {
	for !p.ready(fd) && p.now()-p.since < patienceMax {
		runtime.Gosched()
	}
	return true
}

// came is called after each read, with its length.
func (p *patience) came(n int) {
	if n < writeMin {
		return
	}
	now := p.now()
	wait, cycle := now-p.since, now-p.wrote
	p.wrote = now
	if n > writeMax {
		wait = max(wait, waitLong)
	}
	p.usual += (min(wait, waitLong) - p.usual) / waitShare
	if wait >= pauseMin {
		p.usual = waitLong
	}
	if p.usual < usualMax {
		p.trial.write(now, cycle)
	} else {
		p.trial.stop(now)
	}
}

// readable reports whether reading the socket would not wait; also if it has failed.
func readable(fd uintptr) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p[:], 0)
	return n > 0 || err != nil && err != unix.EINTR
}
