// Package fault holds a disk that fails on demand, for tests.
//
//	      rules: operation, range, which of the matches ──► action
//	                         │
//	caller ──► Device ──► first rule that applies? ──► inner
//	                         error, nospace, short, delay, hang
//
// Rules are set at run time, by calls (New) or, for a real process, by a text
// file that is read again whenever it changes (FromFile):
//
//	# operation action [argument] [option ...]
//	write error                 every write fails; the device is failed from then on
//	flush error nth=3           the third flush fails
//	read delay 50ms p=0.1       one read in ten takes 50 ms longer
//	write hang range=0+4096     writes that touch the first 4 KiB hang until the line is gone
//	any nospace count=2         the next two operations find the store full
//	write short                 the first half is written, then it fails
//
// The operations are read, write, zero, trim, flush and any; write does not
// include zero and trim.
//
// Invariants: as on a real disk, an error of a write, zero, trim or flush is
// sticky (blockdev.ErrFailed); one of a read, and nospace, are not. Close ends
// every hang. Errors satisfy errors.Is for both the contract's sentinel and the
// errno.
//
// No goroutines: a delay or hang occupies its caller.
package fault
