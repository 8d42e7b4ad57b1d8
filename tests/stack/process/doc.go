// Package process starts programs, and ends them by their process id and no other
// way, so that nothing is ever stopped that the caller did not start.
//
//	Start ──► Process ── Stop (SIGTERM, then SIGKILL) ──► ended, output kept in a file
//	              └───── Kill(p, q, ...) : all of them and all their descendants at once
//
// Each process is the leader of a group of its own: a signal that a terminal sends
// to the caller's group does not reach it, so the caller decides the order of the
// end. Should the caller itself die, the kernel ends its direct children (Linux
// parent-death signal).
//
// Owner: one goroutine per Process waits for its end; it lives as long as the
// process does. One more starts them all and lives for ever.
package process
