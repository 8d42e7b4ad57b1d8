// Package agent is a running node: it opens the volumes of a configuration,
// exports them over NBD, keeps a session with each peer, and answers the
// control API.
//
//	            control socket ──► Agent (operations.go)
//	                                 │
//	NBD clients ──► exports.go ──► slot ◄── links.go ◄── sessions (quicnet, tcpnet)
//	                                 │
//	                                 ▼
//	                          volume.Volume ──► backing store, metadata
//
// A slot is a configured volume, whether or not it could be opened: one that is
// not created, or whose disk is broken, is shown as diskless with the reason and
// does not keep the others from running.
//
// A connection of a volume to a peer is two streams of the nodes' session. The
// side that dialled the session opens both, when the session comes up, when its
// volume asks, and when the other side asks with ConnectAsk. The other side pairs
// them by their attempt number (links.go).
//
// An archive of a volume is exported by an NBD server of its own, for as long as
// the call that asked for it lasts (archives.go).
//
// Invariants:
//
//   - One agent per state directory, by a lock on it.
//   - An export is opened only while its volume is primary; a volume that stops
//     being primary has no NBD client left that could write.
//   - Nothing waits for ever: operations have the control API's end, streams
//     that lack their twin pairTimeout, stopping DrainTimeout.
//
// Goroutines, all ended by Close: one per NBD address and the NBD server's; the
// control server's; the session layer's; and short ones that Agent.spawn starts
// and counts (opening streams, refusing them, disconnecting clients).
//
// Lock order: slot.operation, then the event ring's lock, then slot.mu or links.mu
// (never both).
package agent
