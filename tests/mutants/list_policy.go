package main

// ofPolicies breaks what is done about a split brain without an operator's word.
var ofPolicies = []Mutant{
	{
		Name:  "zero-changes-is-fewer",
		First: splits,
		Why:   "discard-zero-changes gives up a side that wrote, only less",
		Edits: []Edit{{"replica/policy.go", "	least := me.Policy.Pri0 == protocol.DiscardLeastChanges\n", "	least := true\n"}},
	},
	{
		Name:  "differing-policies-followed",
		Why:   "a side is given up although the nodes' policies differ",
		First: splits,
		Edits: []Edit{{"replica/policy.go", "	if me.Policy != peer.Policy {\n", "	if me.Policy.Pri0 == protocol.CallPriLost {\n"}},
	},
	{
		Name:  "winner-given-up",
		Why:   "the policy's winner is overwritten by its loser",
		Edits: []Edit{{"replica/policy.go", "	case loser == me && !full:\n", "	case loser != me && !full:\n"}, {"replica/policy.go", "	case loser == me:\n		d.Strategy = protocol.TargetFull\n	case !full:\n", "	case loser != me:\n		d.Strategy = protocol.TargetFull\n	case !full:\n"}},
	},
}
