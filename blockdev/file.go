package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrInUse: the backing store is open elsewhere: by another process, by a
// mounted file system, or by this process a second time.
var ErrInUse = errors.New("the backing store is in use")

// syncLanes is the number of FUA writes that may be on their way to the disk at
// once; more wait. Each needs an open file description of its own (see File).
const syncLanes = 4

// fileKind is what a File stands on.
type fileKind uint8

const (
	kindRegular fileKind = iota
	kindBlock
)

// String returns the kind's name.
func (k fileKind) String() string {
	switch k {
	case kindRegular:
		return "regular file"
	case kindBlock:
		return "block device"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// File is a Device on a sparse regular file or on a block device, through the
// page cache. It holds the store exclusively (flock on a file, O_EXCL on a block
// device) from open to Close. The size is fixed at open.
//
// Write-back errors: the kernel reports one once to each open file description.
// File therefore keeps one description for flushes, which run one at a time, and
// syncLanes for FUA writes, each used by one write at a time. Every one of them
// sees every error, so none can succeed because another was told.
//
// Close returns at once; the descriptors (and with them the lock) go when the
// last operation in flight has ended.
type File struct {
	path     string
	kind     fileKind
	size     int64
	logical  int // logical sector, bytes: the alignment of fallocate on a block device
	physical int // physical sector, bytes
	tmpfs    bool
	fastZero bool // block device: zeroing without unmapping is offloaded

	fd      int      // data, fallocate, seek; holds the lock
	flushFD int      // fdatasync only
	lanes   chan int // idle descriptors for FUA writes

	// The calls that wait for stable storage, replaced in tests.
	fdatasync   func(fd int) error
	writeStable func(fd int, p []byte, off int64) (int, error)

	refs    atomic.Int64 // operations in flight, plus closedBit after Close
	release sync.Once
	failure atomic.Pointer[fileFailure]
	flushes flushGroup

	// Found out in use; a false "no" only costs a system call.
	noPunch, noZeroRange, noDsync, noNowait atomic.Bool
}

type fileFailure struct{ err error }

const closedBit = int64(1) << 62

var _ Device = (*File)(nil)

// Open opens a store by what path is: a regular file or a block device.
func Open(path string) (*File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open backing store: %w", err)
	}
	if isBlock(st) {
		return OpenBlock(path)
	}
	return OpenFile(path)
}

func isBlock(st fs.FileInfo) bool {
	return st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
}

// OpenFile opens a regular file as a store of the file's present size. Errors:
// fs.ErrNotExist, ErrInUse.
func OpenFile(path string) (*File, error) {
	st, err := os.Stat(path) // before open: opening a FIFO would hang
	if err != nil {
		return nil, fmt.Errorf("open backing file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open backing file %s: not a regular file", path)
	}
	fd, err := openLocked(path, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	return newRegular(fd, path)
}

// CreateFile makes a sparse file of size bytes (> 0), mode 0600, and opens it. An
// existing file is refused with fs.ErrExist, unless force, which empties it; one
// in use is refused (ErrInUse) even then. Durable: the file, its size and its
// name are on stable storage on return.
func CreateFile(path string, size int64, force bool) (*File, error) {
	return CreateFileAfter(path, size, force, func() error { return nil })
}

// CreateFileAfter is CreateFile, and calls before when the file is there and locked,
// and nothing in it is lost yet: whatever says that it holds data is taken back there,
// durably. An error of before leaves the file as it was, or absent.
func CreateFileAfter(path string, size int64, force bool, before func() error) (*File, error) {
	if size <= 0 {
		return nil, fmt.Errorf("create backing file %s: size %d is not positive", path, size)
	}
	created := true
	fd, err := openLocked(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if errors.Is(err, fs.ErrExist) && force {
		created = false
		if st, serr := os.Stat(path); serr != nil || !st.Mode().IsRegular() {
			return nil, fmt.Errorf("create backing file %s: exists and is not a regular file", path)
		}
		fd, err = openLocked(path, unix.O_RDWR)
	}
	if err != nil {
		return nil, err
	}
	err = before()
	if err == nil {
		err = initFile(fd, path, size)
	}
	if err != nil {
		unix.Close(fd)
		if created {
			os.Remove(path)
		}
		return nil, err
	}
	return newRegular(fd, path)
}

// initFile makes the locked file an empty one of size bytes, durably.
func initFile(fd int, path string, size int64) error {
	if err := unix.Ftruncate(fd, 0); err != nil {
		return fmt.Errorf("empty backing file %s: %w", path, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("set size of backing file %s to %d: %w", path, size, err)
	}
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("sync backing file %s: %w", path, err)
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync directory of backing file %s: %w", path, err)
	}
	return nil
}

// openLocked opens path and takes its lock without waiting.
func openLocked(path string, flags int) (int, error) {
	fd, err := openRetry(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, &os.PathError{Op: "open backing file", Path: path, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return -1, fmt.Errorf("open backing file %s: another process has it open: %w", path, ErrInUse)
		}
		return -1, fmt.Errorf("lock backing file %s: %w", path, err)
	}
	return fd, nil
}

// openRetry is open(2), again after a signal.
func openRetry(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// newRegular makes a File of a locked descriptor, which it owns, also on error.
func newRegular(fd int, path string) (*File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat backing file %s: %w", path, err)
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat file system of %s: %w", path, err)
	}
	f := &File{
		path: path, kind: kindRegular, fd: fd, size: st.Size,
		logical: 1, physical: BlockSize,
		tmpfs: sfs.Type == unix.TMPFS_MAGIC,
	}
	return f.start()
}

// start opens the descriptors for syncing. It owns f.fd, also on error.
func (f *File) start() (*File, error) {
	f.fdatasync, f.writeStable = unix.Fdatasync, pwriteDsync
	f.flushFD = -1
	f.lanes = make(chan int, syncLanes)
	again := "/proc/self/fd/" + strconv.Itoa(f.fd) // the same inode, whatever path names by now
	for i := range 1 + syncLanes {
		fd, err := openRetry(again, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			f.closeAll()
			return nil, fmt.Errorf("open %s %s again for syncing (is /proc mounted?): %w", f.kind, f.path, err)
		}
		if i == 0 {
			f.flushFD = fd
		} else {
			f.lanes <- fd
		}
	}
	return f, nil
}

// Size returns the size in bytes, as it was at open.
func (f *File) Size() int64 { return f.size }

// SectorSizes returns the logical and physical sector of the store in bytes; for
// a regular file 1 and BlockSize.
func (f *File) SectorSizes() (logical, physical int) { return f.logical, f.physical }

// Path returns the path the store was opened by.
func (f *File) Path() string { return f.path }

// Close gives the store up without flushing it. Operations in flight end
// normally; later ones get ErrClosed, as does a second Close.
func (f *File) Close() error {
	for {
		n := f.refs.Load()
		if n&closedBit != 0 {
			return ErrClosed
		}
		if f.refs.CompareAndSwap(n, n|closedBit) {
			if n == 0 {
				f.release.Do(f.closeAll)
			}
			return nil
		}
	}
}

// enter admits an operation; after nil it must be followed by exit.
func (f *File) enter() error {
	if f.refs.Add(1)&closedBit != 0 {
		f.exit()
		return ErrClosed
	}
	if x := f.failure.Load(); x != nil {
		f.exit()
		return x.err
	}
	return nil
}

func (f *File) exit() {
	if f.refs.Add(-1) == closedBit {
		f.release.Do(f.closeAll)
	}
}

// closeAll closes every descriptor. REQUIRES: no operation in flight.
func (f *File) closeAll() {
	for {
		select {
		case fd := <-f.lanes:
			unix.Close(fd)
			continue
		default:
		}
		break
	}
	if f.flushFD >= 0 {
		unix.Close(f.flushFD)
	}
	unix.Close(f.fd)
}

// fail makes the device failed for ever and returns the error of its first
// failure.
func (f *File) fail(op string, cause error) error {
	err := fmt.Errorf("%s %s: %w: %w", op, f.path, ErrFailed, cause)
	f.failure.CompareAndSwap(nil, &fileFailure{err: err})
	return f.failure.Load().err
}

// Failed returns the error that made the device failed, or nil.
func (f *File) Failed() error {
	if x := f.failure.Load(); x != nil {
		return x.err
	}
	return nil
}
