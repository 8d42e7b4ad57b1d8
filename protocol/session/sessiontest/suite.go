// Package sessiontest holds the promises of package session as tests, to be run with
// each transport: what a session is, who is refused and with which words, what a
// hostile peer can do, and when a silent one is given up.
//
//	func TestSession(t *testing.T) { sessiontest.With{Transport: session.TCP, …}.Run(t) }
//
// A transport's own promises (what strangers cost before they have proved a key) are
// tested beside it.
package sessiontest

import (
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

// With is a transport under test, and what the tests cannot do by themselves.
type With struct {
	Transport session.Transport
	// Open has this transport.
	Open map[session.Transport]session.Opener
	// Simulate returns a network of two places with a round trip of 2 ms, inside a
	// synctest bubble. Both have this transport only.
	Simulate func(t *testing.T) Link
	// SimulateLine is Simulate with a line of so many bytes per second in each direction
	// and a queue in front of it that drops what would wait longer. nil: not to be had.
	SimulateLine func(t *testing.T, rate int, queue time.Duration) Link
	// Crash ends an endpoint and its connections as the death of the process does.
	Crash func(session.Endpoint)
	// CrashCause is what the peer's SessionDown is told then.
	CrashCause error
	// Strangers has strangers molest an endpoint in the transport's own ways, and returns
	// when they are at it. check is called beside them, stop ends them.
	Strangers func(t *testing.T, e session.Endpoint) (check, stop func())
	// Silent returns an address that takes packets and does not answer.
	Silent func(t *testing.T) string
	// FloodBytes is how much a peer can send that nobody reads, at least; HeldMax how
	// much more memory that costs this process, which has both ends, at most.
	FloodBytes, HeldMax int64
	// ControlApart: the control stream does not share flow control with others.
	ControlApart bool
	// AbortedControl: a peer that has aborted its control stream can be told why the
	// session ends.
	AbortedControl bool
}

// Link is a simulated network between two places.
type Link interface {
	// Opener returns what opens the port of place 1 or 2.
	Opener(place int) session.Opener
	// Cut makes what is sent toward a place vanish, or arrive again.
	Cut(toward int, cut bool)
}

// Timeouts of the nodes under test, unless a test has its own: those of a node that is
// not told any.
const (
	heartbeat   = 500 * time.Millisecond
	peerTimeout = 3 * time.Second
	dialTimeout = 3 * time.Second
	backoffMax  = 2 * time.Second

	// openings is how many streams of a session may be without a first frame.
	openings = 16
)

// Run runs all tests.
func (w With) Run(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Session", w.testSession},
		{"AbortUnblocks", w.testAbortUnblocks},
		{"CloseTellsThePeer", w.testCloseTellsThePeer},
		{"Restart", w.testRestart},
		{"Crash", w.testCrash},
		{"RemovePeer", w.testRemovePeer},
		{"UpdatePeer", w.testUpdatePeer},
		{"Compression", w.testCompression},
		{"BothDial", w.testBothDial},
		{"StreamLimit", w.testStreamLimit},
		{"OptionFaults", w.testOptionFaults},
		{"Refusals", w.testRefusals},
		{"WrongKeyThatMakesBothWait", w.testWrongKeyThatMakesBothWait},
		{"Unreachable", w.testUnreachable},
		{"BadHandshakes", w.testBadHandshakes},
		{"BadSessions", w.testBadSessions},
		{"Flood", w.testFlood},
		{"Strangers", w.testStrangers},
		{"ReplacedSession", w.testReplacedSession},
		{"SilentStreams", w.testSilentStreams},
		{"Silence", w.testSilence},
		{"UpdateWhileDialing", w.testUpdateWhileDialing},
		{"IdleStreamsStayOpen", w.testIdleStreamsStayOpen},
		{"Standstill", w.testStandstill},
		{"EveryWindowFull", w.testEveryWindowFull},
		{"BulkDoesNotDelayWrites", w.testBulkDoesNotDelayWrites},
		{"StoppedProcess", w.testStoppedProcess},
	} {
		t.Run(c.name, c.test)
	}
}
