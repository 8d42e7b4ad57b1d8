// Package archive keeps what the losing side of a split brain is about to lose. Of
// every 4 KiB block that is overwritten the content before that is appended to a
// file, once, and is durable there before the block changes. docs/ONDISK.md is the
// byte-exact description of the file.
//
//	                    Keep(range) ─► absent blocks ─► one append ─► fdatasync, shared
//	store ── read ──┐                                                     │
//	                ▼                                                     ▼
//	archive   [header][state, 2 slots][segment][segment] ...          overwrite
//	                                    │
//	            index in memory: block ─► place and digest in the file
//
// The view of an archive is its blocks over today's volume. It is exactly the
// volume as it was when the archive was begun, as long as every overwriting has
// been preceded by Keep: an archive collects while the sync that discards runs
// (nothing is overwritten unless it is kept), then follows, up to a limit of bytes,
// whatever else is overwritten, and is sealed after that. Sealed, it stays exact
// until the volume changes; later changes to other blocks show through.
//
// A Dir holds the archives of one volume, at most one of them live (collecting or
// following).
//
// Invariants:
//
//   - A block is archived once; the first content counts. A sync that is interrupted,
//     and a node that crashes, go on with the same file.
//   - What Keep covered is on stable storage when it returns nil.
//   - After an error nothing is appended to a file any more until it was opened anew:
//     it is then not known what the file system still holds.
//   - An archive is sealed durably before anything is overwritten that it lacks, or else
//     the volume's metadata durably cease to vouch for it (Options.Vouched). Only the
//     one that they vouch for is ever live, and only a live one is exact.
//   - A segment that was not synced may be torn or missing: the file is cut there. One
//     that was synced and does not read back is damage, which is reported, and the
//     archive is neither exported nor restored.
//
// Nothing here starts a goroutine. Lock order: Dir.mu, File.write, File.syncing,
// File.mu. The first three are held across I/O: that is what they serialise.
package archive
