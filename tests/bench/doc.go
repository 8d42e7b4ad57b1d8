// Command bench measures what a replicated volume costs its client, side by side with two fixed points:
//
//	column   what is measured                                              stands for
//	nbdkit   file plugin on a Unix socket, no replication                  the floor: one NBD hop and the disk
//	qemu     qemu-storage-daemon, quorum of a local file and a remote      the peer: what a mirror over TLS costs today
//	         NBD export over TLS 1.3 (nbdkit with its noextents filter)
//	qrbd     two agents, protocol C, connected and up-to-date              the subject
//
//	fio (nbd engine) ─ unix socket ─► nbdkit ─► file
//	fio (nbd engine) ─ unix socket ─► qemu-storage-daemon ─┬─► file
//	                                                       └─ TLS, loopback ─► nbdkit ─► file
//	fio (nbd engine) ─ unix socket ─► agent alpha ─┬─► file
//	                                               └─ loopback ─► agent beta ─► file
//
// Beside the table there are tests of their own: a 1 TiB volume's footprint; and for each transport the bare echo and the
// bare bulk stream between two processes, four connections and four volumes against one, writes over 100 GiB against
// writes over 512 MiB, and a resync: its pace, what it does to clients, and how fast equal data are compared; when it is
// named, slow: writes and a resync over links of 100 Mbit/s and 1 Gbit/s, with and without compression.
//
// All files lie on tmpfs, so that what is measured is the programs, not a disk. All columns run at once and idle while
// another is measured; the rounds are interleaved (every item, A B C, then the next round), so that a drift of the machine
// meets all columns alike. A figure is the median over the rounds; a ratio is the median of the ratios within each round;
// the noise beside it is half the distance of the smallest from the largest. Server CPU is the processes' own CPU clock
// (user and system, all server processes of the column), divided by the operations fio counted.
//
// Invariant: a sample says how much CPU time other processes (foreign) and the hypervisor (stolen) took while it ran.
// A sample above the limit is measured again while the time budget lasts, and the quietest attempt is kept. Rounds that
// were not quiet are left out of an item's figures as long as three quiet ones remain; otherwise the line says busy.
//
// Invariant: a column that replicates has done so. Before the rounds the mirror's remote side must have seen every flush; the
// pair of agents is asked for its state before every sample; afterwards the copies of each are compared byte for byte.
//
// Invariant: every process started is ended by its id and every directory made is removed, also after an error or a signal.
//
// Goroutines: one per child process, in process.go, waits for its end; everything else runs in main's goroutine.
package main
