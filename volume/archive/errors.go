package archive

import (
	"errors"
	"fmt"
)

// Errors of this package; test with errors.Is.
var (
	// ErrNotArchive: the file is something else.
	ErrNotArchive = errors.New("is not a qrbd archive")
	// ErrVersion: written by a newer qrbd.
	ErrVersion = errors.New("archive is of a newer version")
	// ErrDamaged: what was on stable storage does not read back.
	ErrDamaged = errors.New("archive is damaged")
	// ErrFailed: an earlier write or sync failed; the archive takes nothing more
	// until it is opened anew.
	ErrFailed = errors.New("the archive has failed")
	// ErrLimit: the archive has followed the volume for as many bytes as it may.
	ErrLimit = errors.New("archive_limit is reached")
	// ErrUnknown: there is no archive of that id.
	ErrUnknown = errors.New("no such archive")
	// ErrMissing: a sync is to go on whose archive is not there.
	ErrMissing = errors.New("the archive of what is being overwritten is missing")
	// ErrInUse: the archive is live or exported.
	ErrInUse = errors.New("archive is in use")
)

// UnsealedError: an archive has ended, and its disk does not take that.
type UnsealedError struct {
	ID   uint64 // of the file
	Name string
	Err  error
}

func (e *UnsealedError) Error() string { return fmt.Sprintf("sealing archive %s: %v", e.Name, e.Err) }

func (e *UnsealedError) Unwrap() error { return e.Err }

// RoomError: what would have to be archived does not fit.
type RoomError struct {
	Path       string // of the directory
	Need, Free int64  // bytes; Need includes what has to stay free
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("%s needs %s free and has %s", e.Path, bytesText(e.Need), bytesText(e.Free))
}

func bytesText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
