package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/qrbd/qrbd/protocol"
)

// Reason is why there is no session with a peer.
type Reason uint8

// Reasons.
const (
	Unreachable      Reason = iota + 1 // no answer, or no such address
	WrongKey                           // the other side's key is not the configured one
	KeyRefused                         // the other side does not know this node's key
	NoCertificate                      // one side presented no certificate
	Expired                            // one side's certificate has expired
	VersionDiffers                     // no common protocol version
	NameDiffers                        // one side has another name than configured
	Refused                            // the other side gave another reason, in words
	Violation                          // the other side broke the protocol
	TransportDiffers                   // the two sides have different transports configured
)

var reasonTexts = [...]string{"?", "unreachable", "wrong key", "this node's key refused", "no client certificate",
	"certificate expired", "version mismatch", "name mismatch", "refused", "protocol violated",
	"transports differ"}

// String returns the words shown to people.
func (r Reason) String() string {
	if int(r) < len(reasonTexts) {
		return reasonTexts[r]
	}
	return fmt.Sprintf("invalid(%d)", uint8(r))
}

// ConnectError is a connection that did not become a session.
type ConnectError struct {
	Reason Reason
	Peer   string // configured name; "" when the other side did not prove a configured key
	Addr   string // the other side's address
	Dialed bool   // this node opened the connection
	Err    error
}

// Error names peer, address, reason and detail.
func (e *ConnectError) Error() string {
	who := e.Peer
	if who == "" {
		who = "unknown node"
	}
	return fmt.Sprintf("%s at %s: %v: %v", who, e.Addr, e.Reason, e.Err)
}

// Unwrap returns the detail.
func (e *ConnectError) Unwrap() error { return e.Err }

// Errors of sessions and streams, and causes of a session's end that are given
// to SessionDown; test with errors.Is.
var (
	// ErrSilent: nothing was heard from the peer for Options.PeerTimeout.
	ErrSilent = errors.New("peer is silent")
	// ErrRestarted: the peer no longer knows the session.
	ErrRestarted = errors.New("peer has restarted")
	// ErrLost: the connection ended without a word. The peer's process has died, or
	// something between has cut it.
	ErrLost = errors.New("connection lost")
	// ErrReplaced: a newer connection of the same peer took over.
	ErrReplaced = errors.New("session replaced by another connection")
	// ErrClosed: this side closed the session or the node.
	ErrClosed = errors.New("session closed")
	// ErrBusy: the peer takes no bytes now.
	ErrBusy = errors.New("peer is busy")
	// ErrAborted: one side aborted the stream.
	ErrAborted = errors.New("stream aborted")
)

// CloseError is a session that the peer ended, with its reason.
type CloseError struct {
	Code protocol.Code
	Text string
}

// Error returns the peer's reason.
func (e *CloseError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("peer closed the session: %v", e.Code)
	}
	return fmt.Sprintf("peer closed the session: %s", e.Text)
}

// refusal is why this side ends a connection that is being established: what it
// sends and what it reports.
type refusal struct {
	code   protocol.Code
	reason Reason
	text   string // for both sides' people
}

func (r *refusal) Error() string { return r.text }

// Failure is why a connection did not come about, as its transport found out.
type Failure struct {
	Reason Reason
	Err    error // in words
}

// Error returns the words.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// classify says why an attempt failed with err.
func classify(err error) (Reason, error) {
	var own *refusal
	var failure *Failure
	var closed *CloseError
	switch {
	case errors.As(err, &own):
		return own.reason, own
	case errors.As(err, &failure):
		return failure.Reason, failure.Err
	case errors.As(err, &closed):
		return closed.reason(), closed
	case errors.Is(err, ErrClosed):
		return Unreachable, errors.New("no answer in time") // this side's own refuse
	case errors.Is(err, ErrSilent):
		return Unreachable, errors.New("no answer")
	case isViolation(err):
		return Violation, err
	case errors.Is(err, ErrAborted), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Violation, fmt.Errorf("control stream ended: %w", err)
	}
	return Unreachable, plainNetError(err)
}

// reason says what the peer's code means for an attempt to connect.
func (e *CloseError) reason() Reason {
	switch e.Code {
	case protocol.CodeVersion:
		return VersionDiffers
	case protocol.CodeName:
		return NameDiffers
	case protocol.CodeCertificate:
		return Expired
	case protocol.CodeTransport:
		return TransportDiffers
	case protocol.CodeProtocol, protocol.CodeCorrupt:
		return Violation
	}
	return Refused
}

// plainNetError drops what does not help a person.
func plainNetError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("no answer")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
