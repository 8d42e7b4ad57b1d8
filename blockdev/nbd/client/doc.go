// Package client is a small NBD client: a remote export as a blockdev.Device,
// for attached volumes (package lasting is above it), tests and demonstrations. It trusts the server with
// the data and nothing else: a hostile reply ends the connection with an error
// and neither panics nor allocates more than the request asked for.
//
//	caller ─► Do: register the call, send under sendMu ─► socket
//	caller ◄─ call.done ◄─ receive goroutine: one reply at a time ◄─ socket
//
// Any number of goroutines may have requests in flight; replies come in any
// order. Handshake is the layer below, for tests that send what no honest client
// would.
//
// Owner: Dial starts the receive goroutine, Close (or the server's end of the
// connection) ends it, and Close waits for it.
package client
