// Package ledger judges disks from outside. It writes sectors that say who they
// are, notes every write as it is issued, acknowledged and flushed, and decides
// afterwards whether what a disk holds is a state that it may show.
//
//	Load ── Begin(write) ──► ops: issue, ack, durable times ◄── Ack, Flushed
//	  │                        │
//	  └── sectors ──► disk ──► Judge(rule): each sector whole? which write is it?
//	                           was it already replaced by one that must be there?
//
// It shares no code with what it judges. Time is a counter of the ledger's own
// events, so that "acknowledged before issued" is exact and needs no clock.
//
// Invariants:
//   - a write's content is a function of (ledger, sector, stamp): a sector that
//     is not byte for byte what its stamp says is torn, misplaced or foreign;
//   - write s in a sector is stale when a write t to that sector, which the rule
//     requires, was issued after s was acknowledged. Writes that overlapped in
//     time may have ended either way;
//   - a write that was never acknowledged may be there or not.
//
// A Ledger is safe for concurrent use. Load.Run owns its workers and returns
// after all of them ended.
package ledger
