package meta

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
)

// Storage is the file that metadata lives in. It is used by one goroutine at a
// time. A Storage that is also Sparse is read faster; one with a method
// Name() string is called by that name in errors. A wrapper passes both on.
type Storage interface {
	// ReadAt is io.ReaderAt's.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt is io.WriterAt's. It is durable after the next Sync.
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes every write before it durable. After an error nothing is known
	// of the writes since the last Sync that succeeded.
	Sync() error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Close gives the file and its lock up.
	Close() error
}

// fileStorage is a Storage on a locked file. It is Sparse.
type fileStorage struct{ f *os.File }

// OpenStorage opens a metadata file and locks it: ErrBusy when another process
// (or another OpenStorage) has it. fs.ErrNotExist when it is not there.
func OpenStorage(path string) (Storage, error) {
	f, err := openLocked(path)
	if err != nil {
		return nil, err
	}
	return &fileStorage{f: f}, nil
}

// openLocked opens and locks the file that path names at the time of return.
func openLocked(path string) (*os.File, error) {
	const tries = 10 // only a file that is replaced again and again needs more than two
	for range tries {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("metadata: %w", err)
		}
		same, err := lock(f, path)
		if err == nil && same {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("metadata: %s is being replaced all the time: %w", path, ErrBusy)
}

// lock locks f and reports whether path still names it.
func lock(f *os.File, path string) (same bool, err error) {
	mine, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("metadata: %w", err)
	}
	if !mine.Mode().IsRegular() {
		return false, fmt.Errorf("%s %w: it is no regular file", path, ErrNotMeta)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("%w: %s; is an agent running with it?", ErrBusy, path)
		}
		return false, fmt.Errorf("metadata: locking %s: %w", path, err)
	}
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("metadata: %w", err)
	}
	return os.SameFile(mine, now), nil
}

func (s *fileStorage) Name() string                             { return s.f.Name() }
func (s *fileStorage) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, off) }
func (s *fileStorage) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, off) }
func (s *fileStorage) Close() error                             { return s.f.Close() }

// Sync uses fdatasync: the file's length is fixed when it is created, and what is
// needed to find new blocks again is part of the data.
func (s *fileStorage) Sync() error { return blockdev.SyncData(s.f) }

func (s *fileStorage) Size() (int64, error) {
	info, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// NextData implements Sparse. A file system without holes is all data.
func (s *fileStorage) NextData(off int64) (from, to int64, err error) {
	size, err := s.Size()
	if err != nil {
		return 0, 0, err
	}
	if off >= size {
		return 0, 0, io.EOF
	}
	from, err = unix.Seek(int(s.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case err != nil:
		return off, size, nil
	}
	to, err = unix.Seek(int(s.f.Fd()), from, unix.SEEK_HOLE)
	if err != nil {
		return from, size, nil
	}
	return from, to, nil
}

// Create makes a new metadata file, mode 0600, durably and atomically: it is
// there whole or not at all. Without force an existing file is ErrExists; with
// force it is replaced, unless an agent has it open (ErrBusy).
func Create(path string, s Super, force bool) error {
	if err := s.validate(); err != nil {
		return err
	}
	path = filepath.Clean(path)
	var id [8]byte
	rand.Read(id[:]) // never fails
	if force {
		old, err := openLocked(path)
		switch {
		case err == nil:
			defer old.Close() // holds the lock until the new file is in place
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotMeta):
		default:
			return err
		}
	} else if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%w: %s; --force replaces it", ErrExists, path)
	}
	return place(path, &s, binary.LittleEndian.Uint64(id[:]), force)
}

// place writes the file under another name and puts it in place.
func place(path string, s *Super, id uint64, force bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.new") // mode 0600
	if err != nil {
		return fmt.Errorf("creating metadata: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("creating metadata %s: %w", path, err)
		}
	}()
	if err := fill(f, s, id); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if force {
		err = os.Rename(f.Name(), path)
	} else if err = os.Link(f.Name(), path); err == nil { // unlike rename, link never replaces
		err = os.Remove(f.Name())
	} else if errors.Is(err, fs.ErrExist) {
		err = ErrExists
	}
	if err != nil {
		return err
	}
	return blockdev.SyncDir(dir)
}

// fill writes what a new file holds: both copies of the superblock. The space of
// the activity pages is taken now, if the file system can, so that a full disk
// does not stop writes to the volume.
func fill(f *os.File, s *Super, id uint64) error {
	lay := newLayout(s.Size)
	if err := f.Truncate(lay.bytes()); err != nil {
		return err
	}
	for i := range lay.activity {
		off := lay.pair(pageID{kind: kindActivity, index: i}) * pairSize
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, pairSize)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("taking space: %w", err)
		}
	}
	_, err := f.WriteAt(newSuperPair(s, id), 0)
	return err
}

// Format returns how a new file starts and how long it is; the rest is zeroes.
// id is a random number that no other file has. It is for storages other than
// files; Create does it for those.
func Format(s *Super, id uint64) (start []byte, size int64, err error) {
	if err := s.validate(); err != nil {
		return nil, 0, err
	}
	return newSuperPair(s, id), newLayout(s.Size).bytes(), nil
}

func newSuperPair(s *Super, id uint64) []byte {
	pair := make([]byte, pairSize)
	for i := range 2 {
		p := pair[i*pageSize : (i+1)*pageSize]
		s.encode(p)
		seal(p, pageID{kind: kindSuper}, id, 1, i == 1)
	}
	return pair
}
