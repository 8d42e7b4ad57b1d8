package main

// ofCrashes breaks what covers writes that may be lost with a node.
var ofCrashes = []Mutant{
	{
		Name: "cools-before-peer-flush",
		Why:  "an extent leaves the activity map although the peer may lose its last writes: after both lose power nobody knows that they differ",
		Edits: []Edit{{"replica/tick.go", `			case p.ring.head < p.ring.tail && p.ring.at(p.ring.head).seq <= last: // live, or gone ahead of
				return false
`, ""}},
	},
	{
		Name: "cools-before-local-flush",
		Why:  "an extent leaves the activity map although the local store may lose its last writes",
		Edits: []Edit{{"replica/tick.go",
			"if last >= oldest || last > m.localDurable || !m.bootDurable {",
			"if last >= oldest || !m.bootDurable {"}},
	},
	{
		Name: "cools-with-bits-in-memory",
		Why:  "an extent leaves the activity map while its bits toward an absent peer are in memory only",
		Edits: []Edit{{"replica/tick.go", `		page := extent / bitmap.ExtentsPerPage
		for _, p := range m.peers {
			switch {
			case p.dirty.PageChanged(page):
				return false
`, `		for _, p := range m.peers {
			switch {
`}},
	},
	{
		Name:  "flush-covers-too-much",
		Why:   "a local flush is taken to cover writes that began after it: their extents cool while they can still be lost",
		Edits: []Edit{{"replica/write.go", "r.covers = m.oldestLocal() - 1", "r.covers = m.seq + 1000"}},
	},
	{
		Name: "activity-not-durable",
		Why:  "a write to a cold extent does not wait for its bit on stable storage: after a crash nothing says that the block may differ",
		Edits: []Edit{{"replica/write.go", `		m.arming = append(m.arming, r)
		m.commit()
		return
`, `		m.commit()
`}},
	},
	{
		Name: "crash-forgets-extents",
		Why:  "after a crash the blocks of active extents are not marked",
		Edits: []Edit{{"replica/machine.go",
			"				p.dirty.Set(from, min(from+bitmap.BlocksPerExtent, blocks))\n",
			"				p.dirty.Set(from, min(from, blocks))\n"}},
	},
	{
		Name:  "recent-writes-forgotten",
		Why:   "with three nodes, a secondary that cannot remember more of the last writes forgets them without a mark: when the primary is lost nobody knows that the two may differ in them",
		First: laggards,
		Edits: []Edit{{"replica/secondary.go", "			m.recent.markAfter(q.stable, q.dirty)\n			q.marked = m.recent.list[n-1].seq\n", "			q.marked = m.recent.list[n-1].seq\n"}},
	},
	{
		Name:  "lost-primary-marks-nothing",
		First: laggards,
		Why:   "with three nodes, two secondaries that differ in the last writes of a lost primary do not know it",
		Edits: []Edit{{"replica/secondary.go", `		if q != p && !q.weak {
			m.recent.markAfter(q.stable, q.dirty)
		}
`, ""}},
	},
	{
		Name:  "secondary-cools-early",
		First: laggards,
		Why:   "with three nodes, a secondary's extent cools before the other secondary has its writes on stable storage",
		Edits: []Edit{{"replica/tick.go", "m.followsAnother(p) && (!p.told || !p.weak && p.stable < last):", "m.followsAnother(p) && !p.told:"}},
	},
	{
		Name:  "weak-peer-not-marked",
		First: laggards,
		Why:   "with three nodes, a secondary does not mark what the one that was left behind does not get",
		Edits: []Edit{{"replica/secondary.go", "		if q != p && q.weak {\n			q.dirty.Set(from, to)\n", "		if q != p && q.weak {\n			q.dirty.Set(from, from)\n			_ = to\n"}},
	},
}
