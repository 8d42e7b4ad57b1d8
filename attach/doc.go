// Package attach makes a kernel block device out of a volume on this host, and takes it
// away again. It is used by commands (Attach, Detach, List), by the helper process that
// serves an attached volume (RunHelper), and by the agent, which wants to know what is
// attached (Load, Use).
//
//	method nbd:   agent ◄─ NBD, several connections ─ the kernel's client ◄─ /dev/nbd0 ◄─ /dev/qrbd/VOLUME
//
//	method fuse:  agent ◄─ NBD, several connections ─ helper process ◄─ FUSE ─ RUN/disk ◄─ loop device
//	                                                                                         ▲
//	                                                              /dev/qrbd/VOLUME ──────────┘
//
// What is attached is remembered in the state directory, one writer per file:
//
//	attach/VOLUME.json    Record: method, device, helper; written by commands
//	attach/VOLUME.helper  HelperState: connected, waiting or dead; written by the helper
//	attach/VOLUME.serving Service: whether the device may be served; written by the agent
//	attach/VOLUME.log     what the helper has to say
//
// The helper outlives the agent. It is told a token, by which the agent knows that the
// data are still those that the device was attached to: an agent that cannot vouch for
// that turns the helper away for good, and the device fails instead of mixing two
// histories (package agent, attached.go).
//
// Invariants: a record exists before its helper connects and as long as anything of the
// device does; nothing is taken away that is mounted or held, unless by force; every
// wait has an end (stepTime).
//
// Under memory pressure the helper must not wait for memory that can only be had by
// writing to its own device: all its threads are IO flushers (PR_SET_IO_FLUSHER, set
// before the Go runtime starts them, by a first stage of the process), its pages stay in
// memory once touched, what requests take is bounded (package fusefile), and the kernel's
// search for a victim passes it by (oom_score_adj). All of it takes root.
package attach
