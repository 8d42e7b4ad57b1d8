package protocol

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzParseHeader: whatever passes is inside the limits.
func FuzzParseHeader(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.frame()[:HeaderLen])
	}
	for _, s := range compressedSamples() {
		f.Add(s.compressed(f)[:HeaderLen])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrUnknownType) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		if h.BodyLen < 0 || h.BodyLen > BodyMax || h.PayloadLen < 0 || h.PayloadLen > PayloadMax {
			t.Fatalf("%+v is beyond the limits", h)
		}
		if !h.Compressed() {
			return
		}
		if n, err := h.PlainLen(b[4:]); err == nil && (n <= h.PayloadLen || n > h.Type.payloadMax()) {
			t.Fatalf("%+v: %d bytes are beyond the limits", h, n)
		} else if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("unnamed error %v", err)
		}
	})
}

// FuzzDecode feeds any type's decoder. The digest is mended first, so that the
// fuzzer gets past it; what is accepted must encode to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		f.Add(uint8(s.m.Type()), s.frame()[HeaderLen:len(s.frame())-len(s.payload)], s.payload)
	}
	f.Fuzz(fuzzDecode)
}

// One target for each decoder on the hot paths: all the time goes into one.
func FuzzDecodeData(f *testing.F)        { fuzzOne(f, TypeData) }
func FuzzDecodeAck(f *testing.F)         { fuzzOne(f, TypeAck) }
func FuzzDecodeHello(f *testing.F)       { fuzzOne(f, TypeHello) }
func FuzzDecodeNodeHello(f *testing.F)   { fuzzOne(f, TypeNodeHello) }
func FuzzDecodeStreamOpen(f *testing.F)  { fuzzOne(f, TypeStreamOpen) }
func FuzzDecodeBitmapPart(f *testing.F)  { fuzzOne(f, TypeBitmapPart) }
func FuzzDecodeSyncWrite(f *testing.F)   { fuzzOne(f, TypeSyncWrite) }
func FuzzDecodeSyncDigests(f *testing.F) { fuzzOne(f, TypeSyncDigests) }

func fuzzOne(f *testing.F, typ Type) {
	for _, s := range samples() {
		if s.m.Type() == typ {
			f.Add(s.frame()[HeaderLen:len(s.frame())-len(s.payload)], s.payload)
		}
	}
	f.Fuzz(func(t *testing.T, body, payload []byte) { fuzzDecode(t, uint8(typ), body, payload) })
}

func fuzzDecode(t *testing.T, typ uint8, body, payload []byte) {
	if !Type(typ).known() || len(body) > Type(typ).bodyMax() || len(payload) > Type(typ).payloadMax() {
		return
	}
	frame := append(bytes.Clone(zeroHeader[:]), body...)
	seal(frame, Type(typ), 0, payload, len(payload))
	var d Decoder
	m, _, err := decodeFrame(&d, append(frame, payload...))
	if err != nil {
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("unnamed error %v", err)
		}
		return
	}
	if again := AppendFrame(nil, m, payload); !bytes.Equal(again, frame) {
		// A text that is legal stays as it is, so every accepted body is canonical.
		t.Fatalf("%+v\n got %x\nwant %x", m, again, frame)
	}
}
