// Package session keeps one session with each configured peer: a connection,
// authenticated on both sides by pinned Ed25519 keys, that carries the streams
// of all volumes. How the bytes travel is a Transport's business: quicnet has
// one QUIC connection with streams, tcpnet one TLS connection for each stream.
//
//	                  Node
//	accept ──► welcome: TLS, key ─► hello ──┐
//	                                        ▼
//	dial ────► TLS, key ─► hello ───► peer.run: one live session ──► Handler
//	                                        │
//	                                     Session
//	            control stream: NodeHello, Ping, Pong, ConnectAsk, ReachAsk, ReachAnswer, Failover
//	            write streams:  one per volume
//	            bulk streams:   one per volume, what the others leave
//	                                        │
//	                  Endpoint, Conn, Carrier (transport.go)
//	                     quicnet          tcpnet
//
// Who dials: the node with the smaller public key, at once and with back-off.
// The other one dials too when it has been without a session for a while, so
// that a link that opens in one direction only, or a key that one side has
// wrong, still leads to a session or to an error that names the cause. When two
// connections meet, the one that the smaller key dialed stays.
//
// Both sides have the same transport configured for each other. A connection of
// another one is refused after the keys are proved, and both sides are told.
//
// Invariants: a peer has at most one session between SessionUp and SessionDown,
// and the calls alternate; a byte of a stream is read or written only after both sides
// have proved a configured key; every wait has an end; what an unknown or a
// hostile node can make this one hold is bounded (Source: limits.go, and the
// transports').
//
// Goroutines: Node owns an accept for each endpoint and, for each connection that is
// being established (at most handshakesMax, and those that just had to go), one welcome. Each peer owns run, at most one dial, and
// its session's: heartbeat, control, accept, and one for each stream being
// opened by the remote (at most openingMax). Close returns when all have ended.
package session
