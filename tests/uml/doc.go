// Package uml runs tests under kernels of their own: User-Mode Linux, a whole Linux as
// an ordinary process, on the files of this host. It has what the kernel of a build
// machine may lack: nbd, netem, device-mapper.
//
//	test ── Machine ── process: linux.uml ── init: a script ── command, as root
//	  │        │           └ hostfs: this host's files; /tmp and /run of its own
//	  │        └ output and exit code, through a directory of the host's
//	  └ Cable ── socket pair ── Machine …    (an Ethernet between two machines)
//
// It is right for behaviour (a kernel's own NBD client, a restart under a mounted file
// system) and wrong for speed: one CPU, slow system calls.
//
// A machine ends with its command, with its context, and with the test process. What
// its command leaves on the host's files outside /tmp and /run stays.
//
// Source: Documentation/virt/uml (kernel command line, vector transports).
package uml
