package blockdev

import (
	"errors"
	"fmt"
)

// SectorSize is the unit, in bytes, that a store writes whole or not at all
// when the power is cut. Larger writes may be torn between sectors.
const SectorSize = 512

// BlockSize is the unit, in bytes, of dirty tracking and of the stores'
// preferred alignment.
const BlockSize = 4096

// Op is what a Request asks for.
type Op uint8

// The operations of a Device.
const (
	OpRead Op = iota
	OpWrite
	OpZero
	OpTrim
	OpFlush
)

// String returns the operation's name, as used in logs and fault scripts.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpZero:
		return "zero"
	case OpTrim:
		return "trim"
	case OpFlush:
		return "flush"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Flags modify a write, zero or trim.
type Flags uint8

const (
	// FUA: the operation is on stable storage before it succeeds.
	FUA Flags = 1 << iota
	// NoHole (OpZero): the range stays allocated, so that a later write to it
	// cannot fail for lack of space.
	NoHole
	// FastZero (OpZero): fail with ErrNotFast, changing nothing, unless zeroing
	// is faster than writing zeroes.
	FastZero
)

// Errors of a Device. Stores wrap the system's errors; test with errors.Is.
var (
	// ErrRange: the range is not inside the device. Nothing was changed.
	ErrRange = errors.New("range beyond the end of the device")
	// ErrNotFast: FastZero was asked for and cannot be had. Nothing was changed.
	ErrNotFast = errors.New("zeroing would not be faster than writing")
	// ErrNoSpace: the store is full. The range may be partly written.
	ErrNoSpace = errors.New("no space left on the backing store")
	// ErrFailed: an earlier flush or write error made the store unusable. It is
	// sticky: what the cache held at the time is unknown, so no later flush
	// may succeed (a retried fsync reports success for pages it has dropped).
	ErrFailed = errors.New("the backing store has failed")
	// ErrClosed: the device was closed.
	ErrClosed = errors.New("the device is closed")
	// ErrReadOnly: the device takes no writes.
	ErrReadOnly = errors.New("the device is read-only")
	// ErrShutdown: the device is being taken out of service; the request was
	// not executed.
	ErrShutdown = errors.New("the device is shutting down")
)

// Extent is a half-open byte range [Off, Off+Len) of one kind.
type Extent struct {
	Off, Len int64
	// Hole: the range is not allocated in the store.
	Hole bool
	// Zero: the range reads as zeroes. A hole of a store in this package always
	// reads as zeroes.
	Zero bool
}

// End returns the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Device is a disk of fixed size with a volatile write cache. All methods may
// be called concurrently; overlapping concurrent writes leave each sector whole
// but in no defined order. A method blocks until the operation is done. Ranges
// are bytes, need not be aligned, and are checked before anything changes
// (ErrRange). A range of zero length succeeds and does nothing.
//
// Durable: nothing is on stable storage until Flush or an operation with FUA
// has returned nil after it.
type Device interface {
	// Size returns the device's size in bytes. It never changes.
	Size() int64

	// ReadAt fills p from off. It reads all of p or returns an error. p is the
	// caller's again on return.
	ReadAt(p []byte, off int64) error

	// WriteAt writes p at off. p is not modified and is the caller's again on
	// return. After an error any part of the range may have been written.
	WriteAt(p []byte, off int64, flags Flags) error

	// Zero makes the range read as zeroes. Without NoHole it may deallocate.
	Zero(off, n int64, flags Flags) error

	// Trim says that the content of the range is no longer needed. In qrbd it
	// always reads as zeroes afterwards, whole range, edges too: replicas must
	// stay equal.
	Trim(off, n int64, flags Flags) error

	// Flush makes every operation that completed before the call durable. After
	// an error the device is failed (ErrFailed from then on).
	Flush() error

	// Extents describes [off, off+n) in ascending order without gaps, at most
	// limit extents (limit >= 1), possibly less than the whole range but always
	// at least one extent when n > 0, none when n is 0. Adjacent extents differ.
	// What changes meanwhile is described as before or as after. A store that
	// cannot tell returns one data extent.
	Extents(off, n int64, limit int) ([]Extent, error)

	// Close releases the store without flushing it. Operations in flight end;
	// later ones, a second Close among them, get ErrClosed. Size still answers.
	Close() error
}

// CheckRange returns ErrRange, with the values, unless [off, off+n) lies inside
// a device of size bytes. It does not overflow.
func CheckRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, ErrRange)
	}
	return nil
}

// Request is one operation handed to a Submitter. The submitter of a request
// fills the exported fields and must not touch it until Done is called.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64
	Len   int64
	// Buf holds Len bytes: the payload of OpWrite (not modified), the
	// destination of OpRead. nil for the rest. The caller holds one reference
	// for the duration; a device that needs the bytes after Done retains it.
	Buf *Buffer
	// Done is called exactly once, from any goroutine, possibly before Submit
	// returns. It must not block on the device.
	Done func(r *Request, err error)
	// Tag is the caller's, untouched by the device.
	Tag any
}

// Submitter is a disk that completes requests without a goroutine for each:
// what a frontend such as the NBD export speaks to. Many requests may be in
// flight and complete in any order. The durability rules are Device's.
type Submitter interface {
	// Size returns the size in bytes.
	Size() int64
	// Submit starts r. It does not wait for the request to complete, but may
	// execute a fast operation before it returns and may hold the caller back
	// for a bounded time when too much is in flight (back-pressure).
	Submit(r *Request)
	// Extents is Device.Extents; it blocks.
	Extents(off, n int64, limit int) ([]Extent, error)
}
