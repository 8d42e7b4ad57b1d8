package protocol

import (
	"math"
	"slices"
)

// A term is 48 bits that count promotions, and 16 random ones that tell those of one
// number apart.
const termBits = 16

// forceCounts is how many promotions a forced one goes ahead of all that it knows of: so
// many its node may have missed. With terms that begin with revisions of etcd, which rise
// about once a second, that is 34 years; and there may be 2^18 forced promotions.
const forceCounts = 1 << 30

// TermOf returns the lowest term of a count of promotions.
func TermOf(count uint64) uint64 { return count << termBits }

// NextTerm returns a term above t, of a promotion with the random bits of r.
func NextTerm(t, r uint64) uint64 { return (t>>termBits+1)<<termBits | r&(1<<termBits-1) }

// ForcedOver returns what a promotion by an operator's word overrules, of a node that
// knows of terms up to t: the words of voters about a primary whose term is not above.
func ForcedOver(t uint64) uint64 {
	if t>>termBits > math.MaxUint64>>termBits-2*forceCounts { // not in any cluster's life
		return t
	}
	return NextTerm(t, 0) + forceCounts<<termBits - 1
}

// Overrules reports whether the claimant has an operator's word that what a primary was
// followed in, in that term, does not count any more. 0: nobody was followed.
func (m *Claim) Overrules(term uint64) bool { return term != 0 && term <= m.Overruled }

// Covers reports whether the claimant's data descend from a generation. nil: from none.
func (m *Claim) Covers(g Generation) bool {
	return g == 0 || m != nil && (g == m.Current || slices.Contains(m.History, g))
}

// Misses reports whether the claimant lacks data that a primary was followed with, in a
// term, and no operator has said that they do not count.
func (m *Claim) Misses(term uint64, voted Generation) bool {
	return !m.Covers(voted) && (m == nil || !m.Overrules(term))
}
