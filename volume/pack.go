package volume

import (
	"fmt"
	"io"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// Payloads that travel compressed. A write's buffer stays as it is: what is compressed is
// the copy that goes to the transport, made when it goes there, by whoever hands it over. A
// write is never sent twice, since what a lost peer may lack is read from the store again;
// so nothing is kept. Windows, limits and rates count payloads as they are: that is the
// memory which is held for them.

// appendCompressed appends the whole frame with its payload compressed, if the peer is sent
// such, and this one gets smaller by it; otherwise nothing.
func (l *link) appendCompressed(out []byte, m protocol.Message, pay []byte) ([]byte, bool) {
	if len(pay) == 0 || l.conn.Compress == nil || !l.conn.Compress() {
		return out, false
	}
	out, saved := protocol.AppendCompressed(out, m, pay, l.v.opt.Zstd)
	l.meter.sentSaved.Add(uint64(saved))
	return out, saved > 0
}

// packBulk returns the whole frame with its payload compressed, valid until the next
// call; nil: it is to be sent as it is. REQUIRES bulkMu.
func (l *link) packBulk(m protocol.Message, pay []byte) []byte {
	frame, ok := l.appendCompressed(l.packed[:0], m, pay)
	l.packed = frame[:0]
	if !ok {
		return nil
	}
	return frame
}

// compressed reads a payload that comes compressed, and expands it. One buffer is for
// both: who waits for room holds none meanwhile.
func (f *frameReader) compressed(h protocol.Header) (*blockdev.Buffer, error) {
	if _, err := io.ReadFull(f.r, f.plain[:]); err != nil {
		return nil, err
	}
	n, err := h.PlainLen(f.plain[:])
	if err != nil {
		return nil, err
	}
	buf := f.pool.Get(n+h.PayloadLen-protocol.PlainLenSize, f.stop)
	if buf == nil {
		return nil, io.ErrClosedPipe
	}
	b := buf.Bytes()
	if _, err = io.ReadFull(f.r, b[n:]); err == nil {
		err = f.expand(h, b[:n], b[n:])
	}
	if err != nil {
		buf.Release()
		return nil, err
	}
	buf.Truncate(n)
	f.saved.Add(uint64(n - h.PayloadLen))
	return buf, nil
}

// expand fills to from a compressed payload; what is wrong with that is the peer's fault.
func (f *frameReader) expand(h protocol.Header, to, from []byte) error {
	if err := f.zstd.Expand(to, from); err != nil {
		return fmt.Errorf("%v: %w: %w", h.Type, protocol.ErrMalformed, err)
	}
	return nil
}

// look returns a frame's payload as it is; one that comes compressed is expanded into a
// buffer that the caller releases. What cannot be expanded, or not without waiting for room,
// is no payload, and its frame none that can be decoded.
func (f *frameReader) look(h protocol.Header, b []byte) (pay []byte, tmp *blockdev.Buffer) {
	if !h.Compressed() {
		return b, nil
	}
	n, err := h.PlainLen(b)
	if err != nil {
		return nil, nil
	}
	if tmp = f.pool.TryGet(n); tmp == nil {
		return nil, nil
	}
	if f.expand(h, tmp.Bytes(), b[protocol.PlainLenSize:]) != nil {
		return nil, tmp
	}
	return tmp.Bytes(), tmp
}
