package main

import "slices"

// mutants is every way that is tried, by what it breaks.
var mutants = slices.Concat(ofWrites, ofGenerations, ofSyncs, ofCrashes, ofRoles, ofFormats, ofPolicies, ofArchives, ofDisks, ofQuorums, ofFencing, ofAheads)
