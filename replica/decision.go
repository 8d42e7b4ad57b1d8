package replica

import (
	"fmt"

	"github.com/qrbd/qrbd/protocol"
)

// Rule names a row of the decision table; it is shown by explain, logged with
// every handshake and covered by a script each.
type Rule string

// The rules of Compare in the order in which they are tried.
const (
	RuleRepair           Rule = "repair"                       // an operator has marked blocks copied, and says from where
	RuleInvalidate       Rule = "invalidate"                   // an operator wants one side overwritten
	RuleBothNew          Rule = "both-new"                     // 1
	RuleNewSelf          Rule = "new-self"                     // 2
	RuleNewPeer          Rule = "new-peer"                     // 3
	RuleEqualDisk        Rule = "equal-better-disk"            // 4: one side is inconsistent
	RuleEqualPrimary     Rule = "equal-primary"                // 4: the primary's copy counts
	RuleEqualSource      Rule = "equal-source"                 // 4: one side has begun to overwrite the other
	RuleEqualAsync       Rule = "equal-crashed-async"          // 4: A or B, the crashed primary may hold more
	RuleEqualSurvivor    Rule = "equal-survivor"               // 4: C, the survivor has every acknowledged write
	RuleEqualCrashed     Rule = "equal-crashed"                // 4: both restarted, one was primary
	RuleEqualBothCrashed Rule = "equal-both-crashed"           // 4: fixed tie-break
	RuleEqualCloser      Rule = "equal-closer"                 // 4: the other followed the lost primary under A or B
	RuleEqualLater       Rule = "equal-later"                  // 4: both followed it so; the other had parted from it before this one came
	RuleEqualShaken      Rule = "equal-shaken"                 // 4: the other may have lost what it had not flushed
	RuleEqualMissedEnd   Rule = "equal-missed-end"             // 4: a sync ended and one side did not hear
	RuleEqualDirty       Rule = "equal-dirty"                  // 4: bits are set, so that something may differ
	RuleEqual            Rule = "equal"                        // 4: nothing is out of sync
	RuleBitmapPeer       Rule = "bitmap-peer"                  // 5
	RuleBitmapPeerOther  Rule = "bitmap-peer-other"            // 6
	RuleBitmapSelf       Rule = "bitmap-self"                  // 7
	RuleBitmapSelfOther  Rule = "bitmap-self-other"            // 8
	RuleHistoryPeer      Rule = "history-peer"                 // 9
	RuleHistorySelf      Rule = "history-self"                 // 10
	RuleSplitBitmap      Rule = "split-brain"                  // 11
	RuleSplitHistory     Rule = "split-brain-history"          // 12
	RuleUnrelated        Rule = "unrelated"                    // 13
	RuleInterrupted      Rule = "interrupted-sync"             // 11-13, and one side is half overwritten by a third node
	RuleDiscard          Rule = "discard"                      // 11-13, and an operator gave one side up
	RuleAfterSB0         Rule = "after-sb-0pri"                // 11-12, and a policy gave one side up; nobody is primary
	RuleAfterSB1         Rule = "after-sb-1pri"                // the same; one is primary
	RuleAfterSB2         Rule = "after-sb-2pri"                // the same; both are
	RuleQuorum           Rule = "quorum"                       // one side has written without a quorum, so that nothing of it was acknowledged
	RuleDiskless         Rule = "primary-without-disk"         // the data of a primary without a disk is here
	RuleNoDisk           Rule = "no-disk"                      // a side has no disk: nothing to compare
	RuleDefer            Rule = "defer-to-primary"             // two secondaries; their primary settles it
	RuleOtherVolume      Rule = "other-volume"                 // ids of two volumes
	RuleFollowsAnother   Rule = "follows-another-primary"      // refused for now
	RuleTwoPrimaries     Rule = "two-primaries"                // refused
	RulePrimaryTarget    Rule = "primary-would-be-overwritten" // refused
	RuleNoGoodCopy       Rule = "no-good-copy"                 // refused
	RuleBusy             Rule = "overwritten-by-another"       // refused for now
)

// NamedID is one generation that a rule looked at.
type NamedID struct {
	Name string
	ID   protocol.Generation
}

// Decision is what one side is to do, by which rule, from which ids.
type Decision struct {
	Strategy protocol.Strategy
	Rule     Rule
	// Code is set when the strategy is SplitBrain, Unrelated or RefusedStrategy.
	Code protocol.Code
	// Digest: compare blocks before sending them.
	Digest bool
	// Other names the peer whose slot's bitmap serves (rules 6 and 8).
	Other string
	// Rebase: the target's own generation says nothing about the set bits, so
	// that the sync needs a base of its own to be resumable.
	Rebase bool
	// Split: both sides wrote after they parted (rules 11 and 12), whatever came of
	// it. Why is what a policy says, PriLost the primary that it would give up.
	Split   bool
	Why     string
	PriLost string
	// Half names the side that has newer data than the other, which is good, and only half
	// of them (RuleNoGoodCopy); "": none does.
	Half string
	IDs  []NamedID
}

// Mirror returns the decision as the other side sees it.
func (d Decision) Mirror() Decision {
	m := d
	switch d.Strategy {
	case protocol.SourceBitmap:
		m.Strategy = protocol.TargetBitmap
	case protocol.SourceFull:
		m.Strategy = protocol.TargetFull
	case protocol.TargetBitmap:
		m.Strategy = protocol.SourceBitmap
	case protocol.TargetFull:
		m.Strategy = protocol.SourceFull
	case protocol.NoSync, protocol.SplitBrain, protocol.Unrelated, protocol.Retry, protocol.RefusedStrategy:
	}
	switch d.Rule {
	case RuleNewSelf:
		m.Rule = RuleNewPeer
	case RuleNewPeer:
		m.Rule = RuleNewSelf
	case RuleBitmapPeer:
		m.Rule = RuleBitmapSelf
	case RuleBitmapSelf:
		m.Rule = RuleBitmapPeer
	case RuleBitmapPeerOther:
		m.Rule = RuleBitmapSelfOther
	case RuleBitmapSelfOther:
		m.Rule = RuleBitmapPeerOther
	case RuleHistoryPeer:
		m.Rule = RuleHistorySelf
	case RuleHistorySelf:
		m.Rule = RuleHistoryPeer
	default:
	}
	return m
}

// Text says a decision in words, from the side of me.
func (d Decision) Text(me, peer, volume string) string {
	if d.Rule.byPolicy() {
		loser, winner := me, peer
		if d.Strategy == protocol.SourceBitmap || d.Strategy == protocol.SourceFull {
			loser, winner = peer, me
		}
		return fmt.Sprintf("split brain: %s and %s both took writes after they parted; by policy %s the writes of %s are given up for those of %s (%s)",
			me, peer, d.Rule, loser, winner, d.Why)
	}
	switch d.Strategy {
	case protocol.NoSync:
		switch d.Rule {
		case RuleBothNew:
			return "both replicas are brand new: promote one with --force to start the volume"
		case RuleDiskless:
			return "one is primary without a disk of its own, and reads and writes through the other"
		case RuleNoDisk:
			return fmt.Sprintf("the disk of %s or %s has failed: they stay connected, and nothing is copied. Replace it and run there: qrbd replace-disk %s", me, peer, volume)
		case RuleDefer:
			return "both follow the same primary, which keeps them in sync"
		default:
			return "the replicas are equal; nothing is copied"
		}
	case protocol.SourceBitmap:
		return fmt.Sprintf("%s overwrites on %s the blocks that are marked out of sync", me, peer)
	case protocol.TargetBitmap:
		return fmt.Sprintf("%s is overwritten by %s in the blocks that are marked out of sync", me, peer)
	case protocol.SourceFull:
		return fmt.Sprintf("%s overwrites the whole replica on %s", me, peer)
	case protocol.TargetFull:
		return fmt.Sprintf("the whole replica on %s is overwritten by %s", me, peer)
	case protocol.SplitBrain:
		text := fmt.Sprintf("split brain: %s and %s both took writes after they parted. Nothing was overwritten. qrbd explain %s says who wrote what. "+
			"Choose the side to give up; there, demote the volume if it is primary and run: qrbd connect %s --discard-my-data; on the other side run: qrbd connect %s",
			me, peer, volume, volume, volume)
		if d.Why != "" {
			text += ". " + d.Why
		}
		return text
	case protocol.Unrelated:
		if d.Rule == RuleOtherVolume {
			return fmt.Sprintf("%s and %s hold two different volumes of the name %s: their volume ids differ. "+
				"Correct the configuration, or create the replica anew on the side that is to be overwritten: qrbd create %s --force", me, peer, volume, volume)
		}
		return fmt.Sprintf("%s and %s have no generation of %s in common: unrelated data. "+
			"On the side to give up run: qrbd connect %s --discard-my-data", me, peer, volume, volume)
	case protocol.Retry:
		return "the state changed meanwhile; the handshake starts again"
	case protocol.RefusedStrategy:
		switch d.Rule {
		case RuleTwoPrimaries:
			return fmt.Sprintf("%s and %s are both primary: demote one (qrbd demote %s)", me, peer, volume)
		case RulePrimaryTarget:
			return fmt.Sprintf("a primary's data is the older: demote the primary that is to be overwritten (qrbd demote %s) and connect again", volume)
		case RuleFollowsAnother:
			return fmt.Sprintf("%s and %s: one is primary, and the other is connected to another primary of %s: demote one of the two primaries (qrbd demote %s). If that one is dead, they compare again as soon as that is noticed",
				me, peer, volume, volume)
		case RuleBusy:
			return fmt.Sprintf("%s or %s is being overwritten by another node; they compare again after that", me, peer)
		default:
			if d.Half != "" {
				return fmt.Sprintf("%s was being overwritten with newer data than %s has, and has only half of them. Bring back the node that they came from. "+
					"If it is lost for good, give up what %s has of them: run there qrbd connect %s --discard-my-data", d.Half, other(d.Half, me, peer), d.Half, volume)
			}
			return fmt.Sprintf("neither %s nor %s can be the source: one is inconsistent or its disk failed", me, peer)
		}
	}
	return d.Strategy.String()
}

// other returns which of two names is not this one.
func other(name, a, b string) string {
	if name == a {
		return b
	}
	return a
}
