package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// An operator who promotes by force says that this node's data count, whatever voters
// have followed before. Those that are reached say so themselves: they forget it. One
// that is away still remembers when it is back, and would not follow; so the word is
// kept (voting.overruled), is part of every claim, goes on to whoever follows it, and so
// to the successors. It is a term, above all that were known: what was followed in a term
// up to that does not count against the claimant.
//
// Invariant: once a forced promotion has been carried out nothing is acknowledged in a
// term that it overrules. The leave that it needs is a quorum's, and each of those, and the
// node itself, has made durable before that it follows no such term again (voting.floor);
// every quorum has one of them in it. Nodes that had left in order hear of the word before
// they vote again. (Nodes that the operator has called dead, and that are not, may go on:
// two sides are left then, and neither is overwritten without another word.)
//
// So what is overruled was acknowledged before the word, or never; and whoever was
// followed after it, by whomever, has a later term and is not overruled.

// objects reports whether this node has followed a primary whose data a claimant lacks,
// and no operator has said that they do not count.
func (m *Machine) objects(c *protocol.Claim) bool { return c.Misses(m.vote.term, m.vote.voted) }

// candidacy says, before PromoteAsk, what this node has and what its operator overrules.
func (m *Machine) candidacy(pr *promotion) *protocol.Claim {
	c := m.claimNow(0)
	c.Overruled = max(c.Overruled, pr.over)
	return c
}

// raiseFloor follows no primary any more in a term up to that. Before a promotion by force
// has this node's leave it is durable.
func (m *Machine) raiseFloor(term uint64) {
	if m.vote.floor < term {
		m.vote.floor = term
		m.persist()
	}
}

// overrule takes the operator's word of the promotion that is being carried out. It is
// durable with the role.
func (m *Machine) overrule() {
	if pr := m.promote; m.quorumOn() && pr != nil && pr.over != 0 {
		m.vote.overruled = max(m.vote.overruled, pr.over)
		m.raiseFloor(m.vote.overruled)
	}
}

// hearForce notes what an operator has said elsewhere meanwhile. It is durable with the
// right to vote, if this node has left (onReadmit).
func (m *Machine) hearForce(b *protocol.Ballot) {
	if m.role != protocol.Primary {
		m.raiseFloor(b.Overruled)
	}
}
