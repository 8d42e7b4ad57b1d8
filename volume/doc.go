// Package volume is a running volume: a blockdev.Submitter for frontends and Control
// for operators outside, the executor of a replica.Machine inside. The machine decides
// everything about replication; this package reads, writes, sends and waits.
//
//	frontend ── Submit ─► request.go ─┐                       ┌─► send.go: queue ── send ──► peer
//	peer ── receive ──► receive.go ───┤  v.mu: machine step   ├─► request.go: store, on the spot
//	peer ── bulkReceive ─► bulk.go ───┼─► take(): effects ────┤      or by a worker (work.go)
//	operator ───────► operations.go ──┤  unlock, run()        ├─► journal.go: metadata ─► meta.File
//	ticker ─────────────► volume.go ──┘                       └─► teller: events, logged and told
//
// An event is a call of the machine under v.mu by whichever goroutine has it. What the
// machine wants done comes back as effects: frames enter the peers' queues before the
// lock is released (so that their order is the machine's), everything else is executed
// after. A client's request is answered by the goroutine that completed it.
//
// Invariants:
//
//   - v.mu is never held across I/O, a callback or a wait.
//   - Frames to a peer leave in the order in which the machine emitted them, and what a
//     peer sends on the write stream is applied in the order in which it arrives.
//   - No effect that depends on metadata runs before the metadata is durable: the machine
//     is told with MetaDone, and only journal.go tells it. Of a batch, bits become durable
//     before the super page that gives them a meaning.
//   - A buffer belongs to the client's request and to every queue that still has to send
//     it (blockdev.Buffer counts); it returns to its pool when the last lets go, so that
//     no link can carry another request's bytes.
//   - A store that failed a write or a flush is not asked again: the machine fails the
//     disk. A read error of a source ends the connection, and the blocks stay marked.
//   - Nothing that came over a lost connection lands on what came later:
//     until the store is done with it nothing else is let at it (late.go).
//   - Every wait has an end: a stream by Abort, a peer's answer by the machine's deadlines
//     and bulkTimeout, an operation by its context. Close returns when its context ends even
//     if the store hangs; what hangs is left behind and closed when it returns.
//
// Goroutines. Open starts those of the volume, AttachPeer those of a connection:
//
//	workers (16)  local operations that may take long; owners of the operation they took
//	journalLoop   commits metadata; what was asked for during a commit shares the next
//	tickLoop      everything that time alone causes, every 100 ms; links that stall
//	tellLoop      hands events to Options.OnEvent, in order
//	link.send     writes the queued frames, under writeMu; a lone small frame and an ack
//	              are written by whoever has them if nobody writes (pushNow, acknowledge)
//	link.receive  reads Conn.Write and applies it
//	link.flush    makes what was applied durable; flush points that wait share one
//	link.bulkReceive  serves Conn.Bulk, as source and as target
//	link.runPlan  while a sync or verify runs from here: hands its runs out
//
// Close ends all of them; a connection's also end when its streams are aborted.
//
// Lock order: link.writeMu or link.bulkMu, then v.mu. The journal, the queues' wake-ups
// and the teller are kicked through channels of capacity 1, without blocking.
package volume
