package meta

import (
	"errors"
	"io"

	"github.com/qrbd/qrbd/bitmap"
)

// Errors of this package; test with errors.Is. The texts say what to do.
var (
	// ErrExists: the file is there already; nothing was changed.
	ErrExists = errors.New("metadata exists already")
	// ErrBusy: another agent has the file open.
	ErrBusy = errors.New("metadata file is in use by another process")
	// ErrNotMeta: the file is something else.
	ErrNotMeta = errors.New("is not a qrbd metadata file")
	// ErrVersion: written by a newer qrbd.
	ErrVersion = errors.New("metadata is of a newer version")
	// ErrDamaged: what cannot be reconstructed is damaged.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrMismatch: the metadata belongs to another volume, node or size.
	ErrMismatch = errors.New("metadata does not match the configuration")
	// ErrInvalid: a Super or Batch that cannot be stored. Nothing was written.
	ErrInvalid = errors.New("invalid metadata")
	// ErrFailed: an earlier write or sync failed. It is sticky.
	ErrFailed = errors.New("the metadata file has failed")
)

// Storage is the file that metadata lives in. It is used by one goroutine at a
// time.
type Storage interface {
	// ReadAt is io.ReaderAt's.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt is io.WriterAt's. It is durable after the next Sync.
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes every write before it durable. After an error nothing is known
	// of the writes since the last Sync.
	Sync() error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Close gives the file and its lock up.
	Close() error
}

// Batch is what one Commit writes.
type Batch struct {
	Super    *Super // nil: unchanged
	Activity []bitmap.ActivityPage
	Bitmap   []BitmapPage
}

// BitmapPage is one page of a peer's bitmap.
type BitmapPage struct {
	Slot int    // index in Super.Peers
	Page int64  // as bitmap.Set numbers them
	Data []byte // bitmap.PageBytes, from Set.AppendPage
}

// State is what a metadata file says.
type State struct {
	Super    Super
	Activity *bitmap.Activity
	Bitmaps  []*bitmap.Set // one per Super.Peers
	// Damaged names, for the log, the pages whose newest content is lost: such a
	// bitmap page counts as all set, such an activity page as all active.
	Damaged []string
}

// File is an open metadata file. It is not safe for concurrent use.
type File struct{}

// OpenStorage opens a metadata file and locks it: ErrBusy when another process
// (or another OpenStorage) has it.
func OpenStorage(path string) (Storage, error) { panic("meta: not built yet") }

// Create makes a new metadata file, mode 0600, durably and atomically: it is
// there whole or not at all. Without force an existing file is ErrExists; with
// force it is replaced, unless an agent has it open (ErrBusy).
func Create(path string, s Super, force bool) error { panic("meta: not built yet") }

// Open recovers the state and returns the file ready for Commit. It owns st when
// it succeeds.
func Open(st Storage) (*File, *State, error) { panic("meta: not built yet") }

// Recover reads the state out of the first size bytes of img, changing nothing.
func Recover(img io.ReaderAt, size int64) (*State, error) { panic("meta: not built yet") }

// Commit writes everything in b, then syncs once. Durable on return. It is not
// atomic: after a crash inside Commit any subset of its pages is there, each
// whole; what must not be there without something else goes into a later Commit.
// After an error the file has failed: this and every later Commit returns
// ErrFailed (ErrInvalid excepted: nothing was written then). The caller
// serialises Commits; b is the caller's again on return.
func (f *File) Commit(b *Batch) error { panic("meta: not built yet") }

// Close syncs and closes the file. A file that has failed is only closed.
func (f *File) Close() error { panic("meta: not built yet") }
