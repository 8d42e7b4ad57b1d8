// Package nbd serves block devices over the Network Block Device protocol, with
// everything that a database on the other end relies on: many requests in
// flight, FLUSH and FUA that mean stable, errors that name what went wrong, and
// no way for a client to make the server allocate by a length it claims.
//
// Source: the protocol document of the NBD project (doc/proto.md). The wire
// vocabulary is that of github.com/pojntfx/go-nbd/pkg/protocol, completed in
// wire.go. Extended headers are not offered.
//
// TLS is all or nothing (the protocol's FORCEDTLS, or NOTLS): a server with
// Credentials takes only STARTTLS and ABORT in plaintext, and then TLS 1.3 with a
// client certificate of its CA. There is no mode in which a client chooses, as
// whoever sits on the line would choose for it.
//
// A connection's life:
//
//	Serve ─► accept ─► handshake.go: haggle over options (one deadline for all of it)
//	                        │ GO or EXPORT_NAME: Exports.Open
//	                        ▼
//	         transmit.go: reader goroutine
//	  socket ─► source ─► decode, validate ─► Device.Submit ─┐
//	                │ erroneous, empty                       │ any goroutine
//	                ▼                                        ▼
//	         replies.push ◄──────────────────────────── requestDone
//	                │ whoever finds no writer active is the writer and sends all that is queued
//	                ▼
//	         one non-blocking writev ─► socket
//	                │ the client does not drain: hand the rest over
//	                ▼
//	         writer goroutine, which may block
//
// Invariants:
//
//   - A Done callback never waits for a client's socket.
//   - A reply is sent only after the device has called Done for its request, and
//     a read's success only with all of its bytes at hand.
//   - A request object, its buffer and its share of the connection's bytes are
//     held from the decoding of the header until the reply is written or the
//     connection is broken. Their number and bytes are bounded per connection, the
//     bytes of all connections by the Pool. At the bound the server stops reading.
//   - Nothing said in plaintext has an effect over TLS: options before STARTTLS
//     are not looked at, bytes behind it end the connection.
//   - Nothing that one option selected survives in another, save what the
//     protocol says: structured replies and the set of metadata contexts.
//
// Goroutines: one per listener (the caller's, in Serve); per connection one
// reader, which runs handshake, reading and teardown, and from the transmission
// phase on one writer; at most statusMax short ones per connection for
// BLOCK_STATUS. All end with the connection, which ends only when the device has
// completed its last request.
package nbd
