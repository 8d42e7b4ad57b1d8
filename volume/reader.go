package volume

import (
	"bufio"
	"errors"
	"io"
	"sync/atomic"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// frameReader reads frames from a stream.
type frameReader struct {
	r    *bufio.Reader
	dec  protocol.Decoder
	head [protocol.HeaderLen]byte
	body []byte
	pool *blockdev.Pool
	stop <-chan struct{}
}

// counted counts what is read from a stream.
type counted struct {
	from  io.Reader
	bytes *atomic.Uint64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.bytes.Add(uint64(n))
	return n, err
}

func newFrameReader(s io.Reader, pool *blockdev.Pool, stop <-chan struct{}) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(s, readBuffer), body: make([]byte, protocol.BodyMax), pool: pool, stop: stop}
}

// next returns the next message, valid until the next call, and its payload, which
// the caller releases.
func (f *frameReader) next() (protocol.Message, *blockdev.Buffer, error) {
	for {
		if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
			return nil, nil, err
		}
		h, err := protocol.ParseHeader(f.head[:])
		if err != nil {
			return nil, nil, err
		}
		body := f.body[:h.BodyLen]
		if _, err := io.ReadFull(f.r, body); err != nil {
			return nil, nil, err
		}
		var buf *blockdev.Buffer
		var pay []byte
		if h.PayloadLen > 0 {
			if buf = f.pool.Get(h.PayloadLen, f.stop); buf == nil {
				return nil, nil, io.ErrClosedPipe
			}
			pay = buf.Bytes()
			if _, err := io.ReadFull(f.r, pay); err != nil {
				buf.Release()
				return nil, nil, err
			}
		}
		msg, err := f.dec.Decode(h, f.head[:], body, pay)
		if err == nil {
			return msg, buf, nil
		}
		if buf != nil {
			buf.Release()
		}
		if !errors.Is(err, protocol.ErrIgnored) {
			return nil, nil, err
		}
	}
}

// payload returns the bytes of a frame's payload; a frame may have none.
func payload(buf *blockdev.Buffer) []byte {
	if buf == nil {
		return nil
	}
	return buf.Bytes()
}

// more reports whether the next frame is here already, whole.
func (f *frameReader) more() bool {
	if f.r.Buffered() < protocol.HeaderLen {
		return false
	}
	b, err := f.r.Peek(protocol.HeaderLen)
	if err != nil {
		return false
	}
	h, err := protocol.ParseHeader(b)
	return err == nil && f.r.Buffered() >= protocol.HeaderLen+h.BodyLen+h.PayloadLen
}

// ahead returns the operations at the start of what is here already, whole; an
// acknowledgement between them is passed over. Nothing is taken out of the buffer.
func (f *frameReader) ahead() []*protocol.Data {
	b, err := f.r.Peek(f.r.Buffered())
	if err != nil {
		return nil
	}
	var out []*protocol.Data
	var dec protocol.Decoder
	for len(b) >= protocol.HeaderLen {
		h, err := protocol.ParseHeader(b)
		n := protocol.HeaderLen + h.BodyLen + h.PayloadLen
		if err != nil || len(b) < n {
			break
		}
		body := b[protocol.HeaderLen : protocol.HeaderLen+h.BodyLen]
		msg, err := dec.Decode(h, b[:protocol.HeaderLen], body, b[protocol.HeaderLen+h.BodyLen:n])
		if err != nil {
			break
		}
		switch m := msg.(type) {
		case *protocol.Data:
			d := *m
			out = append(out, &d)
		case *protocol.Ack:
		default:
			return out
		}
		b = b[n:]
	}
	return out
}
