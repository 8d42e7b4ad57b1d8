// Package architecture holds the tests that keep the shape of the module: which
// package may import which, which packages are pure, and what the built binary
// must look like. It has no code of its own.
//
// Imports only point down:
//
//	cmd/qrbd
//	  agent (config, control)
//	    volume ─────► volume/meta    protocol/quicnet, tcpnet    blockdev/nbd
//	      │                │                   ▼                     │
//	    replica ► resync ► bitmap        protocol/session            │
//	      │          │                         │                     │
//	      └──────────┴─────────► protocol ◄────┘     blockdev ◄──────┘
//
// Pure packages (replica, resync, bitmap, protocol) decide and encode; they have
// no goroutine, clock, I/O, lock or logger, so that a simulator can run them from
// a seed and always see the same.
package architecture
