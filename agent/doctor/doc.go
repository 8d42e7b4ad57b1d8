// Package doctor looks at a host with the eyes of qrbd and says what to change: what
// the configuration, the files, the kernel and the network give, with and without a
// running agent.
//
//	qrbd doctor ──► Examine ──► host.go    kernel: UDP buffers, nbd and FUSE, clock
//	                      ├───► files.go   configuration, key, state, archives, backing stores
//	                      └───► peers.go   ── probe.go ──► each peer's port: is it there, how far,
//	                                │                      how large may packets be
//	                                └──── the agent's status: sessions, versions
//
// A check changes nothing on the host. It ends in one Finding or several; Change
// means that qrbd will not work well, or safely, until something is changed, Note that
// somebody should know.
//
// A peer's QUIC port is asked without a session: a packet of a version that does not
// exist has to be answered with the list of those that do (RFC 9000, section 6.1).
// No key is needed for that, no state is made on the peer, and packets of several
// sizes say which of them pass.
//
// Goroutines: one per peer while Examine runs.
package doctor
