package protocol

import (
	"encoding/binary"
	"fmt"
)

// PlainLenSize is the length of what precedes a compressed payload, in bytes:
//
//	off size
//	0   4    length of the payload as it is, before it was compressed
//	4        one Zstandard frame (RFC 8878); the rest of the payload's length
//
// The frame's digest covers the payload as it is: what is written to a store is
// what was checked.
const PlainLenSize = 4

const (
	// compressMin: a shorter payload is not worth trying, bytes.
	compressMin = 1 << 10
	// compressShare: a payload goes compressed if that saves at least 1/compressShare
	// of it; otherwise the receiver's work buys nothing.
	compressShare = 16
)

// Compressor makes payloads smaller. Each result stands alone: what is lost or
// comes in another order leaves nothing behind in the next.
type Compressor interface {
	// Compress appends src, compressed, to dst. It keeps neither and may wait for its
	// turn on a CPU.
	Compress(dst, src []byte) []byte
}

// AppendCompressed appends the whole frame of m with its payload compressed to dst
// and returns how many bytes fewer that are than without; or dst as it was and 0,
// when the payload is short or does not get smaller: then AppendFrame is for it.
// REQUIRES a peer with FeatureZstd. The digest covers payload itself. It panics as
// AppendFrame does.
func AppendCompressed(dst []byte, m Message, payload []byte, c Compressor) (frame []byte, saved int) {
	if len(payload) < compressMin {
		return dst, 0
	}
	start := len(dst)
	dst = appendUnsealed(dst, m, payload)
	body := len(dst)
	dst = putU32(dst, uint32(len(payload)))
	dst = c.Compress(dst, payload)
	wire := len(dst) - body
	saved = len(payload) - wire
	if saved < len(payload)/compressShare {
		return dst[:start], 0
	}
	seal(dst[start:body], m.Type(), flagCompressed, payload, wire)
	return dst, saved
}

// Compressed says that the payload of PayloadLen bytes is compressed: PlainLenSize
// bytes for PlainLen, and what they say of.
func (h Header) Compressed() bool { return h.flags&flagCompressed != 0 }

// PlainLen reads the length of a compressed payload as it is from the payload's first
// PlainLenSize bytes and checks it as ParseHeader checks that of one that is not, so
// that the caller may allocate what it says. REQUIRES Compressed.
func (h Header) PlainLen(b []byte) (int, error) {
	if len(b) < PlainLenSize {
		return 0, fmt.Errorf("%v: compressed payload of %d bytes: %w", h.Type, len(b), ErrMalformed)
	}
	n := binary.LittleEndian.Uint32(b)
	if n > uint32(h.Type.payloadMax()) {
		return 0, fmt.Errorf("%v with a payload of %d bytes, compressed to %d: %w", h.Type, n, h.PayloadLen, ErrTooLarge)
	}
	if int(n) <= h.PayloadLen {
		return 0, fmt.Errorf("%v with a payload of %d bytes, compressed to %d: %w", h.Type, n, h.PayloadLen, ErrMalformed)
	}
	return int(n), nil
}

// checkCompressed is ParseHeader's part for a compressed payload.
func (h Header) checkCompressed() error {
	if h.Compressed() && (!h.Type.known() || h.Type.payloadMax() == 0 || h.PayloadLen <= PlainLenSize) {
		return fmt.Errorf("%v with a compressed payload of %d bytes: %w", h.Type, h.PayloadLen, ErrMalformed)
	}
	return nil
}

// holds says whether a payload of n bytes, as it is, is of the length that the header
// allows.
func (h Header) holds(n int) bool {
	if h.Compressed() {
		return n > h.PayloadLen && n <= h.Type.payloadMax()
	}
	return n == h.PayloadLen
}
