package main

// Where the simulator's seeds begin that have a quorum (tests/sim: quorumFrom), and
// those in which votes are attacked on purpose (votesFrom).
const (
	quorums = 8_000_000
	votes   = 8_500_000
)

// ofQuorums lets two primaries answer, or nobody.
var ofQuorums = []Mutant{
	{
		Name:  "answers-without-votes",
		Why:   "a primary answers without having been followed lately: one that was paused, or cut off, answers beside its successor",
		First: votes,
		Edits: []Edit{{"replica/quorum.go", "v.own == m.current && m.enough(m.votesForThis, false)\n}", "v.own == m.current\n}"}},
	},
	{
		Name:  "lease-too-long",
		Why:   "a primary counts votes longer than voters keep them",
		First: votes,
		Edits: []Edit{{"replica/lease.go", "m.now-p.votedAt < m.cfg.Lease/2\n", "m.now-p.votedAt < 3*m.cfg.Lease\n"}},
	},
	{
		Name:  "promise-broken",
		Why:   "a voter gives its leave to another while the primary that it follows may still answer",
		First: votes,
		Edits: []Edit{{"replica/lease.go", "return m.now < m.vote.until && m.vote.from != p }", "return false }"}},
	},
	{
		Name:  "promise-forgotten",
		Why:   "a voter that starts anew gives its leave at once, although it may have followed somebody a moment before",
		First: votes,
		Edits: []Edit{{"replica/machine.go", "		m.vote.until = now + cfg.Lease // what was promised is not known any more\n", ""}},
	},
	{
		Name:  "older-promoted",
		Why:   "voters do not look whether a candidate has the generation that they have followed",
		First: votes,
		Edits: []Edit{{"protocol/term.go", "	return g == 0 || m != nil && (", "	return true || m != nil && ("}},
	},
	{
		Name:  "own-vote-ignored",
		Why:   "a candidate does not look whether it has the generation that it has followed itself: what that one's primary had acknowledged is gone",
		First: votes,
		Edits: []Edit{{"replica/promote.go", "	case m.quorumOn() && !m.claimNow(0).Covers(m.vote.voted): //", "	case m.quorumOn() && m.stopping: //"}},
	},
	{
		Name:  "promoted-by-few",
		Why:   "a promotion does not need the leave of a quorum",
		First: votes,
		// Without the second edit nothing would come of it: whoever is present has been asked.
		Edits: []Edit{{"replica/promote.go", "	case !m.enough(votes, false):\n", "	case !m.enough(votes, false) && m.stopping:\n"},
			{"replica/promote.go", "	case !m.vote.quorate:\n", "	case !m.vote.quorate && m.stopping:\n"}},
	},
	{
		Name:  "votes-after-leaving",
		Why:   "a node that left in order has a vote again before those who do not miss it know that it is back",
		First: votes,
		Edits: []Edit{{"replica/quorum.go", "	return slices.ContainsFunc(m.all, func(p *peer) bool { return p.owes })", "	return false"}},
	},
	{
		Name:  "mints-without-votes",
		Why:   "a primary that is alone begins a generation, and two sides go on",
		First: votes,
		Edits: []Edit{{"replica/generation.go", "	case !m.followed(): // only", "	case m.stopping: // only"}},
	},
	{
		Name:  "answers-before-followed",
		Why:   "a primary answers in a generation that it has just begun, on votes for the one before: a successor may begin at that",
		First: votes,
		Edits: []Edit{{"replica/quorum.go", "v.quorate && v.own == m.current && m.enough", "v.quorate && m.enough"},
			{"replica/lease.go", "p.votedTerm == m.vote.reign && p.votedFor == m.current && p.present()", "p.votedTerm == m.vote.reign && p.present()"}},
	},
	{
		Name:  "never-yields",
		Why:   "a primary that was superseded stays one: nothing settles",
		First: votes,
		Edits: []Edit{{"replica/lease.go", "	m.yield(why)\n}\n", "	_ = why\n}\n"}},
	},
}
