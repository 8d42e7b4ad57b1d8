// Package compress makes payloads smaller for slow links: Zstandard (RFC 8878), every
// payload a frame of its own.
//
//	payload ──► Zstd.Compress ──► protocol.AppendCompressed ── wire ──► Zstd.Expand ──► payload
//	                              length as it is, frame, digest of the
//	                              payload as it is
//
// What comes from a peer is judged before anything is done with it: the frame's own
// structure has to add up to the length that the peer has named, which the protocol
// has bounded, and the result goes into the place that was made for it, and nowhere
// else.
//
// Invariant: memory is bounded by the number of payloads that are worked on at once
// (New), whatever is on the wire: some 1.5 MiB for each, made when the first payload
// comes. The package starts no goroutine. All is safe for concurrent use.
package compress
