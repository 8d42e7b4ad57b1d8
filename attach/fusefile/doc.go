// Package fusefile shows a disk as one file of a FUSE file system, for a loop device
// to be put on:
//
//	file system ─► loop device, direct I/O ─► DIR/disk ─► kernel's FUSE ─► Server ─► Disk
//
// Every operation of the file is the disk's own, uncached on both sides:
//
//	read, write           ReadAt, WriteAt
//	fsync                 Flush (the loop driver's answer to a flush)
//	fallocate PUNCH_HOLE  Trim (discard, and write-zeroes that may deallocate: a trimmed
//	                      range reads as zeroes, or this package must not be used)
//	fallocate ZERO_RANGE  Zero, allocated
//
// Source: the kernel's include/uapi/linux/fuse.h and drivers/block/loop.c for what
// the two ask for.
//
// Bounds: the kernel has at most backgroundMax requests of a loop device under way, of
// at most requestMax bytes each; inflightMax bounds the bytes of all.
//
// Goroutines: those of the FUSE library, which end when the file system is unmounted.
package fusefile
