package session

import (
	"errors"
	"io"

	"github.com/qrbd/qrbd/protocol"
)

// Stream is one stream of a volume, after its StreamOpen. Read and Write may
// run concurrently with each other. A Write returns when its bytes are on their way: it
// does not wait for the peer's answer, and it waits for flow control and
// congestion.
type Stream struct {
	session *Session
	c       Carrier
	kind    protocol.StreamKind
}

// Kind returns what the stream is for.
func (st *Stream) Kind() protocol.StreamKind { return st.kind }

// Read reads some bytes. Errors: io.EOF after the peer's Close, ErrAborted, or
// the session's cause.
func (st *Stream) Read(p []byte) (int, error) {
	n, err := st.c.Read(p)
	if err != nil {
		err = st.session.ioError(err)
	}
	return n, err
}

// Write writes all of p or returns an error. p is the caller's again on return.
func (st *Stream) Write(p []byte) (int, error) {
	n, err := st.c.Write(p)
	if err != nil {
		err = st.session.ioError(err)
	}
	return n, err
}

// TryWrite takes all of p, or nothing when that would mean waiting for flow
// control or for another writer. p is the caller's again on return.
func (st *Stream) TryWrite(p []byte) (ok bool, err error) {
	ok, err = st.c.TryWrite(p)
	if err != nil {
		err = st.session.ioError(err)
	}
	return ok, err
}

// Close ends the sending direction after what was written is delivered. REQUIRES
// no concurrent Write. The stream counts against the peer's limit until both
// directions have ended.
func (st *Stream) Close() error {
	if err := st.c.Close(); err != nil {
		return st.session.ioError(err)
	}
	return nil
}

// Abort ends both directions at once and unblocks Read and Write on both sides.
func (st *Stream) Abort() { st.c.Abort(protocol.CodeNone) }

// SetShare gives a bulk stream an equal share of the link beside the write streams
// (true), or what they leave (false). Only for bulk streams. It does not block.
func (st *Stream) SetShare(on bool) { st.c.SetShare(on) }

// ioError is the error of a stream in this session's words.
func (s *Session) ioError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, ErrAborted) {
		return err
	}
	if errors.Is(err, ErrClosed) { // by this side, which knows why
		select {
		case <-s.ending:
			return s.cause
		default:
		}
	}
	return err
}
