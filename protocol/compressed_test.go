package protocol

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// canned is a Compressor that knows one payload: 4096 times q, and what a Zstandard frame
// makes of it (package compress expands the same bytes).
type canned struct{ made []byte }

var qs = bytes.Repeat([]byte("q"), 4096)

func cannedZstd(t testing.TB) canned {
	b, err := hex.DecodeString("28b52ffd60000f03800071")
	if err != nil {
		t.Fatal(err)
	}
	return canned{b}
}

func (c canned) Compress(dst, _ []byte) []byte { return append(dst, c.made...) }

// compressedSamples has a frame of every type whose payload may go compressed.
func compressedSamples() []sample {
	return []sample{
		{"data-write-compressed", &Data{Op: DataWrite, Flags: DataFUA, Seq: 1, Time: 2, Off: 3, Len: 4096}, qs},
		{"sync-write-compressed", &SyncWrite{ID: 1, Off: 2, Len: 4096}, qs},
		{"peer-reply-compressed", &PeerReply{ID: 1, Len: 4096}, qs},
	}
}

// compressed returns the whole frame.
func (s sample) compressed(t testing.TB) []byte {
	b, saved := AppendCompressed(nil, s.m, s.payload, cannedZstd(t))
	if saved == 0 {
		t.Fatalf("%s: not compressed", s.name)
	}
	return b
}

func TestCompressedRoundTrip(t *testing.T) {
	head := []byte("what was queued before")
	for _, s := range compressedSamples() {
		frame, saved := AppendCompressed(bytes.Clone(head), s.m, s.payload, cannedZstd(t))
		if !bytes.HasPrefix(frame, head) {
			t.Fatalf("%s: what was there is gone", s.name)
		}
		frame = frame[len(head):]
		if want := len(s.frame()) - len(frame); saved != want {
			t.Errorf("%s: saved %d, not %d", s.name, saved, want)
		}
		h, err := ParseHeader(frame)
		if err != nil || !h.Compressed() || HeaderLen+h.BodyLen+h.PayloadLen != len(frame) {
			t.Fatalf("%s: %+v, %v", s.name, h, err)
		}
		body, wire := frame[HeaderLen:HeaderLen+h.BodyLen], frame[HeaderLen+h.BodyLen:]
		if n, err := h.PlainLen(wire); n != len(s.payload) || err != nil {
			t.Errorf("%s: %d bytes, %v", s.name, n, err)
		}
		var d Decoder
		if m, err := d.Decode(h, frame[:HeaderLen], body, s.payload); err != nil || !equal(m, s.m) {
			t.Errorf("%s: %+v, %v", s.name, m, err)
		}
		// The digest is of the payload as it is: a byte that came out otherwise is noticed.
		other := bytes.Clone(s.payload)
		other[17] ^= 1
		if _, err := d.Decode(h, frame[:HeaderLen], body, other); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: another payload: %v", s.name, err)
		}
		for _, n := range []int{0, h.PayloadLen, len(s.payload) - 1, PayloadMax + 1} {
			if m, err := d.Decode(h, frame[:HeaderLen], body, make([]byte, n)); err == nil {
				t.Errorf("%s: a payload of %d bytes passes as %+v", s.name, n, m)
			}
		}
	}
}

// TestNotWorthIt: what is short or does not shrink is left to AppendFrame, and what was
// queued before stays.
func TestNotWorthIt(t *testing.T) {
	head := []byte("head")
	made := func(n int) canned { return canned{make([]byte, n)} }
	for _, c := range []struct {
		name    string
		payload int
		wire    int // with the length before it
		saved   int
	}{
		{"short", compressMin - 1, 100, 0},
		{"the shortest", compressMin, 100, compressMin - 100},
		{"no gain", 4096, 4096, 0},
		{"longer", 4096, 4111, 0},
		{"a small gain", 4096, 4096 - 255, 0},
		{"a sixteenth", 4096, 4096 - 256, 256},
		{"the largest", PayloadMax, 1000, PayloadMax - 1000},
		{"the largest, no gain", PayloadMax, PayloadMax + 20, 0},
	} {
		frame, saved := AppendCompressed(bytes.Clone(head), &SyncWrite{Len: int64(c.payload)}, make([]byte, c.payload), made(c.wire-PlainLenSize))
		if saved != c.saved || !bytes.HasPrefix(frame, head) || saved == 0 && len(frame) != len(head) {
			t.Errorf("%s: saved %d, %d bytes", c.name, saved, len(frame))
		}
	}
}

// TestCompressedLimits: what a compressed payload is said to hold is bounded as one is that
// comes as it is, before anything is made for it.
func TestCompressedLimits(t *testing.T) {
	header := func(typ Type, wire int, flags uint8) []byte {
		b := make([]byte, HeaderLen)
		binary.LittleEndian.PutUint32(b, uint32(wire))
		b[4], b[5] = byte(typ), flags
		return b
	}
	for _, c := range []struct {
		name  string
		typ   Type
		wire  int // of the payload
		flags uint8
		plain uint32
		want  error
		text  string
	}{
		{"sound", TypeData, 100, flagCompressed, 4096, nil, ""},
		{"the most", TypeSyncWrite, 100, flagCompressed, PayloadMax, nil, ""},
		{"the most of an answer", TypePeerReply, 100, flagCompressed, ReadMax, nil, ""},
		{"a byte too much", TypeData, 100, flagCompressed, PayloadMax + 1, ErrTooLarge, "1048577"},
		{"too much of an answer", TypePeerReply, 100, flagCompressed, ReadMax + 1, ErrTooLarge, ""},
		{"4 GiB", TypeData, 100, flagCompressed, 1<<32 - 1, ErrTooLarge, ""},
		{"not smaller", TypeData, 100, flagCompressed, 100, ErrMalformed, ""},
		{"nothing", TypeData, 100, flagCompressed, 0, ErrMalformed, ""},
		{"too long as it comes", TypeData, PayloadMax + 1, flagCompressed, 4096, ErrTooLarge, ""},
		{"no content", TypeData, PlainLenSize, flagCompressed, 4096, ErrMalformed, ""},
		{"no payload", TypeData, 0, flagCompressed, 4096, ErrMalformed, ""},
		{"a type without payload", TypeAck, 0, flagCompressed, 4096, ErrMalformed, ""},
		{"an unknown type", 200, 0, flagCompressed | flagMayIgnore, 4096, ErrMalformed, ""},
		{"the next flag", TypeData, 100, flagCompressed << 1, 4096, ErrMalformed, ""},
	} {
		h, err := ParseHeader(header(c.typ, c.wire, c.flags))
		if err == nil {
			_, err = h.PlainLen(binary.LittleEndian.AppendUint32(nil, c.plain))
		}
		if !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	h := Header{Type: TypeData, PayloadLen: 100, flags: flagCompressed}
	if _, err := h.PlainLen([]byte{1, 2, 3}); !errors.Is(err, ErrMalformed) {
		t.Errorf("three bytes: %v", err)
	}
}

// TestCompressedLenIsTheMessages: a payload of another length than the message names is
// refused, also when its own length adds up.
func TestCompressedLenIsTheMessages(t *testing.T) {
	frame, _ := AppendCompressed(nil, &SyncWrite{ID: 1, Len: 4096}, qs, cannedZstd(t))
	body := frame[HeaderLen : len(frame)-PlainLenSize-11]
	binary.LittleEndian.PutUint64(body[16:], 8192) // Len
	seal(frame[:HeaderLen+len(body)], TypeSyncWrite, flagCompressed, qs, PlainLenSize+11)
	h, err := ParseHeader(frame)
	if err != nil {
		t.Fatal(err)
	}
	var d Decoder
	if m, err := d.Decode(h, frame[:HeaderLen], body, qs); !errors.Is(err, ErrMalformed) {
		t.Errorf("%+v, %v", m, err)
	}
}
