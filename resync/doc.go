// Package resync plans the copying of out-of-sync blocks from a source to a
// target, and the comparing of replicas (verify). It decides what to copy next
// and when a bit may be cleared; it reads, sends and waits for nothing.
//
//	dirty set ──cursor──► Next ─► run locked ─► (read, digest, send) ─► Answered / Acked
//	    ▲                                                                    │
//	    └────────── Flushed: the copies are durable, bits cleared ◄── Flush ◄┘
//
// A run holds its range from Next until it is acknowledged: the owner lets no
// write into a held range, and Next gives out no range that the owner says is
// being written. So a run never carries older data past a newer write. A range that
// is being written whenever its turn comes is reserved: it takes no new writes, and
// is handed out when those under way are done.
//
// Invariant: a bit is cleared only in Flushed: the target confirmed a flush that
// was asked for after the run was acknowledged, or after its digests matched
// (equal data may be in the target's cache only).
//
// A Plan is owned by the volume's lock and not safe for concurrent use.
package resync
