package meta

import "errors"

// Errors of this package; test with errors.Is. The texts around them say what to
// do.
var (
	// ErrExists: the file is there already; nothing was changed.
	ErrExists = errors.New("metadata exists already")
	// ErrBusy: another process has the file open.
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
