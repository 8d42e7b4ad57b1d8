// Package tcpnet carries sessions over TCP: one TLS 1.3 connection for each of the
// session's streams. On one machine or one switch it costs a third of what QUIC
// costs; where packets are lost, or addresses change, QUIC is the better one.
//
//	session.Node ──► endpoint (one listening port)
//	                    └─► conn: control stream ── TLS, ALPN "qrbd/1"
//	                         ├─ write stream ────── TLS, ALPN "qrbd-stream/1", Join
//	                         └─ bulk stream ─────── the same
//
// A connection for each stream, because that gives each its own flow control, losses
// and congestion window in the kernel: bulk data that waits, for the line or for a
// disk, keeps no write waiting and no heartbeat. What ties a stream to its session is a
// ticket that both ends take from the TLS keys of the control connection, beside
// the key that the peer proves on every connection.
//
// The layers of a stream, and what each is for:
//
//	stream   whole records per Read, TryWrite, Abort, deadlines
//	tls.Conn crypto/tls
//	wire     one system call per Write of the stream, and per 64 KiB read;
//	         what TryWrite could not place is sent by a goroutine
//	net.Conn
//
// Invariants: as package session has them; a stream's connection ends with its session's
// control connection; what a node that has proved no key can make this one hold is bounded
// (Source: limits.go).
//
// Goroutines: endpoint owns accept and one welcome for each connection that has not said
// what it is (at most guestsMax and two for each peer); each conn one that ends its
// streams with it; a wire at most one flush; a closed control connection one
// that waits for the peer's end, for lingerMax at most. Close returns when all have ended.
package tcpnet
