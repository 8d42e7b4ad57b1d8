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
		return Side{name, h}
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
