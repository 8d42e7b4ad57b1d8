package main

// Where the simulator's seeds begin that have fencing, and those of them in which metadata
// fail when a peer is fenced no longer (tests/sim: fencingFrom, staleFrom).
const (
	fencings = 9_000_000
	stale    = 9_500_000
)

// ofFencing lets a node go on beside a peer that may take over, or take over from one that
// may go on.
var ofFencing = []Mutant{
	{
		Name:  "answers-while-frozen",
		Why:   "a primary under resource-and-stonith that has lost a peer answers before the peer is fenced: what it answers is lost when the peer has it switched off",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "	return !m.gated() || !slices.ContainsFunc(m.peers, func(p *peer) bool { return !m.covered(p) })", "	return true"}},
	},
	{
		Name:  "promoted-unfenced",
		Why:   "a promotion does not have peers fenced that are out of reach",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "		waits = true\n		if !p.fence.asking {", "		if !p.fence.asking {"}},
	},
	{
		Name:  "unreachable-is-fenced",
		Why:   "a hook that could not reach a peer counts as one that has fenced it",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "	case FenceOutdated, FenceStonithed:\n		m.setPeerDisk", "	case FenceOutdated, FenceStonithed, FenceUnreachable:\n		m.setPeerDisk"},
			{"replica/fence.go", "	case FencePrimary, FenceUnreachable, FenceFailed:", "	case FencePrimary, FenceFailed:"}},
	},
	{
		Name:  "bonded-by-start",
		Why:   "a node that was started anew takes over from a peer that may have gone on without it",
		First: fencings,
		Edits: []Edit{{"replica/machine.go", "		p.fence.sure, p.fence.noted = p.fence.kept, p.fence.kept\n", "		p.fence.sure, p.fence.shares = p.fence.kept, m.fencingOn()\n"}},
	},
	{
		Name:  "outdated-for-nothing",
		Why:   "a node forgets that it was outdated: the peer that had that done goes on, and it takes over",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "	m.unbind()\n	if m.disk > protocol.Outdated {\n		m.setDisk(", "	if m.stopping {\n		m.setDisk("}},
	},
	{
		Name:  "fenced-for-good",
		Why:   "the note that a peer is fenced stays when it is in sync again: when it is lost the next time nobody asks",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "		f.kept, f.sure = false, false\n		f.turn++\n", "		f.sure = true\n"},
			{"replica/fence.go", "p.linked && f.said && !f.kept {", "p.linked && f.said {"}},
	},
	{
		Name:  "back-is-in-sync",
		Why:   "a primary answers as soon as a lost peer is connected, which does not get its writes yet",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "return !m.staleNote(p) && (p.fence.kept && p.fence.sure || p.linked && p.settled && p.live && p.step != syncWaitReady)\n", "return p.fence.kept && p.fence.sure || p.linked && p.settled\n"}},
	},
	{
		Name:  "note-on-a-dead-disk",
		Why:   "a primary goes on through its peers although its metadata, which have failed, still call one of them fenced: started anew it is promoted alone, with old data",
		First: stale,
		Edits: []Edit{{"replica/fence.go", "return m.bare() && p.fence.noted && (!p.fence.kept || p.live)\n", "return false\n"}},
	},
	{
		Name:  "anybody-may-fence",
		Why:   "a node that is not bonded, because its data are old or it was started anew, is promoted when the hook has fenced the peer",
		First: fencings,
		Edits: []Edit{{"replica/fence.go", "	case !p.fence.shares:\n", "	case !p.fence.shares && m.stopping:\n"}},
	},
}
