// Package quicnet carries sessions over QUIC: one connection with a peer, one
// QUIC stream for each of the session's. It is the only importer of quic-go.
//
//	session.Node ──► endpoint (one UDP socket, dialing and accepting)
//	                    └─► conn ──► stream: control, urgency 0
//	                                         write, urgency 1
//	                                         bulk, urgency 7
//
// Invariants: as package session has them; what an unknown node can make this one
// hold is bounded by the first packet (Source: limits.go).
//
// Goroutines: quic-go's only. Close returns when they have ended.
package quicnet
