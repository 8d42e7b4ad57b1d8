package session

import (
	"errors"
	"fmt"
	"io"

	"github.com/qrbd/qrbd/protocol"
)

// frameReader reads the small frames of control streams and the first frame of
// others, byte for byte: what follows belongs to someone else.
type frameReader struct {
	r       io.Reader
	decoder protocol.Decoder
	buf     [protocol.HeaderLen + ControlBodyMax]byte
}

// next returns the next message that this version knows, valid until the
// following call. Errors are r's, or protocol's: then the stream is useless.
func (f *frameReader) next() (protocol.Message, error) {
	for {
		m, err := f.read()
		if !errors.Is(err, protocol.ErrIgnored) {
			return m, err
		}
	}
}

func (f *frameReader) read() (protocol.Message, error) {
	head := f.buf[:protocol.HeaderLen]
	if _, err := io.ReadFull(f.r, head); err != nil {
		return nil, err
	}
	h, err := protocol.ParseHeader(head)
	if err != nil {
		return nil, err
	}
	if h.BodyLen > ControlBodyMax || h.PayloadLen > 0 {
		return nil, fmt.Errorf("%v with %d and %d bytes: %w", h.Type, h.BodyLen, h.PayloadLen, protocol.ErrTooLarge)
	}
	body := f.buf[protocol.HeaderLen : protocol.HeaderLen+h.BodyLen]
	if _, err := io.ReadFull(f.r, body); err != nil {
		return nil, err
	}
	return f.decoder.Decode(h, head, body, nil)
}

// isViolation: the bytes were wrong, rather than the connection.
func isViolation(err error) bool {
	return errors.Is(err, protocol.ErrMalformed) || errors.Is(err, protocol.ErrCorrupt) ||
		errors.Is(err, protocol.ErrTooLarge) || errors.Is(err, protocol.ErrUnknownType)
}

// unexpected is the error for a sound message in the wrong place.
func unexpected(m protocol.Message, place string) error {
	return fmt.Errorf("%v %s: %w", m.Type(), place, protocol.ErrMalformed)
}
