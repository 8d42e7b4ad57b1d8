package quicnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// Reason is why there is no session with a peer.
type Reason uint8

// Reasons.
const (
	Unreachable    Reason = iota + 1 // no answer, or no such address
	WrongKey                         // the other side's key is not the configured one
	KeyRefused                       // the other side does not know this node's key
	NoCertificate                    // one side presented no certificate
	Expired                          // one side's certificate has expired
	VersionDiffers                   // no common protocol version
	NameDiffers                      // one side has another name than configured
	Refused                          // the other side gave another reason, in words
	Violation                        // the other side broke the protocol
)

var reasonTexts = [...]string{"?", "unreachable", "wrong key", "this node's key refused", "no client certificate",
	"certificate expired", "version mismatch", "name mismatch", "refused", "protocol violated"}

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

// sessionCause turns the error of an ended connection into ours.
func sessionCause(err error) error {
	var app *quic.ApplicationError
	var idle *quic.IdleTimeoutError
	var reset *quic.StatelessResetError
	switch {
	case errors.As(err, &app) && app.Remote:
		return &CloseError{Code: protocol.Code(min(app.ErrorCode, 0xffff)), Text: protocol.CleanText(app.ErrorMessage)}
	case errors.As(err, &app):
		return ErrClosed
	case errors.As(err, &idle):
		return ErrSilent
	case errors.As(err, &reset):
		return ErrRestarted
	}
	return fmt.Errorf("connection lost: %w", err)
}

// classify says why an attempt failed with err.
func classify(err error) (Reason, error) {
	var own *refusal
	if errors.As(err, &own) {
		return own.reason, own
	}
	var app *quic.ApplicationError
	if errors.As(err, &app) && !app.Remote {
		return Unreachable, errors.New("no answer in time") // this side's own refuse
	}
	if errors.As(err, &app) {
		closed := &CloseError{Code: protocol.Code(min(app.ErrorCode, 0xffff)), Text: protocol.CleanText(app.ErrorMessage)}
		switch closed.Code {
		case protocol.CodeVersion:
			return VersionDiffers, closed
		case protocol.CodeName:
			return NameDiffers, closed
		case protocol.CodeCertificate:
			return Expired, closed
		case protocol.CodeProtocol, protocol.CodeCorrupt:
			return Violation, closed
		}
		return Refused, closed
	}
	var transport *quic.TransportError
	if errors.As(err, &transport) {
		return classifyTransport(transport)
	}
	var version *quic.VersionNegotiationError
	var aborted *quic.StreamError
	switch {
	case errors.As(err, &version):
		return VersionDiffers, err
	case isViolation(err):
		return Violation, err
	case errors.As(err, &aborted), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Violation, fmt.Errorf("control stream ended: %w", err)
	}
	return Unreachable, plainNetError(err)
}

// TLS alerts (RFC 8446 section 6) as QUIC error codes: 0x100 + alert.
const (
	alertBadCertificate      = 0x100 + 42
	alertCertificateRequired = 0x100 + 116
	alertNoProtocol          = 0x100 + 120
)

func classifyTransport(err *quic.TransportError) (Reason, error) {
	var key *errKey
	if errors.As(err, &key) {
		return WrongKey, key
	}
	switch {
	case err.ErrorCode == alertCertificateRequired && err.Remote:
		return NoCertificate, errors.New("it demands a certificate of this node")
	case err.ErrorCode == alertCertificateRequired:
		return NoCertificate, errors.New("it presents no certificate")
	case err.ErrorCode == alertBadCertificate && err.Remote:
		return KeyRefused, errors.New("it does not accept this node's key: does its configuration have it?")
	case err.ErrorCode == alertNoProtocol:
		return VersionDiffers, fmt.Errorf("no common way to open a session, this node has %s", alpn)
	case err.ErrorCode == quic.ConnectionRefused:
		return Refused, errors.New("it takes no more connections now")
	case err.ErrorCode.IsCryptoError():
		return Violation, fmt.Errorf("TLS: %w", err)
	}
	return Violation, err
}

// plainNetError drops what does not help a person.
func plainNetError(err error) error {
	var handshake *quic.HandshakeTimeoutError
	var idle *quic.IdleTimeoutError
	switch {
	case errors.As(err, &handshake), errors.As(err, &idle), errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return fmt.Errorf("TLS: %w", alert)
	}
	return err
}
