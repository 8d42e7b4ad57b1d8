// The demo command shows what qrbd is for, on this machine and for real: a CRM's
// database survives the death of its host.
//
//	alpha ── agent ══ QUIC, protocol C ══ agent ── beta
//	  │ qrbd attach                          │ qrbd attach
//	 /dev/loop0, ext4                       /dev/loop1, ext4        (after the death)
//	  │                                      │
//	 PostgreSQL or MariaDB ◄─ clients ─►    the same data, recovered
//	                            │
//	                book of receipts, outside the volume
//
// In the middle of a load, agent, mount and database of alpha are killed. beta is
// promoted, mounts the file system, recovers the database and serves; every
// acknowledged commit is looked up, the structures are checked, alpha comes back
// and resyncs what changed, and the backing stores are compared byte for byte.
//
// Without root there is no mount: the same story is told on the bare block device.
//
// Exit code: 0 if every claim held, 1 if one did not or a step failed, 130 when
// interrupted. It cleans up in every case.
//
// Owner: story starts the goroutine of the load and waits for its end; main's
// signal context ends all waits.
package main
