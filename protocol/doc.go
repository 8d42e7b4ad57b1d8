// Package protocol is what nodes say to each other: the messages, the words
// for states in them, their limits, and the codec between messages and bytes.
// It is pure: bytes in and out, no I/O, no clock, no goroutine.
//
//	sender                                        receiver
//	&Data{...} ─ AppendFrame ─► header│body ──►  ParseHeader: limits, lengths
//	                 payload ─────────────────►  read body and payload
//	                                             Decoder.Decode: digest, fields ─► *Data
//
// A frame's digest is computed before the frame is queued and checked after it
// was reassembled, so it covers what TLS does not: the buffers on both ends.
// It finds faults, not attackers; those are kept out by the session.
//
// Invariants: nothing is allocated for a length before the length was checked
// against its limit; what AppendFrame writes, Decode accepts; what Decode
// accepts satisfies the comment on its struct. docs/PROTOCOL.md has the layout
// of every message.
package protocol
