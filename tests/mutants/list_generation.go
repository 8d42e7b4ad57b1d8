package main

// ofGenerations breaks how a parting is remembered.
var ofGenerations = []Mutant{
	{
		Name: "mint-after-ack",
		Why:  "a write that a lost peer had not confirmed is acknowledged before the generation that says so is durable: after a crash the two are taken for equal",
		Edits: []Edit{{"replica/write.go", `		if !r.inWait {
			r.inWait = true
			m.genWait = append(m.genWait, r)
		}
		m.mint()
		return
	}
	m.finish(r)`, `		r.needGen = false
		m.mint()
	}
	m.finish(r)`}},
	},
	{
		Name: "first-write-does-not-wait",
		Why:  "the first write after a parting does not wait for its generation",
		Edits: []Edit{{"replica/write.go", `	if m.mustMint() {
		m.held = append(m.held, r)
		m.mint()
		return
	}
`, `	if m.mustMint() {
		m.mint()
	}
`}},
	},
	{
		Name:  "flush-without-generation",
		Why:   "a flush is answered in a generation that a lost peer is at, which may lack what it covers: after a power cut of both the peer may be taken for the newer one",
		Edits: []Edit{{"replica/write.go", "(m.minting || m.mustMintToFlush())", "false"}},
	},
	{
		Name: "mint-never",
		Why:  "no generation begins at a parting: a split brain is not seen, the newer side may be overwritten",
		Edits: []Edit{{"replica/generation.go",
			"func (m *Machine) mustMint() bool {\n",
			"func (m *Machine) mustMint() bool {\n	return false\n}\n\nfunc (m *Machine) mustMintOnce() bool {\n"}},
	},
	{
		Name:  "claim-kept-in-a-new-reign",
		Why:   "a primary answers before its peers have settled what they remember of an earlier crash: under A one that is stopped then overwrites what was flushed since",
		Edits: []Edit{{"replica/generation.go", "return p.claims && p.confirms() }", "return p.claims && p.epoch == 0 }"}},
		In:    "replica", Test: "TestScripts",
		But: "it takes a stop within some ms of a promotion: one of 50,000 seeds",
	},
	{
		Name:  "mint-not-confirmed",
		Why:   "a generation is written in before the connected peers have it: one that crashes then takes a replica that was left behind for its equal",
		Edits: []Edit{{"replica/generation.go", "			m.mintWait |= 1 << p.id\n			o.told", "			o.told"}},
	},
	{
		Name: "mint-confirmed-undurable",
		Why:  "a peer confirms a generation that it has not on stable storage",
		Edits: []Edit{{"replica/generation.go", `	m.whenDurable(func() {
		if p.epoch == epoch && p.linked {
			m.release(p)`, `	m.whenSoon(func() {
		if p.epoch == epoch && p.linked {
			m.release(p)`}, {"replica/generation.go", "func (m *Machine) onGenerationAck(", `func (m *Machine) whenSoon(fn func()) { fn() }

func (m *Machine) onGenerationAck(`}},
	},
	{
		Name: "mint-not-durable",
		Why:  "writes are acknowledged in a generation that is not on stable storage: after a crash the node is taken for one that never went on alone",
		Edits: []Edit{{"replica/generation.go", `		m.whenDurable(func() {
			if m.mintTurn == turn {`, `		m.whenSoon(func() {
			if m.mintTurn == turn {`}, {"replica/generation.go", "// takeOffer makes", `func (m *Machine) whenSoon(fn func()) { fn() }

// takeOffer makes`}},
	},
	{
		Name: "split-brain-joined",
		Why:  "two replicas that both took writes are joined by a bitmap sync: one side's acknowledged writes are overwritten and nobody is told",
		Edits: []Edit{{"replica/compare.go",
			"		d.Strategy, d.Rule, d.Code = protocol.SplitBrain, RuleSplitBitmap, protocol.CodeSplitBrain\n",
			`		d.Strategy, d.Rule, d.Digest, d.Rebase = protocol.TargetBitmap, RuleBitmapPeer, true, true
		if me.Role == protocol.Primary || peer.Role != protocol.Primary && tieBreak(me, peer) {
			d.Strategy, d.Rule = protocol.SourceBitmap, RuleBitmapSelf
		}
		return d
`}},
	},
	{
		Name:  "crashed-primary-forgotten",
		Why:   "a node that crashed as primary does not say so: what it alone has may be overwritten by one that never got it",
		Edits: []Edit{{"replica/machine.go", "crashed: st.Primary", "crashed: false"}},
	},
	{
		Name:  "back-without-the-request",
		Why:   "a request that a peer was lost with is answered in the peer's generation, when that one is back before the others have answered",
		First: carriers,
		Edits: []Edit{{"replica/generation.go", "return !p.apart && (!p.live || m.passedOver(p))", "return !p.apart && !p.live"}},
	},
}
