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
	Pull // internal: a carrier's bytes (FarRead) are written to the local store
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
	case Pull:
		return "pull"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Errors that requests complete with.
var (
	ErrNotPrimary = errors.New("the volume is not primary on this node")
	ErrDiskFailed = errors.New("the local disk of the volume has failed")
	ErrNoData     = errors.New("no copy of the volume's data can be reached")
	ErrStopping   = errors.New("the volume is stopping")
	ErrNoQuorum   = errors.New("too few nodes of the volume can be reached")
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
	inWait  bool   // is in Machine.genWait
	all     bool   // every peer confirms it as applied (Flush, FUA: durable), whatever its protocol
	covers  uint64 // Flush: highest sequence that the local flush makes durable; Read: that it may have seen
	copies  uint16 // peers that were sent it and are still with us
	without uint16 // peers that were lost with it, and at its generation
	span    int    // index in Machine.spans, or -1
	at      Time   // when it was issued
	late    bool   // the local part was given up: what comes of it does not count

	pieces int    // of a read from a peer: without an answer
	bad    bool   // one was answered with an error
	tried  uint16 // peers that could not read it
	reign  uint64 // Read: Machine.reign when it was issued
	err    error
}

// Seq returns the request's sequence; zero before it was issued.
func (r *Request) Seq() uint64 { return r.seq }

// Issued returns when the request was last handed to the local store or the peers.
func (r *Request) Issued() Time { return r.at }

// internalTag marks the machine's own requests; the owner answers nobody.
var internalTag = new(int)

// Internal reports whether a request is the machine's own: the owner executes its
// DoLocal like any other and calls Finished in place of answering a client.
func (r *Request) Internal() bool { return r.Tag == any(internalTag) }

// Late reports whether the local part of the request was given up although it is
// still with the store: the owner must not use the request again, nor its buffer
// for anything else, until the store has returned and LocalDone was called.
func (r *Request) Late() bool { return r.late }
