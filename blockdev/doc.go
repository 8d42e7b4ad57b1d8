// Package blockdev says what a disk is to qrbd and holds the stores that are one.
//
//	frontends (NBD export)          volume                    tests
//	      │ Submitter                  │ Device                 │ Device
//	      ▼                            ▼                        ▼
//	   AsyncQueue ───────────────►  File   (sparse file or block device)
//	   bounded workers              Memory (chunks, for tests)
//	                                crash.Device, fault.Device (around another)
//
//	      one write:    pwrite ──► page cache ──► (later, any order) disk
//	      one flush:    fdatasync, shared by all who wait for one
//	      one FUA:      pwritev2(RWF_DSYNC) on a descriptor of its own
//
// Invariants:
//
//   - A store is a disk with a volatile write cache: only Flush and FUA make
//     anything durable, and both mean stable storage.
//   - A range is checked before anything changes, without overflow.
//   - What was zeroed or trimmed reads as zeroes, edges included, on every store.
//   - After the first failed flush or write a File answers ErrFailed for ever.
//     The kernel reports a write-back error once per open file description and
//     forgets the pages, so a second fsync would lie. For the same reason no two
//     operations that sync ever share a description at the same time: one of
//     them would swallow the other's error.
//   - ErrNoSpace is not a failure of the disk: the range may be partly written,
//     everything else is as it was.
//
// Buffers come from a Pool, which bounds the bytes that are out at once and is
// the back-pressure of the whole program.
//
// Goroutines: only AsyncQueue starts any (its workers, owned by it, ended by its
// Close). Everything else runs on the caller's.
package blockdev
