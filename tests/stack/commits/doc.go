// Package commits keeps outside of a database what it has acknowledged: clients insert
// one row per transaction wherever the database is to be had, note each commit that was
// answered, and look afterwards whether it is there.
//
//	client ──► node by node: INSERT, COMMIT ──answered──► Ledger
//	                                        └─unanswered─► may be there or not
//
// Goroutines: one per client while Run lasts.
package commits
