// Command mutants shows that the simulator bites: it breaks the real code in ways
// that lose or mix data, one at a time, and has tests/sim find each of them.
//
//	list ──► overlay (the source tree is never touched)
//	           │ go build -overlay: this very program with the broken code in it
//	           ▼
//	         mutants -hunt: simulator runs of seed 1, 2, ... until a checker fails
//	           │
//	           ▼
//	         table, and a file of results by commit, so that an interrupted pass goes on;
//	         exit 1 if one escaped, is stale, or the code as it is fails
//
// A mutant is a set of replacements of exact text, each of which must match exactly
// once: one that does not is stale and fails the run, and TestApply before it. When
// the code has moved on, adapt the text; when it no longer has such a place, think
// of another way to break the same promise.
//
// A mutant that escapes is a fault of the simulator, or it is no mutant: code whose
// observable promises are the same. The former is mended in tests/sim, the latter
// replaced here.
//
// A few are no business of the simulator's, for a reason that stands beside them; the one
// test that finds such a mutant is named, and run with it and without.
//
// Invariant: a seed that catches a mutant passes with the code as it is; one that does
// not is told, and the hunt goes on behind it.
package main
