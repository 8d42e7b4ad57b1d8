package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
)

// Storage is the file that an archive lives in. ReadAt may be called beside all
// others.
type Storage interface {
	// ReadAt is io.ReaderAt's.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt is io.WriterAt's. It is durable after the next Sync.
	WriteAt(p []byte, off int64) (int, error)
	// Truncate sets the length. It is durable after the next Sync.
	Truncate(size int64) error
	// Sync makes everything before it durable, the length too.
	Sync() error
	// Size returns the length in bytes.
	Size() (int64, error)
	Close() error
}

// Shelf is where a volume's archives are: a directory, or what tests put in its
// place.
type Shelf interface {
	// Names lists what is there.
	Names() ([]string, error)
	// Create makes a new, empty archive; its name is durable on return.
	Create(name string) (Storage, error)
	Open(name string) (Storage, error)
	// Remove is durable on return.
	Remove(name string) error
	// Free returns the bytes that can still be written.
	Free() (int64, error)
	// Path is for texts.
	Path() string
}

const suffix = ".archive"

type directory struct{ path string }

// Directory returns a shelf that is a directory. It is made, mode 0700, with the
// first archive; its parent must exist then: a file system that is not mounted is
// not taken for an empty one.
func Directory(path string) Shelf { return directory{filepath.Clean(path)} }

func (d directory) Path() string { return d.path }

func (d directory) file(name string) string { return filepath.Join(d.path, name+suffix) }

func (d directory) Names() ([]string, error) {
	list, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("archives: %w", err)
	}
	var names []string
	for _, e := range list {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && e.Type().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

func (d directory) Create(name string) (Storage, error) {
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("archives: %w", err)
	}
	f, err := os.OpenFile(d.file(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("archives: %w", err)
	}
	for _, dir := range []string{d.path, filepath.Dir(d.path)} {
		if err := blockdev.SyncDir(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("archives: %w", err), f.Close(), os.Remove(f.Name()))
		}
	}
	return file{f}, nil
}

func (d directory) Open(name string) (Storage, error) {
	f, err := os.OpenFile(d.file(name), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("archives: %w", err)
	}
	return file{f}, nil
}

func (d directory) Remove(name string) error {
	if err := os.Remove(d.file(name)); err != nil {
		return fmt.Errorf("archives: %w", err)
	}
	return blockdev.SyncDir(d.path)
}

func (d directory) Free() (int64, error) {
	path := d.path
	for { // the nearest that exists
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if errors.Is(err, unix.ENOENT) && path != filepath.Dir(path) {
			path = filepath.Dir(path)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("archives: free space of %s: %w", path, err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}
}

type file struct{ f *os.File }

func (s file) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, off) }
func (s file) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, off) }
func (s file) Truncate(size int64) error                { return s.f.Truncate(size) }
func (s file) Close() error                             { return s.f.Close() }

// Sync uses fdatasync: a changed length is part of what is needed to read the data.
func (s file) Sync() error { return blockdev.SyncData(s.f) }

func (s file) Size() (int64, error) {
	info, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
