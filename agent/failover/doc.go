// Package failover moves the primary role of a volume, and what belongs on top of it,
// to the node that can have it: without a person and without a cluster manager.
//
//	volume, peers ──► View ──► Memory.Observe ──► Decide (pure) ──► Decision
//	                   ▲                                               │
//	   what is on top ─┘            Supervisor: one goroutine ◄────────┘
//	                                  promote, start, stop, hand over
//
// Who may be primary is not decided here. A promotion is an ordinary one, agreed between
// the nodes under a quorum: of several that try, one wins, and none does that might be
// wrong. This package decides when to try, and what runs on top:
//
//	secondary ──► the role is free for the delay ──► promote ──► start ──► running
//	    ▲                                                          │ fails, again and again
//	    └── switched over ◄── stopped ◄── another node can have it ┘
//
// Invariants: nothing is started but on a primary that answers requests; what is on top
// is stopped before the role is given up, and where the role is gone; what runs is asked,
// not assumed, so that a new life of the agent takes over what the last one started;
// every retry waits longer than the one before, up to backoffMax; a pause is durable, and
// while it lasts nothing is promoted, started, stopped or handed over.
//
// Goroutines: each Supervisor has one, which Run is, and one more for the time of an
// action.
package failover
