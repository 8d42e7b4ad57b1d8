package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// HeaderLen is the length of a frame's header in bytes.
//
//	off size
//	0   4    length of body and payload together, after this header
//	4   1    type
//	5   1    frame flags
//	6   2    length of the body; the rest of the length is payload
//	8   8    XXH64 (seed 0) of header bytes 0..7, body and payload (as it is, when
//	         it travels compressed)
//	16       body, then payload
//
// All integers are little-endian.
const HeaderLen = 16

// Frame flags, byte 5 of the header. Other bits are malformed.
const (
	// flagMayIgnore: a receiver that does not know the type drops the frame.
	flagMayIgnore uint8 = 1 << iota
	// flagExtended: the body may end with fields that a later minor version
	// appended; a receiver ignores bytes after the fields it knows.
	flagExtended
	// flagCompressed: the payload is compressed, see PlainLenSize. Only to peers with
	// FeatureZstd.
	flagCompressed
)

// Errors of ParseHeader and Decode. After any of them the stream is useless:
// the receiver ends it with CodeCorrupt or CodeProtocol.
var (
	// ErrCorrupt: the digest does not match the bytes.
	ErrCorrupt = errors.New("frame digest mismatch")
	// ErrTooLarge: a length or count exceeds its limit. Nothing was allocated.
	ErrTooLarge = errors.New("frame exceeds a limit")
	// ErrMalformed: a field has a value that it must not have.
	ErrMalformed = errors.New("malformed frame")
	// ErrUnknownType: a frame of unknown type that may not be ignored.
	ErrUnknownType = errors.New("unknown frame type")
	// ErrIgnored: the frame is sound, of a type of a later version, and meant to
	// be dropped by those who do not know it. The stream goes on.
	ErrIgnored = errors.New("frame of a later version, to be ignored")
)

// Message is a pointer to one of this package's message structs.
type Message interface {
	// Type returns the frame type that carries the message.
	Type() Type

	// encode appends the body.
	encode(b []byte) []byte
	// decode fills the message from r, reusing its slices.
	decode(r *reader)
	// check says which field has an impossible value. It is what a sender must
	// keep to and what a receiver refuses.
	check(payload int) error
}

// Header is a parsed frame header.
type Header struct {
	Type       Type
	BodyLen    int
	PayloadLen int
	Digest     uint64

	flags uint8
}

// AppendFrame appends header and body of m to dst. The digest covers payload,
// which the caller writes right after. A message that breaks its own contract
// (a check that the receiver would fail) panics: sending it would end the
// stream. Texts for people are cut to TextMax and freed of control characters
// instead. It does not allocate when dst has room.
func AppendFrame(dst []byte, m Message, payload []byte) []byte {
	return appendFrame(dst, m, payload, 0)
}

func appendFrame(dst []byte, m Message, payload []byte, flags uint8) []byte {
	start := len(dst)
	dst = appendUnsealed(dst, m, payload)
	seal(dst[start:], m.Type(), flags, payload, len(payload))
	return dst
}

// appendUnsealed appends an empty header and the body.
func appendUnsealed(dst []byte, m Message, payload []byte) []byte {
	if err := m.check(len(payload)); err != nil {
		panic(fmt.Sprintf("protocol: sending %v: %v", m.Type(), err))
	}
	return m.encode(append(dst, zeroHeader[:]...))
}

var zeroHeader [HeaderLen]byte

// seal fills in the header of frame, which is header and body. The payload takes wire
// bytes.
func seal(frame []byte, t Type, flags uint8, payload []byte, wire int) {
	bodyLen := len(frame) - HeaderLen
	if bodyLen > t.bodyMax() || len(payload) > t.payloadMax() {
		panic(fmt.Sprintf("protocol: %v of %d body and %d payload bytes", t, bodyLen, len(payload)))
	}
	binary.LittleEndian.PutUint32(frame[0:], uint32(bodyLen+wire))
	frame[4] = byte(t)
	frame[5] = flags
	binary.LittleEndian.PutUint16(frame[6:], uint16(bodyLen))
	binary.LittleEndian.PutUint64(frame[8:], digest(frame[:8], frame[HeaderLen:], payload))
}

func digest(head, body, payload []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	d.Write(head)
	d.Write(body)
	d.Write(payload)
	return d.Sum64()
}

// ParseHeader reads a header from the first HeaderLen bytes of b and checks it
// against the limits of its type, so that the caller may allocate what it
// says. It returns ErrMalformed, ErrTooLarge or ErrUnknownType. A header of an
// unknown type that may be ignored is returned without error; the caller reads
// body and payload as usual and Decode returns ErrIgnored.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("header of %d bytes: %w", len(b), ErrMalformed)
	}
	length := binary.LittleEndian.Uint32(b[0:])
	h := Header{
		Type:    Type(b[4]),
		flags:   b[5],
		BodyLen: int(binary.LittleEndian.Uint16(b[6:])),
		Digest:  binary.LittleEndian.Uint64(b[8:]),
	}
	if h.flags&^(flagMayIgnore|flagExtended|flagCompressed) != 0 {
		return Header{}, fmt.Errorf("frame flags %#x: %w", h.flags, ErrMalformed)
	}
	if !h.Type.known() && h.flags&flagMayIgnore == 0 {
		return Header{}, fmt.Errorf("type %d: %w", uint8(h.Type), ErrUnknownType)
	}
	if length > BodyMax+PayloadMax || h.BodyLen > h.Type.bodyMax() {
		return Header{}, fmt.Errorf("%v of %d bytes, body %d: %w", h.Type, length, h.BodyLen, ErrTooLarge)
	}
	h.PayloadLen = int(length) - h.BodyLen
	if h.PayloadLen < 0 {
		return Header{}, fmt.Errorf("%v of %d bytes, body %d: %w", h.Type, length, h.BodyLen, ErrMalformed)
	}
	if h.PayloadLen > h.Type.payloadMax() {
		return Header{}, fmt.Errorf("%v with a payload of %d bytes: %w", h.Type, h.PayloadLen, ErrTooLarge)
	}
	if err := h.checkCompressed(); err != nil {
		return Header{}, err
	}
	return h, nil
}
