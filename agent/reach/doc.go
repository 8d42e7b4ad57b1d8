// Package reach finds out whether a peer's port answers, how soon, and how large
// packets may be on the way.
//
//	Probe.Ask ── a packet of a QUIC version that does not exist ──► port
//	          ◄─ the versions that there are ───────────────────────
//
// A server has to answer such a packet (RFC 9000, section 6.1) without a key, and
// without keeping anything: so the network is told from a peer that does not accept
// this node. Packets of several sizes, which may not be fragmented, say which pass.
// Over TCP a connection is opened and closed.
//
// It has no goroutine; Ask blocks for a bounded time.
package reach
