package quicnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// TLS alerts (RFC 8446 section 6) as QUIC error codes: 0x100 + alert.
const (
	alertBadCertificate      = 0x100 + 42
	alertUnrecognizedName    = 0x100 + 112 // of an accepting side that has no certificate
	alertCertificateRequired = 0x100 + 116
	alertNoProtocol          = 0x100 + 120
)

// ours turns an error of quic-go into package session's.
func ours(err error) error {
	var app *quic.ApplicationError
	var idle *quic.IdleTimeoutError
	var reset *quic.StatelessResetError
	var aborted *quic.StreamError
	var transport *quic.TransportError
	var version *quic.VersionNegotiationError
	var handshake *quic.HandshakeTimeoutError
	switch {
	case errors.As(err, &app) && app.Remote:
		return &session.CloseError{Code: protocol.Code(min(app.ErrorCode, 0xffff)), Text: protocol.CleanText(app.ErrorMessage)}
	case errors.As(err, &app):
		return session.ErrClosed
	case errors.As(err, &aborted), errors.Is(err, quic.ErrStreamClosed):
		return session.ErrAborted
	case errors.As(err, &idle):
		return session.ErrSilent
	case errors.As(err, &reset):
		return session.ErrRestarted
	case errors.As(err, &transport):
		reason, why := classify(transport)
		return &session.Failure{Reason: reason, Err: why}
	case errors.As(err, &version):
		return &session.Failure{Reason: session.VersionDiffers, Err: err}
	case errors.As(err, &handshake):
		return &session.Failure{Reason: session.Unreachable, Err: errors.New("no answer")}
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: %w", session.ErrLost, err)
}

func classify(err *quic.TransportError) (session.Reason, error) {
	var failure *session.Failure
	if errors.As(err, &failure) { // of VerifyConnection
		return failure.Reason, failure.Err
	}
	switch {
	case err.ErrorCode == alertCertificateRequired && err.Remote:
		return session.NoCertificate, errors.New("it demands a certificate of this node")
	case err.ErrorCode == alertCertificateRequired, err.ErrorCode == alertUnrecognizedName && err.Remote:
		return session.NoCertificate, errors.New("it presents no certificate")
	case err.ErrorCode == alertBadCertificate && err.Remote:
		return session.KeyRefused, errors.New("it does not accept this node's key: does its configuration have it?")
	case err.ErrorCode == alertNoProtocol:
		return session.VersionDiffers, fmt.Errorf("no common way to open a session, this node has %s", session.ALPN)
	case err.ErrorCode == quic.ConnectionRefused:
		return session.Refused, errors.New("it takes no more connections now")
	case err.ErrorCode == quic.ApplicationErrorErrorCode && err.Remote: // which says why only after the handshake
		return session.Refused, errors.New("it ended the connection early: it is stopping, or too many are being made to it")
	case err.ErrorCode.IsCryptoError():
		return session.Violation, fmt.Errorf("TLS: %w", err)
	}
	return session.Violation, err
}
