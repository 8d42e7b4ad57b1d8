// Package meta keeps what a node must remember of a volume in one file: who it
// is and what it knows of its peers (Super), which extents may be mid-write
// (activity pages), and per peer which blocks its replica may lack (bitmap
// pages). docs/ONDISK.md is the byte-exact description.
//
// The file is an array of pairs. A pair is one logical page in two slots of
// 4,096 bytes; a pair that was never written reads as zeroes and means "all
// clear", so the file is sparse:
//
//	pair   0        1..7       8          9 ..                        ..
//	     [super] [reserved] [activity] [peer 0: 8 pages] [peer 1: 8 pages] ... [peer 14] [peer 0: next 8] ...
//	      /   \                          each pair:  slot 0 | slot 1
//
// A commit writes each page into the slot that does not hold its newest durable
// version, syncs once, and then writes a mirror of it over the other slot without
// waiting for that to be durable:
//
//	            slot 0        slot 1
//	at rest     N (first)     N (mirror)
//	commit      N             N+1 written, synced      torn by a crash: slot 0 is valid
//	after it    N+1 (mirror)  N+1 (first)              torn by a crash: slot 1 is valid
//
// So a crash at any byte costs no committed version (the slot being written is
// never the only good one), and a page at rest survives the loss of either slot.
//
// Invariants:
//   - At most one slot of a pair is not durable at any time, and it is not the one
//     that holds the newest committed version.
//   - Every page of a commit carries the commit's sequence; commit N+1 starts after
//     commit N is durable. Hence a slot that is torn belongs to the last commit or
//     mirrors it, and a bad slot that was provably durable is damage: its bitmap
//     page counts as all set, its activity page as all active, a super page is an
//     error. Nothing falls back to an older version of those in silence.
//   - Open leaves every pair settled (both slots good and equal) and synced.
//
// Recover is pure over bytes. Nothing here starts a goroutine; the owner of a File
// calls it from one goroutine at a time.
package meta
