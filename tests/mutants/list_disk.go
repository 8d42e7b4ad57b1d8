package main

// ofDisks breaks what keeps the data when a primary's disk fails.
var ofDisks = []Mutant{
	{
		Name: "diskless-acks-as-configured",
		Why:  "a primary without a disk of its own acknowledges under A what no peer has: it is nowhere but on the wire",
		Edits: []Edit{{"replica/write.go", "	r.all = m.bare()\n", ""},
			{"replica/write.go", "	r.all = r.all || m.bare()\n", ""}},
	},
	{
		Name:  "failed-disk-not-left-behind",
		Why:   "no generation is begun without the failed disk: what comes back there with its old metadata is taken for equal",
		Edits: []Edit{{"replica/diskless.go", "	m.detached = false\n	m.adoptFlights()\n", "	m.detached = true\n	m.adoptFlights()\n	for _, s := range m.spans {\n		s.req.needGen = false\n	}\n"}},
	},
	{
		Name:  "failed-disk-not-marked",
		First: blind,
		Why:   "the peers do not mark what the failed disk lacks: its bits are taken for all that is missing there",
		Edits: []Edit{{"replica/diskless.go", "	p.dirty.SetAll()\n	m.idSerial++\n", "	m.idSerial++\n"}},
	},
	{
		Name:  "any-peer-carries",
		Why:   "a peer that was lost with acknowledged writes, and restarted without them, is taken for the data of a primary without a disk",
		First: carriers,
		Edits: []Edit{{"replica/diskless.go", "	if !p.joined || p.lacks || p.loose && p.heard.Instance != p.lostInstance {\n", "	if !p.joined && m.stopping {\n"}},
	},
	{
		Name:  "restart-forgotten-when-lost-again",
		Why:   "a peer that restarted without what it had applied, and is lost a second time before it is in sync, is taken for the one that had it",
		First: carriers,
		Edits: []Edit{{"replica/write.go", "	if was && p.heard != nil {", "	if p.heard != nil {"}},
	},
	{
		Name:  "writes-beside-refill",
		Why:   "a write does not wait for the run of a refill that it falls into: the run puts older data over it",
		First: refills,
		Edits: []Edit{{"replica/write.go", "if s := &m.spans[i]; s.off < end && off < s.end {\n			return true", "if s := &m.spans[i]; s.off < end && off < s.end && s.req.Op != Pull {\n			return true"}},
	},
	{
		Name:  "unfilled-disk-read",
		Why:   "a disk that is being filled is read where it holds nothing yet",
		Edits: []Edit{{"replica/farread.go", "	return m.usable() && (m.left == nil || !m.lacks(off, n))\n", "	return m.usable()\n"}},
	},
	{
		Name:  "filled-disk-not-flushed",
		Why:   "a filled disk counts as a copy before it is flushed: a power cut empties it",
		Edits: []Edit{{"replica/refill.go", "		m.issueFlush(m.fillFlush)\n", "		m.fillFlushed(nil)\n"}},
	},
	{
		Name:  "filling-disk-counts",
		Why:   "the metadata of a disk that is being filled give it the generation of the data: half of it is promoted after a crash",
		Edits: []Edit{{"replica/metadata.go", "	if m.filling && m.disk == protocol.Inconsistent {\n", "	if false {\n"}, {"replica/refill.go", "	m.disk, m.diskWhy = protocol.Inconsistent, \"replaced; not filled yet\"\n	m.filling = true\n", "	m.disk, m.diskWhy = protocol.UpToDate, \"replaced\"\n	m.filling = true\n"}},
	},
}
