package replica

import (
	"github.com/qrbd/qrbd/protocol"
)

// Side is one replica in a comparison: its name and what it says of itself.
type Side struct {
	Name string
	*protocol.Hello
	Voted protocol.Generation // of the primary that it has followed last, or its own; 0: none, or no quorum
}

// side is this replica in a comparison with p, when it says h.
func (m *Machine) side(h *protocol.Hello) Side { return Side{m.cfg.Self, h, m.vote.voted} }

// side is p's replica, as it was heard last.
func (p *peer) side() Side {
	s := Side{Name: p.name, Hello: p.heard}
	if p.ballot != nil {
		s.Voted = p.ballot.Voted
	}
	return s
}

func (s Side) has(flag uint32) bool { return s.Flags&flag != 0 }

func (s Side) slot(name string) protocol.PeerSlot {
	for _, p := range s.Slots {
		if p.Name == name {
			return p
		}
	}
	return protocol.PeerSlot{Name: name}
}

func (s Side) hadGeneration(g protocol.Generation) bool {
	if g == 0 {
		return false
	}
	for _, h := range s.History {
		if h == g {
			return true
		}
	}
	return false
}

// Compare decides, from what both sides say of themselves, whether and in which
// direction they must be synchronised. It is symmetric: Compare(b, a) is the
// mirror of Compare(a, b). The first rule that matches wins.
//
// Invariant: NoSync is returned only when neither side has a bit set toward the
// other, when both are secondaries of a primary that settles it, or when one of
// them has no disk.
//
// Source: the rules are DRBD's in substance; each comment says what the ids mean.
func Compare(me, peer Side) Decision {
	d := compare(me, peer)
	// After a crash whole extents are marked, of which little differs.
	d.Digest = d.Digest || me.has(protocol.HelloReplayed) || peer.has(protocol.HelloReplayed)
	return vet(me, peer, d)
}

func compare(me, peer Side) Decision {
	mySlot, peerSlot := me.slot(peer.Name), peer.slot(me.Name)
	ids := []NamedID{
		{me.Name + ".current", me.Current}, {peer.Name + ".current", peer.Current},
		{me.Name + ".bitmap[" + peer.Name + "]", mySlot.Bitmap}, {peer.Name + ".bitmap[" + me.Name + "]", peerSlot.Bitmap},
	}
	decide := func(s protocol.Strategy, r Rule) Decision { return Decision{Strategy: s, Rule: r, IDs: ids} }
	full := func(s protocol.Strategy, r Rule, digest bool) Decision {
		d := decide(s, r)
		d.Digest, d.Rebase = digest, true
		return d
	}

	if me.Volume != peer.Volume && me.Volume != (protocol.VolumeID{}) && peer.Volume != (protocol.VolumeID{}) {
		d := decide(protocol.Unrelated, RuleOtherVolume)
		d.Code = protocol.CodeVolumeID
		return d
	}
	if follows(me, peer) || follows(peer, me) {
		return decide(protocol.NoSync, RuleDefer)
	}
	if torn(me, peer) || torn(peer, me) {
		d := decide(protocol.RefusedStrategy, RuleFollowsAnother)
		d.Code = protocol.CodeTwoPrimaries
		return d
	}
	if me.carriedBy(peer) || peer.carriedBy(me) {
		return decide(protocol.NoSync, RuleDiskless)
	}
	if me.Role == protocol.Primary && peer.Role == protocol.Primary {
		d := decide(protocol.RefusedStrategy, RuleTwoPrimaries)
		d.Code = protocol.CodeTwoPrimaries
		return divergence(me, peer, mySlot, peerSlot, d)
	}
	if d, ok := unvoted(me, peer, mySlot, peerSlot); ok {
		d.IDs = ids
		return d
	}
	switch {
	case me.has(protocol.HelloFullTarget) && !peer.has(protocol.HelloFullTarget) && peer.Current != 0 && !older(peer, me):
		return full(protocol.TargetFull, RuleInvalidate, true)
	case peer.has(protocol.HelloFullTarget) && !me.has(protocol.HelloFullTarget) && me.Current != 0 && !older(me, peer):
		return full(protocol.SourceFull, RuleInvalidate, true)
	case me.Current == 0 && peer.Current == 0:
		return decide(protocol.NoSync, RuleBothNew)
	case me.Current == 0:
		return full(protocol.TargetFull, RuleNewSelf, false)
	case peer.Current == 0:
		return full(protocol.SourceFull, RuleNewPeer, false)
	case me.Current == peer.Current:
		d := compareEqual(me, peer, mySlot, peerSlot)
		d.IDs = ids
		return d
	// The peer wrote on after parting from my generation.
	case me.Current == peerSlot.Bitmap:
		return decide(protocol.TargetBitmap, RuleBitmapPeer)
	case mySlot.Bitmap == peer.Current:
		return decide(protocol.SourceBitmap, RuleBitmapSelf)
	}
	// It parted at my generation from a third node: what that one lacks, I lack.
	if other := slotAt(peer, me.Current, me.Name); other != "" {
		d := decide(protocol.TargetBitmap, RuleBitmapPeerOther)
		d.Other = other
		return d
	}
	if other := slotAt(me, peer.Current, peer.Name); other != "" {
		d := decide(protocol.SourceBitmap, RuleBitmapSelfOther)
		d.Other = other
		return d
	}
	switch mine, theirs := peer.hadGeneration(me.Current), me.hadGeneration(peer.Current); {
	case mine && !theirs:
		return full(protocol.TargetFull, RuleHistoryPeer, true)
	case theirs && !mine:
		return full(protocol.SourceFull, RuleHistorySelf, true)
	}
	return divergence(me, peer, mySlot, peerSlot, decide(protocol.Unrelated, RuleUnrelated))
}

// unvoted gives up what a primary without a quorum has put into a generation of its
// own, when the replica that it descends from was promoted meanwhile: nothing was
// acknowledged in it.
func unvoted(me, peer Side, mySlot, peerSlot protocol.PeerSlot) (Decision, bool) {
	loses := func(s, other Side, slot protocol.PeerSlot) bool {
		return s.unvoted(other) && s.Role != protocol.Primary && other.Role == protocol.Primary && s.Current != other.Current &&
			other.Current != 0 && (slot.Bitmap == other.Current || s.hadGeneration(other.Current))
	}
	d := Decision{Rule: RuleQuorum, Digest: true, Rebase: true}
	switch {
	case loses(me, peer, mySlot):
		if d.Strategy = protocol.TargetBitmap; mySlot.Bitmap != peer.Current {
			d.Strategy = protocol.TargetFull
		}
	case loses(peer, me, peerSlot):
		if d.Strategy = protocol.SourceBitmap; peerSlot.Bitmap != me.Current {
			d.Strategy = protocol.SourceFull
		}
	}
	return d, d.Strategy != 0
}

// unvoted reports whether s has nothing that was acknowledged and that the other may
// lack: it was primary, no quorum has followed the generation that it began, and the
// other descends from the one that it was followed in.
func (s Side) unvoted(other Side) bool {
	return s.has(protocol.HelloUnvoted) && (s.Voted == 0 || s.Voted == other.Current || other.hadGeneration(s.Voted))
}

// noDisk reports whether s has no disk that could be read or written.
func (s Side) noDisk() bool { return s.Disk == protocol.Failed || s.Disk == protocol.Diskless }

// carriedBy reports whether s is a primary whose own disk is no copy, and the
// other a secondary at its generation.
func (s Side) carriedBy(other Side) bool {
	bare := s.Role == protocol.Primary && s.Disk < protocol.Consistent && s.Disk != protocol.DiskUnknown
	return bare && other.Role == protocol.Secondary && other.Disk >= protocol.Consistent && s.Current != 0 && s.Current == other.Current
}

// follows reports whether s is a secondary of a primary other than the two.
func follows(s, other Side) bool {
	return s.Role != protocol.Primary && s.Primary != "" && s.Primary != s.Name && s.Primary != other.Name && other.Role != protocol.Primary
}

// torn reports whether s is a secondary of a primary and the other another one. What s
// has of its primary's writes, and the other may lack, is marked when that one is lost.
func torn(s, other Side) bool {
	return s.Role != protocol.Primary && s.Primary != "" && s.Primary != s.Name && s.Primary != other.Name && other.Role == protocol.Primary
}

// older reports whether s has stayed behind at a generation that the other has
// left: nobody who wants a replica overwritten by a good one means that.
func older(s, other Side) bool {
	return s.Current != other.Current && (other.slot(s.Name).Bitmap == s.Current || other.hadGeneration(s.Current))
}

// slotAt returns the name of a slot of s, other than notName's, that parted at
// generation g.
func slotAt(s Side, g protocol.Generation, notName string) string {
	for _, p := range s.Slots {
		if p.Bitmap == g && p.Name != notName && g != 0 {
			return p.Name
		}
	}
	return ""
}

// divergence tells the ways apart in which neither replica descends from the
// other (rules 11 to 13), and honours an operator's word on it. d carries the
// ids, and the strategy if it is decided already.
func divergence(me, peer Side, mySlot, peerSlot protocol.PeerSlot, d Decision) Decision {
	common := mySlot.Bitmap != 0 && mySlot.Bitmap == peerSlot.Bitmap
	shared := common
	for _, h := range me.History {
		shared = shared || peer.hadGeneration(h)
	}
	myBad, peerBad := me.Disk == protocol.Inconsistent, peer.Disk == protocol.Inconsistent
	switch {
	case d.Strategy == protocol.RefusedStrategy && (!shared || descends(me, peer) || descends(peer, me)):
		return d // two primaries, and nothing is known to have diverged
	case myBad != peerBad && (shared || me.Volume == peer.Volume && me.Volume != (protocol.VolumeID{})):
		// A sync that a third node began, at a base that only the two know: what
		// was given up then, or was never there, is not a side of its own.
		d.Rule, d.Rebase, d.Digest = RuleInterrupted, true, true
		d.Strategy = protocol.TargetFull
		if peerBad {
			d.Strategy = protocol.SourceFull
		}
		return d
	case common:
		d.Strategy, d.Rule, d.Code = protocol.SplitBrain, RuleSplitBitmap, protocol.CodeSplitBrain
	case shared:
		d.Strategy, d.Rule, d.Code = protocol.SplitBrain, RuleSplitHistory, protocol.CodeSplitBrain
	default:
		d.Strategy, d.Rule, d.Code = protocol.Unrelated, RuleUnrelated, protocol.CodeUnrelated
	}
	d.Split = d.Strategy == protocol.SplitBrain
	mine, theirs := me.has(protocol.HelloDiscard), peer.has(protocol.HelloDiscard)
	switch {
	case mine != theirs:
		// The common parent's bitmaps of both sides together name every block that
		// may differ; without a common parent only a full comparison does.
		loser := me.Name
		if theirs {
			loser = peer.Name
		}
		d.Rule = RuleDiscard
		d.giveUp(loser, me.Name, !common)
	case me.unvoted(peer) || peer.unvoted(me):
		loser := me.Name
		if !me.unvoted(peer) || peer.unvoted(me) && tieBreak(me, peer) {
			loser = peer.Name
		}
		d.Rule, d.Split = RuleQuorum, false
		d.giveUp(loser, me.Name, !common)
	case d.Split && !mine: // both: then the operators' words say nothing
		r := rule(me, peer, common)
		d.Why, d.PriLost = r.why, r.priLost
		if r.loser != "" {
			d.Rule = r.rule
			d.giveUp(r.loser, me.Name, r.full || !common)
		}
	}
	return d
}

// compareEqual decides between replicas of one generation (rule 4). Either may
// still lack writes that were under way when they parted.
//
// Of two good copies without a primary or an operator's word, the source is the one that
// surely has what the other may lack of what clients were promised:
//
//  1. what was flushed. A crashed primary's own copy has it, and whoever follows that
//     primary under C; who follows it under A or B may not (mayLack). Of two that may
//     not, the one that was in contact with the generation later (laterThan).
//  2. what was acknowledged and not flushed. Who stayed, under C, has it; who stopped
//     without notice may have lost it.
//  3. nothing more is promised. Better than a guess is what either was told (outdated),
//     then the sequence, then a fixed order on which both agree.
func compareEqual(me, peer Side, mySlot, peerSlot protocol.PeerSlot) Decision {
	bits := mySlot.Dirty | peerSlot.Dirty // a sum could wrap
	myCrash, peerCrash := me.has(protocol.HelloCrashedPrimary), peer.has(protocol.HelloCrashedPrimary)
	myLack, peerLack := me.mayLack(peer), peer.mayLack(me)
	sync := func(source bool, r Rule) Decision {
		if bits == 0 {
			return Decision{Strategy: protocol.NoSync, Rule: r}
		}
		// A base of its own: a target that is lost half-way must not be at the
		// generation in which the source goes on writing.
		if source {
			return Decision{Strategy: protocol.SourceBitmap, Rule: r, Digest: true, Rebase: true}
		}
		return Decision{Strategy: protocol.TargetBitmap, Rule: r, Digest: true, Rebase: true}
	}
	myBad, peerBad := me.Disk <= protocol.Inconsistent, peer.Disk <= protocol.Inconsistent
	switch {
	case me.Disk == protocol.Inconsistent && peer.Disk == protocol.Inconsistent:
		// That no bit is set proves nothing: neither knows what it should hold.
		return Decision{Strategy: protocol.RefusedStrategy, Rule: RuleNoGoodCopy, Code: protocol.CodeNotAllowed}
	case myBad != peerBad:
		d := sync(peerBad, RuleEqualDisk)
		if bits == 0 { // the bits that said what it lacks are gone: compare all
			d.Strategy, d.Digest = protocol.TargetFull, true
			if peerBad {
				d.Strategy = protocol.SourceFull
			}
			d.Rebase = true
		}
		return d
	case me.Role == protocol.Primary || peer.Role == protocol.Primary:
		return sync(me.Role == protocol.Primary, RuleEqualPrimary)
	case begun(me, peer) != begun(peer, me):
		return sync(begun(me, peer), RuleEqualSource)
	case bits != 0 && repairs(me, peer) != repairs(peer, me):
		return sync(repairs(peer, me), RuleRepair)
	case myCrash != peerCrash && myLack != peerLack:
		return sync(peerLack, RuleEqualAsync)
	case bits != 0 && myLack != peerLack:
		return sync(peerLack, RuleEqualCloser)
	case bits != 0 && myLack && laterThan(me, peer) != laterThan(peer, me):
		return sync(laterThan(me, peer), RuleEqualLater)
	case myCrash && !peerCrash && peer.has(protocol.HelloReconnect):
		return sync(false, RuleEqualSurvivor)
	case peerCrash && !myCrash && me.has(protocol.HelloReconnect):
		return sync(true, RuleEqualSurvivor)
	case (me.Disk == protocol.Outdated) != (peer.Disk == protocol.Outdated) &&
		(myCrash || peerCrash || me.has(protocol.HelloShaken) == peer.has(protocol.HelloShaken)):
		// It was told that another is newer, and not overwritten yet. That the other
		// of these two is the newer one, it was not told: see leftBehind.
		return sync(peer.Disk == protocol.Outdated, RuleEqualDisk)
	case myCrash != peerCrash:
		return sync(myCrash, RuleEqualCrashed)
	case myCrash && peerCrash && (mySlot.Dirty != 0) != (peerSlot.Dirty != 0):
		// Who has marked nothing knows of nothing that the other may lack: its crash was
		// settled with the other before, and it may have forgotten that.
		return sync(mySlot.Dirty != 0, RuleEqualBothCrashed)
	case myCrash && peerCrash:
		return sync(tieBreak(me, peer), RuleEqualBothCrashed)
	case bits == 0 && mySlot.Bitmap != peerSlot.Bitmap:
		return Decision{Strategy: protocol.NoSync, Rule: RuleEqualMissedEnd}
	case bits == 0:
		return Decision{Strategy: protocol.NoSync, Rule: RuleEqual}
	}
	return leftBehind(me, peer, mySlot, peerSlot, sync)
}

// begun reports whether s has begun to overwrite the other, from a base that it has not
// taken on: under A and B s may have written on meanwhile, counting on a target that
// never heard of it. One that has written nothing only says what was known then: the
// other may have been overwritten by a primary since that came back after its crash. Nor
// has one that has taken a later primary's writes: that one settled it with the other.
func begun(s, other Side) bool {
	slot := s.slot(other.Name)
	wrote := s.Changes.First != 0 || s.has(protocol.HelloCrashedPrimary)
	return !s.has(protocol.HelloYourWrites|protocol.HelloOtherWrites) && (wrote || !other.has(protocol.HelloCrashedPrimary)) && slot.Bitmap != 0 && slot.Dirty != 0 && slot.Bitmap != s.Current && !s.hadGeneration(slot.Bitmap)
}

// mayLack reports whether s may lack something that a client flushed and that the other
// has: the last primary, as far as the two know who that was, waits for s not at all (A)
// or not for its stable storage (B).
func (s Side) mayLack(other Side) bool {
	switch {
	case s.has(protocol.HelloCrashedPrimary):
		return false // it has that primary's copy
	case s.has(protocol.HelloOwnWrites) && other.has(protocol.HelloYourWrites):
		return false
	case s.has(protocol.HelloYourWrites) && (s.Mode == protocol.ModeA || s.Mode == protocol.ModeB && s.has(protocol.HelloShaken)):
		return true // also when the other got them back from a third
	case s.has(protocol.HelloYourWrites) && other.has(protocol.HelloOwnWrites):
		return false
	case !other.has(protocol.HelloCrashedPrimary):
		return s.has(protocol.HelloMayLack)
	case s.Mode != protocol.ModeC:
		return true
	}
	// A third had its part in it: the other has its copy of the crashed primary, or s has
	// what it has of this generation from there.
	passed := laterThan(s, other)
	return s.has(protocol.HelloMayLack) && (passed || !other.has(protocol.HelloWasPrimary)) || passed && other.has(protocol.HelloMayLack)
}

// laterThan reports whether s was brought to this generation behind the other's back:
// the other still has it for one that was left behind at an earlier one. So the other
// had parted from the primary by then, or was about to.
func laterThan(s, other Side) bool {
	seen, mine := other.slot(s.Name), s.slot(other.Name)
	return mine.Bitmap == 0 && seen.Bitmap != other.Current && other.hadGeneration(seen.Bitmap)
}

// leftBehind decides between two secondaries of a primary that is gone, which may
// each have some of its last writes. Sequences come late: that of a node which
// stopped without notice is as old as its metadata.
func leftBehind(me, peer Side, mySlot, peerSlot protocol.PeerSlot, sync func(source bool, r Rule) Decision) Decision {
	myShock, peerShock := me.has(protocol.HelloShaken), peer.has(protocol.HelloShaken)
	switch {
	case myShock != peerShock:
		return sync(peerShock, RuleEqualShaken)
	case (me.Disk == protocol.Outdated) != (peer.Disk == protocol.Outdated):
		return sync(peer.Disk == protocol.Outdated, RuleEqualDisk)
	case me.Disk != peer.Disk: // one has settled with a third node, which may have been the primary
		return sync(me.Disk > peer.Disk, RuleEqualDisk)
	case me.Seq != peer.Seq:
		return sync(me.Seq > peer.Seq, RuleEqualDirty)
	case (mySlot.Dirty != 0) != (peerSlot.Dirty != 0):
		return sync(mySlot.Dirty != 0, RuleEqualDirty)
	}
	return sync(tieBreak(me, peer), RuleEqualDirty)
}

// repairs reports whether an operator has s repaired from the other.
func repairs(s, other Side) bool {
	return s.has(protocol.HelloRepairTarget) || other.has(protocol.HelloRepairSource)
}

// tieBreak reports whether me is the source when nothing better tells: the
// replica that has seen more writes, else the smaller name.
func tieBreak(me, peer Side) bool {
	if me.Seq != peer.Seq {
		return me.Seq > peer.Seq
	}
	return me.Name < peer.Name
}

// vet refuses what must not be done whatever the ids say: overwriting a
// primary, or copying from a replica that is no good.
func vet(me, peer Side, d Decision) Decision {
	if d.Rule == RuleDiskless {
		return d
	}
	if me.noDisk() || peer.noDisk() {
		switch d.Strategy {
		case protocol.SplitBrain, protocol.Unrelated, protocol.Retry, protocol.RefusedStrategy:
			return d
		case protocol.NoSync, protocol.SourceBitmap, protocol.SourceFull, protocol.TargetBitmap, protocol.TargetFull:
			d.Strategy, d.Rule, d.Digest = protocol.NoSync, RuleNoDisk, false
			return d
		}
	}
	if (me.has(protocol.HelloTarget) || peer.has(protocol.HelloTarget)) && d.Rule != RuleDefer {
		// What it is now says nothing of what it will be in a moment.
		d.Strategy, d.Rule, d.Code = protocol.RefusedStrategy, RuleBusy, protocol.CodeBusy
		return d
	}
	source, target := me, peer
	switch d.Strategy {
	case protocol.SourceBitmap, protocol.SourceFull:
	case protocol.TargetBitmap, protocol.TargetFull:
		source, target = peer, me
	case protocol.NoSync:
		return d
	case protocol.SplitBrain, protocol.Unrelated, protocol.Retry, protocol.RefusedStrategy:
		return d
	}
	switch {
	case forsaken(source, target):
		d.Rule, d.Other = RuleDiscard, ""
		d.giveUp(source.Name, me.Name, true)
	case source.Disk <= protocol.Inconsistent && source.Disk != protocol.DiskUnknown:
		d.Strategy, d.Rule, d.Code = protocol.RefusedStrategy, RuleNoGoodCopy, protocol.CodeNotAllowed
		if source.Disk == protocol.Inconsistent && target.Disk > protocol.Inconsistent {
			d.Half = source.Name
		}
	case target.Role == protocol.Primary:
		d.Strategy, d.Rule, d.Code = protocol.RefusedStrategy, RulePrimaryTarget, protocol.CodePrimaryIsTarget
	}
	return d
}
