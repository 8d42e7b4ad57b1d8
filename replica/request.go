package replica

import (
	"errors"
	"fmt"
)

// Op is what a request does.
type Op uint8

// The operations.
const (
	Read Op = iota
	Write
	Zero
	Trim
	Flush
)

// String returns the operation's name.
func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Zero:
		return "zero"
	case Trim:
		return "trim"
	case Flush:
		return "flush"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Errors that requests complete with.
var (
	ErrNotPrimary = errors.New("the volume is not primary on this node")
	ErrDiskFailed = errors.New("the local disk of the volume has failed")
	ErrStopping   = errors.New("the volume is stopping")
)

// Request is one operation on the primary. The owner allocates it, fills the
// exported fields, and may reuse it after DoComplete.
type Request struct {
	Op       Op
	FUA      bool
	NoHole   bool
	Off, Len int64
	Tag      any // the owner's

	seq     uint64
	local   bool   // the local part is not done
	pending uint16 // peers whose answer is missing, by PeerID
	needGen bool   // completes only under a generation that a lost peer has not
	all     bool   // Flush: every peer confirms it, whatever its protocol
	covers  uint64 // Flush: highest sequence that the local flush makes durable; Read: that it may have seen
	span    int    // index in Machine.spans, or -1
	err     error
}

// Seq returns the request's sequence; zero before it was issued.
func (r *Request) Seq() uint64 { return r.seq }

// internalTag marks the machine's own requests; the owner answers nobody.
var internalTag = new(int)

// Internal reports whether a request is the machine's own: the owner executes its
// DoLocal like any other and calls Finished in place of answering a client.
func (r *Request) Internal() bool { return r.Tag == any(internalTag) }
