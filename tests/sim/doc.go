// Package sim runs whole clusters in one goroutine, from one seed: the real
// replica.Machine, resync.Plan, bitmaps, frame codec and metadata recovery on
// simulated disks, networks, clocks, clients and operators. The same seed gives
// the same run, event by event.
//
//	seed ─► scenario (nodes, protocols, latencies, faults, honest or not)
//	          │
//	          ▼          ┌──────── process: Machine, meta.File, links ───────┐
//	event heap (time) ─► │ effects: store I/O, frames, commits, answers      │ ─► more events
//	          ▲          └────┬──────────────┬──────────────────┬────────────┘
//	          │            disk.go       conn.go            metastore.go
//	   faults, operators,  (volatile     (order in a        (torn, lost
//	   clients             cache)        stream, cuts)      unsynced pages)
//	          │
//	          └─► oracle.go: what each replica must still hold, what a read may return
//
// process.go, link.go and bulk.go imitate package volume effect by effect: what is
// one goroutine there is a chain of events here, and what takes time there takes
// simulated time here, in which anything else may happen. A step that may block
// there (store I/O, a full stream) may be delayed here.
//
// # Checkers
//
// They share no code with what they check; they know what clients were told, which
// bytes the simulated disks hold, and what the machines claim in View.
//
//	C1  what was acknowledged is there when a replica is promoted, as far as the
//	    faults since allow (oracle.promoted); and at the moment of the
//	    acknowledgement on every replica that it speaks for (ack.go)
//	C2  after faults end, all copies are equal, bitmaps empty, generations equal
//	    (settle.go)
//	C3  copies that differ while nothing is in flight, or that are apart and will
//	    be compared by their bitmaps, are covered by a bit (compare, apart.go); at any moment, what
//	    would differ if every node lost power now is covered by what is on stable
//	    storage (outage.go)
//	C4  nobody acknowledges in a generation in which another node acknowledged
//	    what it does not have; acknowledged writes are overwritten by a sync only
//	    on an operator's word (oracle.acked, oracle.overwritten); whoever does not
//	    have an acknowledged write, or not on stable storage what a flush covers, is
//	    durably at another generation (ack.go)
//	    With a quorum: no request is answered by who was promoted before somebody that
//	    has answered (quorum.go); nobody is promoted without the leave of enough nodes, or
//	    without what was acknowledged and is somewhere; two good replicas never diverge
//	    (ballot.go)
//	C5  every request and operation is answered, everything settles in bounded time; a
//	    primary that was superseded steps down when it hears of that
//	C6  an inconsistent replica is not promoted without force; a read returns the
//	    newest acknowledged write, or one under way that every replica in the ack
//	    set has (ack.go), and never what was there before something that an earlier
//	    read has returned (oracle.read, saw)
//	C7  under every protocol a replica that holds a write holds what was
//	    acknowledged before it was submitted; after a power cut, what was flushed
//	    before it (prefix.go)
//	C8  of a side that was given up every block is as the simulator saw it when the
//	    sync began, in the archive or in place, also after any cut, until the archive
//	    is sealed (archive.go); what was put back is that to the last sector (restore.go)
//
// Some of them look earlier than a fault would (early.go): when a sync writes to its target
// (C1), takes bits back, or extents have left an activity map (C3); in the middle of every
// commit of metadata (P7); when an archive ends (C8); and with fencing at every
// acknowledgement, at whoever would be promoted without the primary (C4).
//
// Everything runs in the goroutine that calls Run.
package sim
