// Package crash holds a disk whose volatile cache can be lost, for tests.
//
//	WriteAt, Zero, Trim ──► cache: per sector, every version since the last flush
//	ReadAt ◄─────────────── cache over inner
//	Flush ────────────────► newest versions ──► inner, inner.Flush, cache empty
//	FUA ──────────────────► the same for the sectors of its range
//	Crash ────────────────► per sector, by the seed: nothing, or one of its versions
//
// A power cut keeps any subset of what was not flushed: a sector (512 bytes) is
// as it was at the last flush, or as any later write left it, whatever its
// neighbours and whatever was written before or after. Sectors are never mixed.
//
// NewVolatile is the same cache for a real process: nothing reaches the inner
// store but by Flush and FUA, so a SIGKILL is a power cut that loses everything
// unflushed.
//
// Invariants: after Flush the inner store has, durably, every operation that
// completed before it. After an operation with FUA it has the whole of every
// sector the operation touched. Nothing else is durable, with two exceptions that
// any cache may take: clears larger than hugeClear, and whatever a Volatile
// cache holds beyond its limit, are written early.
//
// One mutex is held across the inner store's I/O: a test store may be slow, and
// must be simple. No goroutines.
package crash
