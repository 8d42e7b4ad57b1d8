// Package crm is the first user's application, as far as a disk can tell: the
// tables of a CRM, a load of concurrent clients on them, and a book of receipts
// outside the database.
//
//	clients ── transaction ──► database ── commit acknowledged ──► Book.Note ── fsync
//	                               │                                    │
//	                               └───────────► Audit ◄────────────────┘
//	             is every receipt's row there, as it was written, and do all totals agree?
//
// Every writing transaction inserts one row under a number that is used once, and
// changes totals kept in other tables: an opportunity's touches, a customer's
// revenue. The row shows that the commit is there, the totals that all of it is.
//
// Invariants:
//   - a number is in the Book only after its commit was acknowledged, and Note
//     returns only after the line is on stable storage;
//   - a row's text is a function of its number, so that a wrong row shows.
//
// Owner: Load.Run owns its clients, and a Book the one goroutine that writes it;
// both are gone when Run and Close return.
package crm
