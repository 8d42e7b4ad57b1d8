package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenBlock opens a block device as a store. It claims the device: one that is
// mounted, or claimed by anything else, is refused with ErrInUse, and while it is
// open nothing can mount it.
func OpenBlock(path string) (*File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open backing device: %w", err)
	}
	if !isBlock(st) {
		return nil, fmt.Errorf("open backing device %s: not a block device", path)
	}
	fd, err := openRetry(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_EXCL, 0)
	if err == unix.EBUSY {
		return nil, fmt.Errorf("open backing device %s: it is mounted or another process has claimed it: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open backing device", Path: path, Err: err}
	}
	f := &File{path: path, kind: kindBlock, fd: fd}
	if err := f.readGeometry(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return f.start()
}

// readGeometry asks the kernel for size, sectors and abilities.
func (f *File) readGeometry() error {
	var bytes uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&bytes)))
	if errno != 0 {
		return fmt.Errorf("size of %s: %w", f.path, errno)
	}
	if int64(bytes) <= 0 {
		return fmt.Errorf("size of %s: %d bytes: no medium or a broken device", f.path, bytes)
	}
	f.size = int64(bytes)
	logical, err := unix.IoctlGetUint32(f.fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("logical sector of %s: %w", f.path, err)
	}
	physical, err := unix.IoctlGetUint32(f.fd, unix.BLKPBSZGET)
	if err != nil {
		return fmt.Errorf("physical sector of %s: %w", f.path, err)
	}
	if logical == 0 || logical&(logical-1) != 0 {
		return fmt.Errorf("logical sector of %s: %d bytes is no power of two", f.path, logical)
	}
	f.logical, f.physical = int(logical), int(physical)
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.path, err)
	}
	f.fastZero = offloadsZero(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	return nil
}

// offloadsZero tells whether the device zeroes ranges by itself. Unknown is no.
func offloadsZero(major, minor uint32) bool {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	for _, queue := range []string{"queue", "../queue"} { // the latter: a partition's disk
		link, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return false
		}
		text, err := os.ReadFile(filepath.Join(link, queue, "write_zeroes_max_bytes"))
		if err != nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		return err == nil && n > 0
	}
	return false
}
