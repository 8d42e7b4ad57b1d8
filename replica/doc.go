// Package replica is the replication state machine of one volume on one node:
// everything that can be wrong about replication is decided here, and nothing
// is done here. It has no goroutine, clock, lock, I/O or logger. Its owner calls
// a method for each event and executes the effects that it returns:
//
//	client request ─┐                              ┌─► DoLocal     store I/O, then LocalDone
//	LocalDone ──────┤                              ├─► DoSend      a frame for a peer, in order
//	Data, Ack, ─────┤      ┌─────────┐             ├─► DoComplete  answer the client
//	Receive ────────┼────► │ Machine │ ─ Effects ─►├─► DoPersist   MetaBatch, commit, MetaDone
//	Linked, Lost ───┤      └─────────┘             ├─► DoSync      run the peer's plan
//	operator ───────┤                              ├─► DoConnect, DoDrop, DoReply, DoEvent
//	Tick(now) ──────┘                              └─
//
// The owner serialises calls (one mutex per volume), appends DoSend frames to the
// peers' queues in the order given before it lets the next event in, and executes
// the other effects in any order without the mutex.
//
// # Invariants
//
// Mark before write: a write is handed to the local store only after every peer
// that will not get it has its blocks marked (issue), and a peer that is lost has
// all writes marked that it has not confirmed as durable (lost).
//
// No reply before the ack set: a request completes when the local part and every
// member of its ack set is done. A member that is lost meanwhile leaves the set,
// but then the request waits until a new generation is durable here and at every
// connected peer, so that the copy left behind can never be taken for equal.
//
// A write is issued only while no overlapping write, and no sync run over its
// range, is in flight; every copy therefore applies overlapping writes in one
// order.
//
// A set bit is cleared only when a flush confirmed the copy (or a digest
// matched), or when the whole replica is confirmed by the sync source.
//
// # Files
//
// compare.go decides between two replicas by their ids, decision.go puts it into
// words. machine.go has the state, effect.go what is asked of the owner, metadata.go
// the versions of what is durable. request.go and write.go are the path of a request
// on the primary, secondary.go that of a replicated write. connect.go, handshake.go,
// receive.go and sync.go are the life of a connection, generation.go the minting of
// ids, discard.go what a sync takes from its target. promote.go, role.go (demote), switchover.go and stop.go change the role.
// tick.go is what time alone causes.
package replica
