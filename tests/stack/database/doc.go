// Package database runs the distribution's own database servers on a directory
// that a test gives them, usually a mounted volume:
//
//	New(kind, data, run) ─► Init ─► Start ─► CreateDatabase, Open ─► Stop
//	                                  ▲                               │
//	     second host:  New ───────────┘ (recovers from its log)       └─► CheckOffline
//
// data holds everything that must survive; run holds socket, log and pid file and
// is the host's own. Servers listen on a Unix socket only. Durability is what the
// server does out of the box: every commit is flushed before it is acknowledged.
//
// When the caller is root the server runs as the distribution's user for it; a
// database refuses to run as root.
package database
