package quicnet

import (
	"errors"
	"io"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// Stream is one stream of a volume, after its StreamOpen. Read and Write may
// run concurrently with each other. A Write returns when its bytes are in
// packets, all but the last few: it does not wait for the peer, and it waits
// for flow control and congestion.
type Stream struct {
	session *Session
	q       *quic.Stream
	kind    protocol.StreamKind
}

// Kind returns what the stream is for.
func (st *Stream) Kind() protocol.StreamKind { return st.kind }

// Read reads some bytes. Errors: io.EOF after the peer's Close, ErrAborted, or
// the session's cause.
func (st *Stream) Read(p []byte) (int, error) {
	n, err := st.q.Read(p)
	if n > 0 {
		st.session.noteHeard()
	}
	if err != nil {
		err = st.session.ioError(err)
	}
	return n, err
}

// Write writes all of p or returns an error. p is the caller's again on return.
func (st *Stream) Write(p []byte) (int, error) {
	n, err := st.q.Write(p)
	if err != nil {
		err = st.session.ioError(err)
	}
	return n, err
}

// TryWrite takes all of p, or nothing when that would mean waiting for flow
// control or for another writer. p is the caller's again on return.
func (st *Stream) TryWrite(p []byte) (ok bool, err error) {
	switch err := st.q.TryWriteAll(p); {
	case err == nil:
		return true, nil
	case errors.Is(err, quic.ErrWouldBlock):
		return false, nil
	default:
		return false, st.session.ioError(err)
	}
}

// Close ends the sending direction after what was written is delivered. REQUIRES
// no concurrent Write. The stream counts against the peer's limit until both
// directions have ended.
func (st *Stream) Close() error {
	if err := st.q.Close(); err != nil {
		return st.session.ioError(err)
	}
	return nil
}

// Abort ends both directions at once and unblocks Read and Write on both sides.
func (st *Stream) Abort() { abort(st.q, protocol.CodeNone) }

func abort(q *quic.Stream, code protocol.Code) {
	q.CancelRead(quic.StreamErrorCode(code))
	q.CancelWrite(quic.StreamErrorCode(code))
}

// ioError turns an error of quic-go's streams into this package's.
func (s *Session) ioError(err error) error {
	var aborted *quic.StreamError
	switch {
	case errors.Is(err, io.EOF):
		return err
	case errors.As(err, &aborted), errors.Is(err, quic.ErrStreamClosed):
		return ErrAborted
	}
	cause := sessionCause(err)
	if errors.Is(cause, ErrClosed) { // by this side, which knows why
		select {
		case <-s.ending:
			return s.cause
		default:
		}
	}
	return cause
}

// SetShare gives a bulk stream an equal share of the link beside the write streams
// (true), or what they leave (false). Only for bulk streams. It does not block.
func (st *Stream) SetShare(on bool) {
	if on {
		st.q.SetPriority(urgencyWrite, true)
	} else {
		st.q.SetPriority(urgencyBulk, true)
	}
}

// setUrgency tells the scheduler how urgent this side's bytes are.
func setUrgency(q *quic.Stream, kind protocol.StreamKind) {
	switch kind {
	case protocol.StreamWrite:
		q.SetPriority(urgencyWrite, true)
	case protocol.StreamBulk:
		q.SetPriority(urgencyBulk, true)
	}
}
