package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// ruling is what the configured policies say of a split brain.
type ruling struct {
	loser   string // whose data is given up; "": nobody's
	rule    Rule
	why     string // in words, also when nobody is
	priLost string // the primary whose data a policy would give up
	full    bool   // nothing says which blocks differ
}

// rule says who is given up in a split brain between two replicas. common: the
// bitmaps of both count from the same parent. It is symmetric: both sides come to the
// same ruling from the same hellos.
//
// Invariant: a primary is never the loser, and a loser is never overwritten by a
// replica that is inconsistent or known to be older.
func rule(me, peer Side, common bool) ruling {
	if me.Policy != peer.Policy {
		return ruling{why: fmt.Sprintf("The policies for it differ: %s on %s; %s on %s. No policy is followed", me.Policy, me.Name, peer.Policy, peer.Name)}
	}
	var r ruling
	switch me.Role == protocol.Primary || peer.Role == protocol.Primary {
	case false:
		r = withoutPrimary(me, peer, common)
		r.rule = RuleAfterSB0
	case true:
		r = withPrimary(me, peer, common)
	}
	winner := me
	if r.loser == me.Name {
		winner = peer
	}
	if r.loser != "" && winner.Disk <= protocol.Outdated {
		return ruling{why: fmt.Sprintf("%s would give up %s, but %s is %s", r.rule, r.loser, winner.Name, winner.Disk)}
	}
	return r
}

// withPrimary rules where one side is primary, or both are.
func withPrimary(me, peer Side, common bool) ruling {
	primary, secondary := me, peer
	if me.Role != protocol.Primary {
		primary, secondary = peer, me
	}
	policy, r := me.Policy.Pri1, ruling{rule: RuleAfterSB1}
	if secondary.Role == protocol.Primary {
		policy, r.rule = me.Policy.Pri2, RuleAfterSB2
	}
	two := r.rule == RuleAfterSB2
	switch policy {
	case protocol.DiscardSecondary:
		if !two {
			r.loser, r.why = secondary.Name, secondary.Name+" is secondary"
		}
	case protocol.Consensus, protocol.CallPriLost:
		z := withoutPrimary(me, peer, common)
		r.why, r.full = z.why, z.full
		switch {
		case z.loser == "":
		case z.loser == secondary.Name && !two:
			r.loser = z.loser
		default:
			r.why += fmt.Sprintf(": after-sb-0pri would give up %s, which is primary", z.loser)
			if policy == protocol.CallPriLost {
				r.priLost = z.loser
			}
		}
	case protocol.AfterSBDisconnect, protocol.DiscardYoungerPrimary, protocol.DiscardOlderPrimary, protocol.DiscardZeroChanges,
		protocol.DiscardLeastChanges, protocol.DiscardNode:
	}
	if two && r.loser != "" {
		panic("replica: " + r.loser + " is given up as primary")
	}
	if !two && r.loser == primary.Name {
		panic("replica: the primary " + r.loser + " is given up")
	}
	return r
}

// withoutPrimary rules where nobody is primary.
func withoutPrimary(me, peer Side, common bool) ruling {
	mine, theirs := me.slot(peer.Name).Dirty, peer.slot(me.Name).Dirty
	older, younger := "", ""
	switch a, b := me.has(protocol.HelloWasPrimary), peer.has(protocol.HelloWasPrimary); {
	case a && !b:
		older, younger = me.Name, peer.Name
	case b && !a:
		older, younger = peer.Name, me.Name
	}
	undecided := func(format string, args ...any) ruling { return ruling{why: fmt.Sprintf(format, args...)} }
	switch me.Policy.Pri0 {
	case protocol.AfterSBDisconnect:
		return ruling{}
	case protocol.DiscardYoungerPrimary:
		if younger == "" {
			return undecided("It is not known which of them was primary when they parted")
		}
		return ruling{loser: younger, why: younger + " was promoted after they parted"}
	case protocol.DiscardOlderPrimary:
		if older == "" {
			return undecided("It is not known which of them was primary when they parted")
		}
		return ruling{loser: older, why: older + " was primary when they parted"}
	case protocol.DiscardNode:
		if n := me.Policy.Node; n == me.Name || n == peer.Name {
			return ruling{loser: n, why: "the configuration gives it up"}
		}
		return undecided("%s, which the configuration gives up, is neither of them", me.Policy.Node)
	case protocol.DiscardZeroChanges, protocol.DiscardLeastChanges:
	case protocol.Consensus, protocol.DiscardSecondary, protocol.CallPriLost:
		return undecided("The policy %s is none without a primary", me.Policy.Pri0)
	}
	if !common {
		return undecided("Their last common generation is too long ago to count what changed")
	}
	changed := fmt.Sprintf("%s changed %d blocks, %s %d", me.Name, mine, peer.Name, theirs)
	if peer.Name < me.Name { // the same words on both sides
		changed = fmt.Sprintf("%s changed %d blocks, %s %d", peer.Name, theirs, me.Name, mine)
	}
	least := me.Policy.Pri0 == protocol.DiscardLeastChanges
	switch {
	case mine == 0 && theirs == 0: // nothing to lose; but compare all of it
		return ruling{loser: max(me.Name, peer.Name), why: changed, full: true}
	case mine == 0 || least && mine < theirs:
		return ruling{loser: me.Name, why: changed}
	case theirs == 0 || least && theirs < mine:
		return ruling{loser: peer.Name, why: changed}
	}
	return undecided("%s", changed)
}

// giveUp makes loser the target of a divergence.
func (d *Decision) giveUp(loser, me string, full bool) {
	d.Code, d.Rebase, d.Digest = protocol.CodeNone, true, full
	switch {
	case loser == me && !full:
		d.Strategy = protocol.TargetBitmap
	case loser == me:
		d.Strategy = protocol.TargetFull
	case !full:
		d.Strategy = protocol.SourceBitmap
	default:
		d.Strategy = protocol.SourceFull
	}
}

// byPolicy reports whether a policy settled a split brain.
func (r Rule) byPolicy() bool { return r == RuleAfterSB0 || r == RuleAfterSB1 || r == RuleAfterSB2 }

// tellSplit tells of a split brain as soon as it is found, whatever comes of it.
func (m *Machine) tellSplit(p *peer, d Decision) {
	if !d.Split {
		return
	}
	m.event(p.name, "split-brain", "", "detected", fmt.Sprintf("%s and %s both took writes after they parted", m.cfg.Self, p.name))
	if d.PriLost == m.cfg.Self {
		m.event(p.name, "split-brain", "", "primary-lost", d.Why)
	}
}
