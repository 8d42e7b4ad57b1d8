package replica

import (
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// Of two copies of one generation without a primary, whatever they say of themselves,
// both sides come to the same decision, and no hint outweighs a promise: who may lack
// what was flushed never overwrites who has it; nor does who stopped without notice, under
// C, one that did not.
func TestEqualOrder(t *testing.T) {
	const here, before = 7, 5
	flags := []uint32{protocol.HelloCrashedPrimary, protocol.HelloShaken, protocol.HelloMayLack, protocol.HelloReconnect, protocol.HelloWasPrimary}
	disks := []protocol.Disk{protocol.Outdated, protocol.Consistent, protocol.UpToDate}
	side := func(name, other string, pick int, disk protocol.Disk, mode protocol.Mode, slot protocol.Generation, seq uint64) Side {
		h := &protocol.Hello{Role: protocol.Secondary, Disk: disk, Mode: mode, Current: here, History: []protocol.Generation{before}, Seq: seq,
			Slots: []protocol.PeerSlot{{Name: other, Bitmap: slot, Dirty: 1}}}
		for i, f := range flags {
			if pick>>i&1 != 0 {
				h.Flags |= f
			}
		}
		return Side{Name: name, Hello: h}
	}
	check := func(a, b Side) {
		d, m := Compare(a, b), Compare(b, a)
		if want := d.Mirror(); m.Strategy != want.Strategy || m.Rule != want.Rule {
			t.Fatalf("%+v and %+v: %s by %s here, %s by %s there", a.Hello, b.Hello, d.Strategy, d.Rule, m.Strategy, m.Rule)
		}
		source, target := a, b
		switch d.Strategy {
		case protocol.SourceBitmap:
		case protocol.TargetBitmap:
			source, target = b, a
		default:
			t.Fatalf("%+v and %+v: %s by %s, and bits are set", a.Hello, b.Hello, d.Strategy, d.Rule)
		}
		crash := source.has(protocol.HelloCrashedPrimary) || target.has(protocol.HelloCrashedPrimary)
		lack := source.mayLack(target) || target.mayLack(source)
		switch {
		case source.mayLack(target) && !target.mayLack(source):
			t.Fatalf("%+v overwrites %+v by %s: it may lack what was flushed", source.Hello, target.Hello, d.Rule)
		case !crash && !lack && source.has(protocol.HelloShaken) && !target.has(protocol.HelloShaken):
			t.Fatalf("%+v overwrites %+v by %s: it may lack what was acknowledged", source.Hello, target.Hello, d.Rule)
		}
	}
	all := 1 << len(flags)
	for _, mode := range []protocol.Mode{protocol.ModeA, protocol.ModeB, protocol.ModeC} {
		for _, slots := range [][2]protocol.Generation{{0, 0}, {before, 0}, {0, before}, {before, before}} {
			for i := range all * all {
				for j := range len(disks) * len(disks) {
					check(side("alpha", "beta", i%all, disks[j%len(disks)], mode, slots[0], uint64(1+i%2)),
						side("beta", "alpha", i/all, disks[j/len(disks)], mode, slots[1], 1))
				}
			}
		}
	}
}

// What no quorum has followed is given up, on either side or on one of two, but never by
// who has what the other was not there for.
func TestUnvoted(t *testing.T) {
	const common, mine, theirs = 5, 7, 8
	side := func(name, other string, current, voted protocol.Generation, flags uint32, history ...protocol.Generation) Side {
		h := &protocol.Hello{Role: protocol.Secondary, Disk: protocol.Consistent, Mode: protocol.ModeC, Current: current, History: history, Seq: 1,
			Flags: protocol.HelloCrashedPrimary | flags, Slots: []protocol.PeerSlot{{Name: other, Bitmap: history[0], Dirty: 1}}}
		return Side{Name: name, Hello: h, Voted: voted}
	}
	const unvoted = protocol.HelloUnvoted
	tests := []struct {
		name  string
		a, b  Side
		want  protocol.Strategy
		whose Rule
	}{
		{"one", side("a", "b", mine, common, unvoted, common), side("b", "a", theirs, theirs, 0, common), protocol.TargetBitmap, RuleQuorum},
		{"both", side("a", "b", mine, common, unvoted, common), side("b", "a", theirs, common, unvoted, common), protocol.SourceBitmap, RuleQuorum},
		{"one had votes before", side("a", "b", mine, 6, unvoted, 6, common), side("b", "a", theirs, common, unvoted, common), protocol.SourceFull, RuleQuorum},
		{"had votes for what the other lacks", side("a", "b", mine, 6, unvoted, 6, common), side("b", "a", theirs, theirs, 0, common), protocol.SplitBrain, RuleSplitHistory},
		{"neither", side("a", "b", mine, mine, 0, common), side("b", "a", theirs, theirs, 0, common), protocol.SplitBrain, RuleSplitBitmap},
	}
	for _, tt := range tests {
		d, m := Compare(tt.a, tt.b), Compare(tt.b, tt.a)
		if d.Strategy != tt.want || d.Rule != tt.whose {
			t.Errorf("%s: %s by %s, want %s by %s", tt.name, d.Strategy, d.Rule, tt.want, tt.whose)
		}
		if want := d.Mirror(); m.Strategy != want.Strategy || m.Rule != want.Rule {
			t.Errorf("%s: %s by %s here, %s by %s there", tt.name, d.Strategy, d.Rule, m.Strategy, m.Rule)
		}
	}
}

// Of two that both know whose the newest writes are, that one is the source if the other
// followed it under A, or under B and stopped without notice. What only one says proves
// nothing.
func TestWriterDecides(t *testing.T) {
	side := func(name, other string, mode protocol.Mode, seq uint64, flags uint32) Side {
		h := &protocol.Hello{Role: protocol.Secondary, Disk: protocol.Consistent, Mode: mode, Current: 5, Seq: seq, Flags: flags,
			Slots: []protocol.PeerSlot{{Name: other, Dirty: 1}}}
		return Side{Name: name, Hello: h}
	}
	const own, yours, shaken, lack = protocol.HelloOwnWrites, protocol.HelloYourWrites, protocol.HelloShaken, protocol.HelloMayLack
	tests := []struct {
		name string
		mode protocol.Mode
		a, b uint32
		want protocol.Strategy
		rule Rule
	}{
		{"under A", protocol.ModeA, own | lack, yours, protocol.SourceBitmap, RuleEqualCloser},
		{"under B, shaken", protocol.ModeB, own | lack | shaken, yours | shaken, protocol.SourceBitmap, RuleEqualCloser},
		{"under B", protocol.ModeB, own | lack, yours, protocol.TargetBitmap, RuleEqualDirty},
		{"under C", protocol.ModeC, own | lack, yours, protocol.TargetBitmap, RuleEqualDirty},
		{"the other followed a third since", protocol.ModeA, own | lack, 0, protocol.TargetBitmap, RuleEqualCloser},
		{"it got them back from a third", protocol.ModeA, 0, yours, protocol.SourceBitmap, RuleEqualCloser},
		{"it followed a third since, under A", protocol.ModeA, lack, yours, protocol.TargetBitmap, RuleEqualDirty},
	}
	for _, tt := range tests {
		a, b := side("a", "b", tt.mode, 1, tt.a), side("b", "a", tt.mode, 2, tt.b)
		d, m := Compare(a, b), Compare(b, a)
		if d.Strategy != tt.want || d.Rule != tt.rule {
			t.Errorf("%s: %s by %s, want %s by %s", tt.name, d.Strategy, d.Rule, tt.want, tt.rule)
		}
		if want := d.Mirror(); m.Strategy != want.Strategy || m.Rule != want.Rule {
			t.Errorf("%s: %s by %s here, %s by %s there", tt.name, d.Strategy, d.Rule, m.Strategy, m.Rule)
		}
	}
}

// Who has begun to overwrite the other and wrote on is the source, until it has taken
// another primary's writes.
func TestBegunUntilItFollows(t *testing.T) {
	side := func(name, other string, base protocol.Generation, flags uint32) Side {
		h := &protocol.Hello{Role: protocol.Secondary, Disk: protocol.Consistent, Mode: protocol.ModeA, Current: 5, Seq: 1, Flags: flags,
			Changes: protocol.Changes{First: 1}, Slots: []protocol.PeerSlot{{Name: other, Bitmap: base, Dirty: 1}}}
		return Side{Name: name, Hello: h}
	}
	b := side("b", "a", 0, 0)
	for flag, want := range map[uint32]Rule{0: RuleEqualSource, protocol.HelloOwnWrites: RuleEqualSource, protocol.HelloOtherWrites: RuleEqualDirty, protocol.HelloYourWrites: RuleEqualCloser} {
		if d := Compare(side("a", "b", 3, flag), b); d.Rule != want {
			t.Errorf("flags %d: %s by %s, want %s", flag, d.Strategy, d.Rule, want)
		}
	}
}
