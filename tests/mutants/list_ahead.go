package main

// aheads is where the simulator's seeds begin whose primaries go ahead of slow peers
// (tests/sim: aheadFrom).
const aheads = 11_000_000

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
		Name:  "behind-settles-others",
		Why:   "a peer that is behind takes what equals the primary for equal to itself",
		First: aheads,
		Edits: []Edit{
			{"replica/tick.go", " || p.repl == protocol.Ahead { // one that", " { // one that"},
			{"replica/secondary.go", " || p.repl == protocol.Behind {\n", " {\n"},
		},
	},
}
