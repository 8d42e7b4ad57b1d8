// Package kernel hands NBD connections to the kernel's nbd driver, over generic
// netlink, and takes them back.
//
//	attach ─ NBD handshake ─► export      (blockdev/nbd/client, simple replies)
//	   └─ Connect(sockets, size, flags) ─ netlink "nbd" ─► kernel ─► /dev/nbdN
//	                        kernel ═ the handed sockets ═► export
//
// The process that attaches may end: the kernel owns the sockets. When the server on
// their other ends dies, requests wait, up to the dead time, for Reconfigure to bring
// new sockets.
//
// The driver learns from the transmission flags it is given what the export can do.
// Without SEND_FLUSH it takes the device for one without a cache and never sends a
// flush: so Connect refuses an export that does not offer it.
//
// Owners: a Client is used by one goroutine; it starts none.
//
// Source: linux/nbd-netlink.h (numbers of commands and attributes).
package kernel
