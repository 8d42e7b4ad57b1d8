package volume

import (
	"bufio"
	"errors"
	"io"
	"sync/atomic"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
)

// frameReader reads frames from a stream.
type frameReader struct {
	r     *bufio.Reader
	dec   protocol.Decoder
	head  [protocol.HeaderLen]byte
	plain [protocol.PlainLenSize]byte
	body  []byte
	pool  *blockdev.Pool
	zstd  *compress.Zstd
	saved *atomic.Uint64 // bytes by which payloads that came compressed were smaller
	stop  <-chan struct{}
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

// reader returns the reader of one of the link's streams.
func (l *link) reader(s Stream) *frameReader {
	return newFrameReader(counted{s, &l.meter.received}, l.v.opt.Pool, l.v.opt.Zstd, &l.meter.receivedSaved, l.dead)
}

func newFrameReader(s io.Reader, pool *blockdev.Pool, z *compress.Zstd, saved *atomic.Uint64, stop <-chan struct{}) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(s, readBuffer), body: make([]byte, protocol.BodyMax), pool: pool, zstd: z, saved: saved, stop: stop}
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
		buf, err := f.payload(h)
		if err != nil {
			return nil, nil, err
		}
		msg, err := f.dec.Decode(h, f.head[:], body, payload(buf))
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

// payload reads a frame's payload, as it is also when it comes compressed; nil: it has
// none.
func (f *frameReader) payload(h protocol.Header) (*blockdev.Buffer, error) {
	switch {
	case h.PayloadLen == 0:
		return nil, nil
	case h.Compressed():
		return f.compressed(h)
	}
	buf := f.pool.Get(h.PayloadLen, f.stop)
	if buf == nil {
		return nil, io.ErrClosedPipe
	}
	if _, err := io.ReadFull(f.r, buf.Bytes()); err != nil {
		buf.Release()
		return nil, err
	}
	return buf, nil
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
		pay, tmp := f.look(h, b[protocol.HeaderLen+h.BodyLen:n])
		msg, err := dec.Decode(h, b[:protocol.HeaderLen], body, pay)
		if tmp != nil {
			tmp.Release()
		}
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
