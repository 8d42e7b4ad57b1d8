package quicnet

import "time"

const (
	// connsSpare is how many connections, on top of two for each peer, may exist
	// on the accepting side from peers' hosts, and as many from others; more are refused by their first packet.
	connsSpare = 48
	// retryAbove: with so many connections a new one has to prove its address
	// first (QUIC Retry), so that spoofed packets cost nothing more.
	retryAbove = 16

	// Flow control windows, in bytes. What a peer can make this node hold is the
	// connection's window, whatever the number of streams; it also bounds
	// throughput to window/RTT, 32 MiB at 40 ms being 840 MB/s. The initial ones are
	// large because growing them takes round trips that a burst would wait for.
	// A volume whose disk stands still leaves both its streams unread: twice a
	// stream's window is less than the connection's, so that others go on.
	streamWindowInitial = 8 << 20
	streamWindowMax     = 12 << 20
	connWindowInitial   = 28 << 20
	connWindowMax       = 32 << 20

	// idleMin is the least idle timeout that QUIC is given. The heartbeat finds
	// a dead peer long before; this one is for connections without one.
	idleMin = 10 * time.Second
)

// Urgencies of streams on the sending side, 0 being sent first. quic-go is
// strict: nothing of a level is sent while a more urgent one has data.
const (
	urgencyControl = 0
	urgencyWrite   = 1
	urgencyBulk    = 7
)
