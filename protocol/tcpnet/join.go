package tcpnet

import (
	"fmt"
	"io"

	"github.com/qrbd/qrbd/protocol"
)

// readJoin reads the first frame of a stream's connection, which is Join and has
// no more than its fields: buf is its size.
func readJoin(r io.Reader, buf []byte) (*protocol.Join, error) {
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, err
	}
	head, body := buf[:protocol.HeaderLen], buf[protocol.HeaderLen:]
	h, err := protocol.ParseHeader(head)
	if err != nil {
		return nil, err
	}
	if h.Type != protocol.TypeJoin || h.BodyLen != len(body) || h.PayloadLen != 0 {
		return nil, fmt.Errorf("%v of %d and %d bytes instead of Join: %w", h.Type, h.BodyLen, h.PayloadLen, protocol.ErrMalformed)
	}
	m, err := new(protocol.Decoder).Decode(h, head, body, nil)
	if err != nil {
		return nil, err
	}
	return m.(*protocol.Join), nil
}

// discard reads at most n bytes until the end or an error.
func discard(r io.Reader, n int64) { io.Copy(io.Discard, io.LimitReader(r, n)) }
