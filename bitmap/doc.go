// Package bitmap remembers which parts of a volume need attention: Set holds
// the blocks a peer's replica may lack, Activity the extents that may be
// mid-write. It is pure: no goroutine, clock, I/O or lock. Nothing in it is safe
// for concurrent use; the lock of the volume that owns a value guards it.
//
//	volume   |<------------------------- size ------------------------->|
//	blocks   4 KiB  one bit each in a Set; dirty tracking and resync
//	extents  4 MiB  one bit each in the Activity; 1024 blocks
//	pages    31 extents = 31,744 blocks = 3,968 bytes of bits: what fits into
//	         one 4,096-byte page of the metadata file beside its header
//
// A Set is an array of pages. A page without set bits is nil, a page with all
// bits set is one page shared by every Set, others are allocated on first use:
//
//	pages  [nil] [full] [ * ] [nil] ...        1 TiB: 8,457 pointers
//	                      |
//	                      +-> 496 words
//
// so an empty or full set of 1 TiB takes 84 KiB, and an operation on a huge range
// costs a step per page, not per bit.
//
// An extent's life in the Activity:
//
//	        Touch           Snapshot             Written
//	cold ----------> arming ----------> writing ----------> hot
//	  ^                 ^                  |                  |
//	  |                 +------ Failed ----+                  |
//	  +----------------------- Cool --------------------------+
//
// Invariants:
//   - A page of a Set that differs from what was last taken by ChangedPages is
//     marked changed; LoadPage alone does not mark.
//   - Bits at or beyond Blocks are never set.
//   - The full page is never written to.
//   - An extent is hot only if its bit was in a Snapshot that was confirmed by
//     Written and no Cool came after; only then does Touch return true.
//   - While an extent is hot, arming or writing, its bit is in every Snapshot.
package bitmap
