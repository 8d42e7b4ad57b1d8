// Package mount makes a file system out of an NBD export, on hosts without the
// kernel's nbd driver:
//
//	NBD server ◄─ nbdfuse ─► DIR/fuse/disk ◄─ loop device, direct I/O ─► ext4 on DIR/fs
//
// Direct I/O on the loop device keeps the host's page cache from holding a second
// copy; a flush of the file system arrives at the server as NBD_CMD_FLUSH, because
// the loop driver turns it into an fsync of the file and nbdfuse that into a flush.
//
// Invariant: Close and Crash leave no mount, loop device or process behind, at
// whatever step Open, Format or Mount had failed.
package mount
