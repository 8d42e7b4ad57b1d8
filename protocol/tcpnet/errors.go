package tcpnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol/session"
)

// TLS alerts (RFC 8446 section 6).
const (
	alertBadCertificate      = 42
	alertUnrecognizedName    = 112 // of an accepting side that has no certificate
	alertCertificateRequired = 116
	alertNoProtocol          = 120
)

// failure returns why TLS failed, nil when it did not. certified: this side presented a
// certificate.
func failure(err error, certified bool) error {
	var known *session.Failure
	if errors.As(err, &known) { // of VerifyConnection
		return known
	}
	var header tls.RecordHeaderError
	if errors.As(err, &header) {
		return &session.Failure{Reason: session.Violation, Err: errors.New("it does not speak TLS")}
	}
	alert, ok := remoteAlert(err)
	if !ok {
		return nil
	}
	switch {
	case alert == alertCertificateRequired, alert == alertBadCertificate && !certified:
		return &session.Failure{Reason: session.NoCertificate, Err: errors.New("it demands a certificate of this node")}
	case alert == alertBadCertificate:
		return &session.Failure{Reason: session.KeyRefused, Err: errors.New("it does not accept this node's key: does its configuration have it?")}
	case alert == alertUnrecognizedName:
		return &session.Failure{Reason: session.NoCertificate, Err: errors.New("it presents no certificate")}
	case alert == alertNoProtocol:
		return &session.Failure{Reason: session.VersionDiffers, Err: fmt.Errorf("no common way to open a session, this node has %s", session.ALPN)}
	}
	return &session.Failure{Reason: session.Violation, Err: fmt.Errorf("TLS: %w", err)}
}

// handshakeFailed is the error of a TLS handshake.
func handshakeFailed(ctx context.Context, err error, certified bool) error {
	if f := failure(err, certified); f != nil {
		return f
	}
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return &session.Failure{Reason: session.Unreachable, Err: errors.New("no answer in time")}
	}
	if isGone(err) || errors.Is(err, net.ErrClosed) {
		return &session.Failure{Reason: session.Unreachable, Err: errors.New("it closed the connection during the TLS handshake")}
	}
	return &session.Failure{Reason: session.Violation, Err: fmt.Errorf("TLS: %w", err)}
}

// unreachable adds to a refused connection what may be the cause.
func unreachable(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		return &session.Failure{Reason: session.Unreachable,
			Err: errors.New("connection refused on TCP: its agent is not running there, or has not transport = \"tcp\" in its [[peer]] section for this node")}
	}
	return err
}

// remoteAlert returns the alert that the other side sent. crypto/tls has a type for it that
// it does not export; its value is the alert's number.
func remoteAlert(err error) (uint8, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return uint8(v.Uint()), true
}

// isGone: the other side's kernel or process ended the connection without a word.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) ||
		errors.Is(err, unix.EPIPE)
}
