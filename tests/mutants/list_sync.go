package main

// ofSyncs breaks how a replica is brought up to date.
var ofSyncs = []Mutant{
	{
		Name: "bit-cleared-without-proof",
		Why:  "a bit is cleared when its block is sent: a sync that is cut off there never copies it",
		Edits: []Edit{{"resync/plan.go",
			"	p.inFlight += min(length, DataMax)\n	return s.Run\n",
			"	p.inFlight += min(length, DataMax)\n	p.set.Clear(bitmap.Covered(off, length, p.size))\n	return s.Run\n"}},
	},
	{
		Name: "bit-cleared-without-flush",
		Why:  "a bit is cleared when the target has its block in the cache: a power cut there loses it for good",
		Edits: []Edit{{"resync/plan.go",
			"		p.confirmed(now, piece, min(piece.Len, DataMax))\n",
			"		p.confirmed(now, piece, min(piece.Len, DataMax))\n		p.set.Clear(bitmap.Covered(piece.Off, piece.Len, p.size))\n"}},
	},
	{
		Name: "equal-cleared-without-flush",
		Why:  "a bit is cleared when the target's cache has equal data: a power cut there loses it for good",
		Edits: []Edit{{"resync/plan.go",
			"			p.confirmed(now, piece, 0)\n		case p.kind == Verify:",
			"			p.set.Clear(bitmap.Covered(piece.Off, piece.Len, p.size))\n		case p.kind == Verify:"}},
	},
	{
		Name: "run-over-newer-write",
		Why:  "a write does not wait for the sync run that holds its range: the run puts older data over it",
		Edits: []Edit{{"replica/write.go",
			"if m.overlaps(r.Off, r.Len) || m.syncing(r.Off, r.Len) {",
			"if m.overlaps(r.Off, r.Len) {"}},
	},
	{
		Name: "run-taken-under-a-write",
		Why:  "a run is read while a write to it is under way, and may arrive after it",
		Edits: []Edit{{"replica/sync.go",
			"return func(off, n int64) bool { return !m.overlaps(off, n) && !p.ring.overlapsUnapplied(off, n) }",
			"return func(off, n int64) bool { return m.cfg.Size > 0 || p.live }"}},
	},
	{
		Name:  "spoiled-copy-clears",
		Why:   "a block that is marked anew while its copy is being confirmed is cleared by that confirmation",
		First: fullStores,
		Edits: []Edit{{"replica/write.go", "			if p.plan != nil {\n				p.plan.Spoil(r.Off, r.Len)\n			}\n", ""}},
	},
	{
		Name: "target-not-inconsistent-first",
		Why:  "a target is overwritten before it is on stable storage that it is inconsistent: after a crash a mix of two states can be promoted",
		Edits: []Edit{{"replica/sync.go", `	epoch := p.epoch
	m.whenDurable(func() {
		if p.epoch != epoch {
			return
		}
		p.step = syncRunning`, `	epoch := p.epoch
	m.whenSoon(func() {
		if p.epoch != epoch {
			return
		}
		p.step = syncRunning`}, {"replica/sync.go", "// SyncAllowed reports", `func (m *Machine) whenSoon(fn func()) { fn() }

// SyncAllowed reports`}},
	},
	{
		Name: "target-stays-consistent",
		Why:  "a target that is being overwritten does not become inconsistent: a mix of two states can be promoted",
		Edits: []Edit{{"replica/sync.go",
			"	m.setDisk(protocol.Inconsistent, \"being overwritten by \"+p.name)\n", ""}},
	},
	{
		Name: "merged-bits-dropped",
		Why:  "the bits that the target has toward the source are not taken over: what only the target wrote is never overwritten",
		Edits: []Edit{{"replica/sync.go",
			"	if _, err := p.dirty.OrWords(int64(b.First), b.Words); err != nil {\n		m.dropPeer(p, refusal(protocol.CodeProtocol, \"%s: %v\", p.name, err))\n	}\n}",
			"}"}},
	},
	{
		Name:  "overwritten-is-unmarked",
		Why:   "the target takes back its marks toward a third also where the sync has changed it: the two differ without a bit",
		First: threes,
		Edits: []Edit{{"replica/overwrite.go", "{ m.all[id].overwrites(off, n) }", "{}"}},
	},
}
