package main

// ofWrites breaks who must have what before a client hears that it is done.
var ofWrites = []Mutant{
	{
		Name: "mark-after-ack",
		Why:  "a write that a lost peer lacks is marked only some time after it was acknowledged: a peer that comes back in between is taken for equal",
		Edits: []Edit{
			{"replica/write.go", `			continue
		}
		p.dirty.Set(bitmap.Touched(r.Off, r.Len))
`, `			continue
		}
		from, to := bitmap.Touched(r.Off, r.Len)
		p.late = append(p.late, func() { p.dirty.Set(from, to) })
`},
			{"replica/peer.go", "	slot   protocol.Generation // bitmap id", "	late   []func()\n	slot   protocol.Generation // bitmap id"},
			{"replica/tick.go", "		m.tickPeer(p)\n", "		m.tickPeer(p)\n		for _, mark := range p.late {\n			mark()\n		}\n		p.late = nil\n"},
		},
	},
	{
		Name: "ack-before-peer",
		Why:  "a write is acknowledged as soon as it is sent: when the primary dies, the survivor may not have it",
		Edits: []Edit{{"replica/write.go",
			"if r != nil && (p.mode != protocol.ModeA || r.all) {",
			"if r != nil && (p.mode != protocol.ModeA && d.Op != protocol.DataWrite || r.all) {"}},
	},
	{
		Name: "flush-not-forwarded",
		Why:  "a flush is acknowledged that no peer has heard of: after the primary's death a power cut of the peer loses a commit",
		Edits: []Edit{{"replica/write.go", `	d := protocol.Data{Op: protocol.DataFlush, Seq: r.seq, Time: m.now}
	for _, p := range m.peers {
		if p.live {
`, `	d := protocol.Data{Op: protocol.DataFlush, Seq: r.seq, Time: m.now}
	for _, p := range m.peers {
		if p.live && r.all {
`}},
	},
	{
		Name: "flush-acked-when-received",
		Why:  "a flush is acknowledged when the peer has come to it in the stream, not when its store is flushed",
		Edits: []Edit{{"replica/write.go",
			"if !s.fua && s.op != protocol.DataFlush {",
			"if !s.fua {"}},
	},
	{
		Name: "fua-acked-when-applied",
		Why:  "a FUA write is acknowledged when the peer has it in its cache",
		Edits: []Edit{{"replica/write.go",
			"if !s.fua && s.op != protocol.DataFlush {",
			"if s.op != protocol.DataFlush {"}},
	},
	{
		Name: "overlap-order-dropped",
		Why:  "two overlapping writes are under way together: the replicas may apply them in different orders and differ for ever",
		Edits: []Edit{{"replica/write.go",
			"if m.overlaps(r.Off, r.Len) || m.syncing(r.Off, r.Len) {",
			"if m.syncing(r.Off, r.Len) {"}},
	},
	{
		Name: "read-does-not-wait",
		Why:  "a read returns a write that no peer has yet; after the primary's death what was read is gone",
		Edits: []Edit{
			{"replica/write.go", "		if m.overlaps(r.Off, r.Len) {\n			m.overlapped", "		if m.stopping {\n			m.overlapped"},
			{"replica/write.go", "	case err == nil && m.seen(r):\n", "	case err == nil && m.stopping && m.seen(r):\n"},
		},
	},
	{
		Name:  "read-answered-before-what-it-saw",
		Why:   "a read returns a write that began while the read was under way, and that no peer has yet",
		Edits: []Edit{{"replica/write.go", "	case err == nil && m.seen(r):\n", "	case err == nil && m.stopping && m.seen(r):\n"}},
	},
	{
		Name: "lost-peer-cache-not-marked",
		Why:  "of what a lost peer was sent only what it had not applied is marked: what its power cut took from its cache is never copied again",
		Edits: []Edit{{"replica/write.go", `		if s := r.at(i); s.op != protocol.DataFlush {
			p.dirty.Set(`, `		if s := r.at(i); s.op != protocol.DataFlush && i >= r.applied {
			p.dirty.Set(`}},
	},
	{
		Name:  "failed-write-not-marked",
		First: fullStores,
		Why:   "a write that found no space here, and was applied by the peer, is not marked: the replicas differ for ever",
		Edits: []Edit{{"replica/write.go", `		for _, p := range m.peers {
			p.dirty.Set(bitmap.Touched(r.Off, r.Len))
			p.spoiled = true
			if p.plan != nil {
				p.plan.Spoil`, `		for _, p := range m.peers[:0] {
			p.dirty.Set(bitmap.Touched(r.Off, r.Len))
			p.spoiled = true
			if p.plan != nil {
				p.plan.Spoil`}},
	},
}
