// Package lasting is an NBD export as a disk that outlives its server: while the
// server is away requests wait, and are sent again when it is back.
//
//	caller ─► order: wait for earlier requests that overlap
//	             │
//	             ▼
//	          a session? ── no ─► wait until there is one, or the dead time is over (ErrDead)
//	             │ yes
//	             ▼
//	          one of its connections ─► answered: done
//	             │ broken, or refused because the server shuts down
//	             └─► the session is over for everybody; again from "a session?"
//
// Invariants:
//
//   - Of two requests that overlap, and are not both reads, the later is not sent
//     before the earlier is answered. So what is under way when a server is lost
//     never overlaps, and may be sent again in any order.
//   - A session ends as a whole: no connection of a new one is made before the server
//     has closed every connection of the old one. A server closes a connection when it
//     is done with its requests, or is dead; so nothing that was sent before is
//     executed after what is sent now.
//   - A request that fails with ErrDead is not sent again, and nothing is sent after the
//     first of them: a disk that has lost a write takes no later one.
//
// A flush that is sent again covers what it covered the first time: every request
// that was answered before it was made has reached the server's store, which outlives
// the server's process.
//
// Goroutines: one, started by Open, which makes and ends sessions; it ends with Close
// or when the disk is dead. One for each connection, besides its own, which ends with it.
package lasting
