// Package doctor looks at a host with the eyes of qrbd and says what to change: what
// the configuration, the files, the kernel and the network give, with and without a
// running agent.
//
//	qrbd doctor ──► Examine ──► host.go    kernel: UDP buffers, nbd and FUSE, clock
//	                      ├───► files.go   configuration, key, state, archives, backing stores
//	                      └───► peers.go   package reach: is each peer's port there, how far,
//	                                       how large may packets be; the agent's sessions;
//	                                       and what the peers, asked through them, see of
//	                                       this node
//
// A check changes nothing on the host. It ends in one Finding or several; Change
// means that qrbd will not work well, or safely, until something is changed, Note that
// somebody should know.
//
// Goroutines: one per peer while Examine runs.
package doctor
