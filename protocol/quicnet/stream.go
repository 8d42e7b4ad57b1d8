package quicnet

import (
	"errors"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// stream is a session.Carrier. A Write returns when its bytes are in packets, all but
// the last few.
type stream struct{ q *quic.Stream }

// Read implements session.Carrier.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.q.Read(p)
	if err != nil {
		err = ours(err)
	}
	return n, err
}

// Write implements session.Carrier.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.q.Write(p)
	if err != nil {
		err = ours(err)
	}
	return n, err
}

// TryWrite implements session.Carrier.
func (s *stream) TryWrite(p []byte) (ok bool, err error) {
	switch err := s.q.TryWriteAll(p); {
	case err == nil:
		return true, nil
	case errors.Is(err, quic.ErrWouldBlock):
		return false, nil
	default:
		return false, ours(err)
	}
}

// SetReadDeadline implements session.Carrier.
func (s *stream) SetReadDeadline(t time.Time) error { return s.q.SetReadDeadline(t) }

// SetWriteDeadline implements session.Carrier.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.q.SetWriteDeadline(t) }

// SetKind implements session.Carrier.
func (s *stream) SetKind(kind protocol.StreamKind) {
	switch kind {
	case protocol.StreamWrite:
		s.q.SetPriority(urgencyWrite, true)
	case protocol.StreamBulk:
		s.q.SetPriority(urgencyBulk, true)
	}
}

// SetShare implements session.Carrier.
func (s *stream) SetShare(on bool) {
	if on {
		s.q.SetPriority(urgencyWrite, true)
	} else {
		s.q.SetPriority(urgencyBulk, true)
	}
}

// Close implements session.Carrier.
func (s *stream) Close() error {
	if err := s.q.Close(); err != nil {
		return ours(err)
	}
	return nil
}

// Abort implements session.Carrier.
func (s *stream) Abort(code protocol.Code) {
	s.q.CancelRead(quic.StreamErrorCode(code))
	s.q.CancelWrite(quic.StreamErrorCode(code))
}
