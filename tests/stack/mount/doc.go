// Package mount makes an ext4 file system on a block device and mounts it:
//
//	block device ("/dev/qrbd/crm") ◄─ ext4 on DIR
//
// Invariant: Unmount and Crash leave nothing mounted, at whatever step Format or Mount
// had failed.
package mount
