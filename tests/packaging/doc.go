// Package packaging tests the Debian package: it is built twice by `make deb`, as an
// older and a newer version, and installed, upgraded under a running volume with a client,
// removed and purged in a root of its own:
//
//	/ (read only) ─┐
//	               ├─ overlay ─► chroot in mount and process namespaces: dpkg, the maintainer
//	tmpfs ─────────┘             scripts, an agent, a client, and a systemctl that takes notes
//
// Invariant: nothing of it is left on the machine; the agent and its client die with the
// process namespace.
package packaging
