package fusefile

import (
	"errors"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	rootNode = fuse.FUSE_ROOT_ID
	fileNode = 2
)

// attrValid, in seconds, is how long the kernel may remember attributes.
const attrValid = 1

// files is the file system: a directory and a file. What it does not define answers
// ENOSYS.
type files struct {
	fuse.RawFileSystem
	disk Disk
}

func (f *files) String() string { return "qrbd" }

func (f *files) attr(node uint64, a *fuse.Attr) fuse.Status {
	a.Ino, a.Nlink, a.Blksize = node, 1, blockSize
	switch node {
	case rootNode:
		a.Mode, a.Nlink = fuse.S_IFDIR|0o500, 2
	case fileNode:
		a.Mode, a.Size = fuse.S_IFREG|0o600, uint64(f.disk.Size())
		a.Blocks = a.Size / 512
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

// Lookup finds the file.
func (f *files) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != rootNode || name != FileName {
		return fuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = fileNode, math.MaxInt32, attrValid
	return f.attr(fileNode, &out.Attr)
}

// GetAttr describes file or directory.
func (f *files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = attrValid
	return f.attr(in.NodeId, &out.Attr)
}

// SetAttr accepts times, which are not kept, and refuses another size.
func (f *files) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && int64(size) != f.disk.Size() {
		return fuse.EPERM
	}
	return f.attr(in.NodeId, &out.Attr)
}

// Access: the kernel checks the mode for others than root.
func (f *files) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// Open has the kernel pass reads and writes on as they are.
func (f *files) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fileNode {
		return fuse.EISDIR
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Read reads what is asked for, less at the end of the disk.
func (f *files) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := min(int64(len(buf)), int64(in.Size), f.disk.Size()-int64(in.Offset))
	if n <= 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	if err := f.disk.ReadAt(buf[:n], int64(in.Offset)); err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write writes all or fails.
func (f *files) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if int64(in.Offset) > f.disk.Size()-int64(len(data)) {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	if err := f.disk.WriteAt(data, int64(in.Offset)); err != nil {
		return 0, status(err)
	}
	return uint32(len(data)), fuse.OK
}

// Fsync flushes.
func (f *files) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return status(f.disk.Flush()) }

// Flush is a close, which promises nothing.
func (f *files) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Release forgets a descriptor.
func (f *files) Release(<-chan struct{}, *fuse.ReleaseIn) {}

// Fallocate punches and zeroes; there is nothing to allocate.
func (f *files) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	off, n := int64(in.Offset), int64(in.Length)
	if n = min(n, f.disk.Size()-off); n <= 0 {
		return fuse.EINVAL
	}
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		return status(f.disk.Trim(off, n))
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		return status(f.disk.Zero(off, n, true))
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

// OpenDir opens the directory.
func (f *files) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir lists the file.
func (f *files) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset == 0 {
		out.AddDirEntry(fuse.DirEntry{Name: FileName, Mode: fuse.S_IFREG, Ino: fileNode})
	}
	return fuse.OK
}

// ReleaseDir forgets a descriptor.
func (f *files) ReleaseDir(*fuse.ReleaseIn) {}

// StatFs: the loop driver takes the granularity of discard from the block size.
func (f *files) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	out.Blocks = uint64(f.disk.Size()) / blockSize
	return fuse.OK
}

// status is the error number that the file's user sees.
func status(err error) fuse.Status {
	var e syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &e):
		return fuse.Status(e)
	}
	return fuse.EIO
}
