// Package interop drives an NBD export with other people's clients: libnbd's
// nbdinfo, nbdcopy and nbdsh, qemu's qemu-img and qemu-io, fio's nbd engine and
// Debian's nbd-client. What they make of a server is what it is worth.
//
// Everything works on a Target, so the same checks run against the server in a
// test's own process and against a real agent:
//
//	interop.Run(t, interop.Target{Addr: "unix:/run/qrbd/crm.sock", Export: "crm"})
//
// Run overwrites the export. A check whose program is not installed is skipped,
// with the program named.
package interop
