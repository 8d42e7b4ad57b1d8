package tcpnet

import (
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

const (
	// alpnStream is the ALPN of connections that carry a stream of a session which is
	// there already. Control connections have session.ALPN.
	alpnStream = "qrbd-stream/1"

	// guestsMax is how many accepted connections, on top of two for each peer, may be
	// there without having proved a key and said what they are. One more ends the one
	// that has been there longest, of those that are from no peer's host if there are any: a stranger who holds connections
	// open without a word keeps nobody out.
	guestsMax = 48
	// joinedMax bounds the streams of a session on the accepting side, those included
	// whose end this side has not noticed yet.
	joinedMax = 2 * session.StreamsMax

	// readMax is how much one system call reads, and the most that a connection holds
	// beside the kernel's buffers.
	readMax = 64 << 10
	// bulkMax is that of a bulk stream that so much comes for at once, and how much of a Write to one is encrypted at a time: a
	// resync is an eighth faster for the wake-ups that it saves.
	bulkMax = 256 << 10
	// recordMax is the size of the largest TLS record on the wire: header, 2^14 bytes and
	// 256 of what encryption may add (RFC 8446 section 5.2).
	recordMax = 5 + 16<<10 + 256
	// batchMax is how much of a Write is encrypted before it is handed to the kernel: with
	// each system call the receiver may wake.
	batchMax = 64 << 10

	// unsentMax is how much of a bulk stream waits unsent in the kernel
	// (TCP_NOTSENT_LOWAT): what is there cannot be overtaken on this host.
	unsentMax = 256 << 10

	// lingerMax is how long a closed control connection waits for the peer to have read
	// why.
	lingerMax = time.Second
	// turnMax and turnBytes bound how long and how much is read of a connection that failed
	// in TLS, so that its other side can read the alert.
	turnMax   = 200 * time.Millisecond
	turnBytes = 64 << 10
	// acceptPause is the time between attempts to accept when the process has no
	// descriptors left.
	acceptPause = 100 * time.Millisecond
)

// SO_PRIORITY of the kinds of stream (tc-prio(8)): a queueing discipline with bands, like
// pfifo_fast, sends the first before the last.
const (
	priorityControl = 6 // interactive
	priorityWrite   = 6
	priorityShare   = 0 // best effort
	priorityBulk    = 2 // bulk
)
