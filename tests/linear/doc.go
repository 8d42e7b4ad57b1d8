// Package linear checks that clients of a replicated volume cannot tell it from one
// disk: every block is a register, and what concurrent clients saw of it, over
// crashes, pauses, cut links and changes of the primary, must have an order in which
// one register could have done it. Porcupine finds that order or shows that there is
// none.
//
//	Load ── clients ── NBD ──► whichever node serves the export
//	  │ Call / Return                      ▲
//	  ▼                                    │ kill, stop, cut, promote (tests)
//	History ◄── Lost, End of a term ───────┘
//	  │
//	  ▼ per block
//	Check ── model ── porcupine ──► linear, or a picture of the block's history
//
// It shares no code with what it judges, and knows of qrbd only NBD.
//
// What an answer means, and what no answer means:
//
//   - A write whose answer never came may have happened or not. It may happen until the
//     term that it was sent in is over: the agent's process is dead, or it was demoted.
//     Nothing of it may appear after that which was not seen then. When nobody ever read
//     its value it need not have happened, and is left out.
//   - When a primary is lost, protocol C keeps every acknowledged write, and whatever a
//     read returned that cannot have run beside the write: of the rest, which nobody was
//     promised, any last part may be gone (Lost with one copy).
//   - When every copy loses its power, all that no flush and no FUA covered may be gone
//     (Lost with all copies); what a flush covers is what was acknowledged before it was
//     sent.
//   - A block is 4 KiB and is written whole. A read that runs beside a write may find parts
//     of both, as on any disk; it then says nothing. Any other mixture is an error.
//
// Times are a counter of the history's own events, so that "before" is exact. A History
// is safe for concurrent use; Load.Run owns its clients and returns after all of them
// ended.
package linear
