package main

// Where the simulator's seeds begin whose primaries go ahead of slow peers, and those of
// them whose clients rest then (tests/sim: aheadFrom, restsFrom).
const (
	aheads = 11_000_000
	rests  = 11_500_000
)

// ofAheads has a primary that goes ahead of a peer lose sight of what the peer lacks, or
// the peer not know that it is behind.
var ofAheads = []Mutant{
	{
		Name:  "ahead-without-generation",
		Why:   "no generation begins when a primary goes ahead: the peer that stays behind has the same one, and may be taken for equal",
		First: aheads,
		Edits: []Edit{{"replica/ahead.go", "	p.live, p.apart = false, false\n", "	p.live, p.apart = false, true\n"}},
	},
	{
		Name:  "ahead-forgets-what-was-sent",
		Why:   "what was on its way when the primary went ahead is not marked when the link is lost then",
		First: aheads,
		Edits: []Edit{{"replica/ahead.go", "	m.setRepl(p, protocol.Ahead, why)\n", "	m.setRepl(p, protocol.Ahead, why)\n	p.ring.reset()\n"}},
	},
	{
		Name: "behind-settles-others",
		Why:  "a peer that is behind takes what equals the primary for equal to itself",
		Edits: []Edit{
			{"replica/tick.go", " || p.repl == protocol.Ahead { // one that", " { // one that"},
			{"replica/secondary.go", " || p.repl == protocol.Behind {\n", " {\n"},
		},
		In: "replica", Test: "TestBehindSettlesNobody",
		But: "no data are lost by it: what differs between the two is marked at the other one as well",
	},
	{
		Name:  "ahead-cools-what-was-sent",
		Why:   "a primary that has gone ahead lets extents cool whose last writes the peer may still lose",
		First: rests,
		Edits: []Edit{{"replica/tick.go", "			case p.ring.head < p.ring.tail && p.ring.at(p.ring.head).seq <= last: // live", "			case p.live && p.ring.head < p.ring.tail && p.ring.at(p.ring.head).seq <= last: // live"}},
	},
	{
		Name: "behind-not-outdated",
		Why:  "a peer that is behind does not say so, and is promoted with old data without force",
		Edits: []Edit{{"replica/ahead.go", "	if m.disk > protocol.Outdated {\n		m.setDisk(protocol.Outdated, p.name+\" has gone ahead", "	if m.stopping {\n		m.setDisk(protocol.Outdated, p.name+\" has gone ahead"},
			{"replica/ahead.go", "	case !p.knowsBehind:\n", "	case !p.knowsBehind && m.stopping:\n"}},
		In: "replica", Test: "TestScripts",
		But: "under A whoever takes over may lack what was acknowledged: what the operator has to say for that is all that changes",
	},
}
