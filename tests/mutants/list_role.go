package main

// ofRoles breaks who may serve the data.
var ofRoles = []Mutant{
	{
		Name:  "inconsistent-promoted",
		Why:   "a half-overwritten replica is promoted without force",
		Edits: []Edit{{"replica/promote.go", "	case m.disk <= protocol.Outdated:\n", "	case m.disk <= protocol.Failed:\n"}},
	},
	{
		Name:  "outdated-promoted",
		Why:   "a replica that is known to be behind is promoted without force",
		Edits: []Edit{{"replica/promote.go", "	case m.disk <= protocol.Outdated:\n", "	case m.disk <= protocol.Inconsistent:\n"}},
	},
	{
		Name: "two-promoted",
		Why:  "a peer's promotion is granted although this node is primary: both take writes",
		Edits: []Edit{{"replica/promote.go",
			"	case m.role == protocol.Primary:\n		ans.Code, ans.Text = protocol.CodeTwoPrimaries, m.cfg.Name+\" is primary on \"+m.cfg.Self\n",
			""}, {"replica/promote.go", "		if p.linked && p.settled && p.role == protocol.Primary {\n			return refusal(protocol.CodeTwoPrimaries,", "		if p.linked && p.settled && p.role == protocol.Primary && m.stopping {\n			return refusal(protocol.CodeTwoPrimaries,"}, {"replica/promote.go", "	case m.primary() != \"\" && m.primary() != p.name:\n", "	case m.primary() != \"\" && m.primary() != p.name && m.role != protocol.Primary:\n"}},
	},
	{
		Name: "demoted-answers",
		Why:  "a node that was demoted goes on to take requests, which no peer gets",
		Edits: []Edit{{"replica/write.go", `	case m.role != protocol.Primary:
		m.emit(Effect{Kind: DoComplete, Req: r, Err: ErrNotPrimary})
	default:
		m.admit(r)
	}
}

// admit`, `	default:
		m.admit(r)
	}
}

// admit`}},
	},
	{
		Name: "handover-without-flush",
		Why:  "a switchover does not flush: a third replica, or a power cut, may take the new primary by surprise",
		Edits: []Edit{{"replica/role.go",
			"		d.flush = &Request{Op: Flush, Tag: internalTag, span: -1, all: true}\n		m.issueFlush(d.flush)\n",
			"		d.flush, d.flushed = &Request{}, true\n		m.drained()\n"}},
	},
	{
		Name:  "two-primaries-followed",
		Why:   "a secondary takes the writes of a second primary before the first has stepped down or is lost: what it has of the first's is not marked then",
		First: switchovers,
		Edits: []Edit{{"replica/successor.go", "	case s.Role != protocol.Primary || p.role", "	case true || s.Role != protocol.Primary || p.role"}},
	},
}
