package fusefile

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// FileName is the file's name in the mount.
const FileName = "disk"

const (
	requestMax    = 1 << 20  // bytes of a read or write: the most that FUSE carries
	backgroundMax = 64       // asynchronous requests; a loop device has 128 slots
	inflightMax   = 96 << 20 // bytes of requests under way
	blockSize     = 4096     // granularity of a loop device's discard
)

// Disk is what is shown. Its methods are called concurrently and block until the
// operation is done; an error reaches the file's user as its syscall.Errno, else as EIO.
type Disk interface {
	Size() int64 // bytes; may grow
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Trim(off, n int64) error // reads as zeroes afterwards
	Zero(off, n int64, noHole bool) error
	Flush() error
}

// Server is a mounted file.
type Server struct {
	dir  string
	fuse *fuse.Server
}

// Mount mounts the file system on dir, which must exist, and serves it. name is shown
// as the source in lists of mounts. It takes root.
func Mount(dir, name string, d Disk) (*Server, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return nil, fmt.Errorf("mounting the disk of %s: %q is no place for it", name, dir)
	}
	files := &files{RawFileSystem: fuse.NewDefaultRawFileSystem(), disk: d}
	srv, err := fuse.NewServer(files, dir, &fuse.MountOptions{
		FsName:                  name,
		Name:                    "qrbd",
		DirectMountStrict:       true, // no fusermount needed
		MaxWrite:                requestMax,
		MaxBackground:           backgroundMax,
		MaxInflightRequestBytes: inflightMax,
		DisableXAttrs:           true,
		DisableReadDirPlus:      true,
		// Data pass through buffers of this process either way; without pipes there is
		// one thing less that can be exhausted.
		DisableSplice: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mounting the disk of %s on %s: %w", name, dir, err)
	}
	s := &Server{dir: dir, fuse: srv}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("mounting the disk of %s on %s: %w", name, dir, err)
	}
	if _, err := os.Stat(s.Path()); err != nil {
		return nil, fmt.Errorf("the mounted disk of %s: %w", name, err)
	}
	return s, nil
}

// Path returns the file's path.
func (s *Server) Path() string { return filepath.Join(s.dir, FileName) }

// Wait returns when somebody has unmounted the file system and the last request is
// answered.
func (s *Server) Wait() { s.fuse.Wait() }

// Unmount unmounts it. It fails while the file is open.
func (s *Server) Unmount() error { return s.fuse.Unmount() }
