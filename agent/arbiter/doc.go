// Package arbiter gives a volume on two nodes a third vote, kept in etcd.
//
//	volume ── frames, as with any witness ──► Link ──► Voter ──► Store ──► etcd
//	  (its machine sees a witness "etcd")              judges    one key, replaced only
//	                                                             by who has read the last
//
// Each node has a Voter of its own; what they share is one Record per volume. A Voter judges
// as a witness does (replica/lease.go): who follows a primary follows nobody else for a lease.
//
// The lease is not etcd's. Whoever holds the vote replaces the record with each claim, naming
// the revision that it had; whoever wants it waits until it has seen one revision for a whole
// lease by its own clock, and replaces exactly that one. The holder counts a vote for half a
// lease from before it wrote it. So with clocks up to a fifth too fast or slow it has stopped
// before another can have the vote, and nothing rests on the clock of a server, on who leads
// there, or on how long an answer was under way.
//
// The fencing token is the revision at which the vote was given. It is in the upper bits of the
// term of the reign that begins with it, which every handshake, claim and promotion carries:
// whoever has followed a later term refuses.
//
// Invariants: no vote is given on a record of another volume, or on one that no other node has
// confirmed to be the same (Record.ID): two nodes with two etcd's never both have the vote. What
// etcd has not confirmed was not said.
//
// Goroutines: two per Link, which end with Close.
package arbiter
