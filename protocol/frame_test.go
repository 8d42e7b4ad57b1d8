package protocol

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.txt")

const goldenFile = "testdata/golden.txt"

// TestGolden compares every sample with the bytes on file: the wire may not
// change by accident.
func TestGolden(t *testing.T) {
	if *update {
		var b bytes.Buffer
		for _, s := range samples() {
			fmt.Fprintf(&b, "%s %x\n", s.name, s.frame())
		}
		for _, s := range compressedSamples() {
			fmt.Fprintf(&b, "%s %x\n", s.name, s.compressed(t))
		}
		if err := os.WriteFile(goldenFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden := readGolden(t)
	for _, s := range samples() {
		if got, want := hex.EncodeToString(s.frame()), golden[s.name]; got != want {
			t.Errorf("%s:\n got %s\nwant %s", s.name, got, want)
		}
		delete(golden, s.name)
	}
	for _, s := range compressedSamples() {
		if got, want := hex.EncodeToString(s.compressed(t)), golden[s.name]; got != want {
			t.Errorf("%s:\n got %s\nwant %s", s.name, got, want)
		}
		delete(golden, s.name)
	}
	for name := range golden {
		t.Errorf("%s is on file, but no sample", name)
	}
}

func readGolden(t *testing.T) map[string]string {
	f, err := os.Open(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	golden := map[string]string{}
	for in := bufio.NewScanner(f); in.Scan(); {
		name, data, _ := strings.Cut(in.Text(), " ")
		golden[name] = data
	}
	return golden
}

func TestSamplesRoundTrip(t *testing.T) {
	var d Decoder
	for _, s := range samples() {
		m, payload, err := decodeFrame(&d, s.frame())
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if !equal(m, s.m) || !bytes.Equal(payload, s.payload) {
			t.Errorf("%s:\n got %+v\nwant %+v", s.name, m, s.m)
		}
	}
}

// equal compares messages, nil and empty slices alike.
func equal(a, b Message) bool { return fmt.Sprintf("%T%+v", a, a) == fmt.Sprintf("%T%+v", b, b) }

func TestEveryTypeIsCovered(t *testing.T) {
	seen := map[Type]bool{}
	for _, s := range samples() {
		seen[s.m.Type()] = true
	}
	names := map[string]Type{}
	for i := range 256 {
		typ := Type(i)
		m := newMessage(typ)
		if typ.known() != (m != nil) {
			t.Errorf("type %d: known %v, message %T", i, typ.known(), m)
		}
		if m == nil {
			continue
		}
		if m.Type() != typ {
			t.Errorf("newMessage(%d) is a %T of type %d", i, m, m.Type())
		}
		if other, ok := names[typ.String()]; ok {
			t.Errorf("types %d and %d are both %v", i, other, typ)
		}
		names[typ.String()] = typ
		if !seen[typ] {
			t.Errorf("no sample of %v", typ)
		}
	}
	if got := Type(200).String(); got != "type(200)" {
		t.Errorf("unknown type prints as %q", got)
	}
}

// TestEveryBitIsCovered flips each bit of a frame: no flip may go unnoticed.
func TestEveryBitIsCovered(t *testing.T) {
	var d Decoder
	for _, s := range samples() {
		frame := s.frame()
		for bit := range 8 * len(frame) {
			frame[bit/8] ^= 1 << (bit % 8)
			if m, _, err := decodeFrame(&d, frame); err == nil {
				t.Errorf("%s: bit %d flipped and accepted as %+v", s.name, bit, m)
			}
			frame[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// TestTruncatedBody cuts every body at every length, with a right digest.
func TestTruncatedBody(t *testing.T) {
	var d Decoder
	for _, s := range samples() {
		frame := AppendFrame(nil, s.m, s.payload)
		for n := HeaderLen; n < len(frame); n++ {
			cut := bytes.Clone(frame[:n])
			seal(cut, s.m.Type(), 0, s.payload, len(s.payload))
			if m, _, err := decodeFrame(&d, append(cut, s.payload...)); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s cut to %d: %+v, %v", s.name, n, m, err)
			}
		}
	}
}

func TestAppendedFields(t *testing.T) {
	var d Decoder
	for _, s := range samples() {
		for _, flags := range []uint8{0, flagMayIgnore, flagExtended} {
			frame := append(AppendFrame(nil, s.m, s.payload), 0xaa, 0xbb)
			seal(frame, s.m.Type(), flags, s.payload, len(s.payload))
			m, _, err := decodeFrame(&d, append(frame, s.payload...))
			switch {
			case flags != flagExtended && !errors.Is(err, ErrMalformed):
				t.Errorf("%s, flags %d: trailing bytes gave %v, %v", s.name, flags, m, err)
			case flags == flagExtended && (err != nil || !equal(m, s.m)):
				t.Errorf("%s extended: %+v, %v", s.name, m, err)
			}
		}
	}
}

func TestUnknownTypes(t *testing.T) {
	var d Decoder
	for _, typ := range []Type{0, 11, 72, 200, 255} {
		frame := append(zeroHeader[:], "new in 1.7"...)
		seal(frame, typ, 0, nil, 0)
		if _, err := ParseHeader(frame); !errors.Is(err, ErrUnknownType) {
			t.Errorf("type %d: %v", typ, err)
		}
		seal(frame, typ, flagMayIgnore, nil, 0)
		if _, _, err := decodeFrame(&d, frame); !errors.Is(err, ErrIgnored) {
			t.Errorf("type %d that may be ignored: %v", typ, err)
		}
		frame[len(frame)-1]++
		if _, _, err := decodeFrame(&d, frame); !errors.Is(err, ErrCorrupt) {
			t.Errorf("type %d, corrupted: %v", typ, err)
		}
	}
}

func TestParseHeader(t *testing.T) {
	head := func(length uint32, typ Type, flags uint8, body uint16) []byte {
		b := make([]byte, HeaderLen)
		binary.LittleEndian.PutUint32(b, length)
		b[4], b[5] = byte(typ), flags
		binary.LittleEndian.PutUint16(b[6:], body)
		return b
	}
	for _, c := range []struct {
		name string
		head []byte
		want error
	}{
		{"largest data", head(34+PayloadMax, TypeData, 0, 34), nil},
		{"one more", head(34+PayloadMax+1, TypeData, 0, 34), ErrTooLarge},
		{"largest sync write", head(24+PayloadMax, TypeSyncWrite, 0, 24), nil},
		{"largest bitmap part", head(BodyMax, TypeBitmapPart, 0, BodyMax), nil},
		{"bitmap part of 64 KiB", head(65535, TypeBitmapPart, 0, 65535), ErrTooLarge},
		{"hello of 4 KiB", head(4096, TypeHello, 0, 4096), nil},
		{"larger", head(4097, TypeHello, 0, 4097), ErrTooLarge},
		{"payload on an ack", head(25, TypeAck, 0, 24), ErrTooLarge},
		{"4 GiB", head(math.MaxUint32, TypeData, 0, 34), ErrTooLarge},
		{"4 GiB of the unknown", head(math.MaxUint32, 99, flagMayIgnore, 34), ErrTooLarge},
		{"payload on the unknown", head(9, 99, flagMayIgnore, 8), ErrTooLarge},
		{"body longer than the whole", head(23, TypeAck, 0, 24), ErrMalformed},
		{"reserved flag", head(24, TypeAck, 4, 24), ErrMalformed},
		{"short", head(24, TypeAck, 0, 24)[:15], ErrMalformed},
		{"empty", nil, ErrMalformed},
	} {
		if _, err := ParseHeader(c.head); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestImpossibleFields: what a receiver refuses, a sender panics on.
func TestImpossibleFields(t *testing.T) {
	long := strings.Repeat("n", NameMax+1)
	for _, c := range []struct {
		name    string
		m       Message
		payload int
		want    error
	}{
		{"no operation", &Data{}, 0, ErrMalformed},
		{"operation 5", &Data{Op: 5}, 0, ErrMalformed},
		{"unknown flag", &Data{Op: DataWrite, Flags: 4}, 0, ErrMalformed},
		{"write without holes", &Data{Op: DataWrite, Flags: DataNoHole}, 0, ErrMalformed},
		{"flush with a range", &Data{Op: DataFlush, Len: 1}, 0, ErrMalformed},
		{"flush with a payload", &Data{Op: DataFlush}, 1, ErrMalformed},
		{"negative offset", &Data{Op: DataTrim, Off: -1, Len: 1}, 0, ErrMalformed},
		{"negative length", &Data{Op: DataTrim, Len: -1}, 0, ErrMalformed},
		{"end beyond int64", &Data{Op: DataZero, Off: math.MaxInt64, Len: 1}, 0, ErrMalformed},
		{"short payload", &Data{Op: DataWrite, Len: 5}, 4, ErrMalformed},
		{"long payload", &Data{Op: DataWrite, Len: 5}, 6, ErrMalformed},
		{"zero with payload", &Data{Op: DataZero, Len: 5}, 5, ErrMalformed},
		{"write of 2 MiB", &Data{Op: DataWrite, Len: 2 << 20}, 0, ErrTooLarge},
		{"sync write without payload", &SyncWrite{Len: 5}, 0, ErrMalformed},
		{"sync write out of range", &SyncWrite{Off: math.MaxInt64, Len: 5}, 5, ErrMalformed},
		{"sync zero out of range", &SyncZero{Off: -5, Len: 5}, 0, ErrMalformed},
		{"too few digests", &SyncDigests{Len: 4097, Digests: []uint64{1}}, 0, ErrMalformed},
		{"too many digests", &SyncDigests{Len: 4096, Digests: []uint64{1, 2}}, 0, ErrMalformed},
		{"digests off a block", &SyncDigests{Off: 1, Len: 1, Digests: []uint64{1}}, 0, ErrMalformed},
		{"257 digests", &SyncDigests{Len: 257 * DigestBlock, Digests: make([]uint64, 257)}, 0, ErrTooLarge},
		{"empty bitmap part", &BitmapPart{}, 0, ErrMalformed},
		{"bitmap beyond int64", &BitmapPart{First: bitmapFirstMax, Words: []uint64{1}}, 0, ErrMalformed},
		{"large bitmap part", &BitmapPart{Words: make([]uint64, BitmapWordMax+1)}, 0, ErrTooLarge},
		{"role unknown", &State{Disk: UpToDate}, 0, ErrMalformed},
		{"disk unknown", &State{Role: Primary}, 0, ErrMalformed},
		{"disk 7", &State{Role: Primary, Disk: 7}, 0, ErrMalformed},
		{"primary's name", &State{Role: Primary, Disk: UpToDate, Primary: long}, 0, ErrTooLarge},
		{"mode 0", &Hello{Role: Primary, Disk: UpToDate}, 0, ErrMalformed},
		{"hello flag", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Flags: 1 << 31}, 0, ErrMalformed},
		{"policy", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Policy: SplitPolicy{Pri1: CallPriLost + 1}}, 0, ErrMalformed},
		{"17 ranges", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Changes: Changes{Ranges: make([]Range, 17)}}, 0, ErrTooLarge},
		{"range beyond the end", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Changes: Changes{Ranges: []Range{{1 << 62, 1 << 62}}}}, 0, ErrMalformed},
		{"negative size", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Size: -1}, 0, ErrMalformed},
		{"16 slots", &Hello{Role: Primary, Disk: UpToDate, Mode: ModeC, Slots: make([]PeerSlot, 16)}, 0, ErrTooLarge},
		{"slot without name", &SyncDone{Slots: []PeerSlot{{}}}, 0, ErrMalformed},
		{"33 generations", &SyncDone{History: make([]Generation, 33)}, 0, ErrTooLarge},
		{"strategy 0", &Verdict{}, 0, ErrMalformed},
		{"strategy 10", &Verdict{Strategy: 10}, 0, ErrMalformed},
		{"16 weak peers", &NewGeneration{Weak: make([]string, 16)}, 0, ErrTooLarge},
		{"nameless weak peer", &NewGeneration{Weak: make([]string, 1)}, 0, ErrMalformed},
		{"16 stable peers", &Stable{Peers: make([]PeerStable, 16)}, 0, ErrTooLarge},
		{"nameless stable peer", &Stable{Peers: make([]PeerStable, 1)}, 0, ErrMalformed},
		{"stream kind 0", &StreamOpen{Volume: "crm"}, 0, ErrMalformed},
		{"stream kind 3", &StreamOpen{Kind: 3, Volume: "crm"}, 0, ErrMalformed},
		{"no volume", &ConnectAsk{}, 0, ErrMalformed},
		{"long volume", &ConnectAsk{Volume: long}, 0, ErrTooLarge},
		{"NUL", &ConnectAsk{Volume: "a\x00b"}, 0, ErrMalformed},
		{"escape", &ConnectAsk{Volume: "a\x1b[2J"}, 0, ErrMalformed},
		{"not UTF-8", &NodeHello{Name: "\xff"}, 0, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			payload := make([]byte, c.payload)
			if c.m.Type().payloadMax() > 0 || c.payload == 0 {
				frame := c.m.encode(append([]byte(nil), zeroHeader[:]...))
				seal(frame, c.m.Type(), 0, payload, len(payload))
				var d Decoder
				if m, _, err := decodeFrame(&d, append(frame, payload...)); !errors.Is(err, c.want) {
					t.Errorf("receiver: %+v, %v, want %v", m, err, c.want)
				}
			}
			defer func() {
				if recover() == nil {
					t.Error("sender did not panic")
				}
			}()
			AppendFrame(nil, c.m, payload)
		})
	}
}

func TestBoolIsZeroOrOne(t *testing.T) {
	frame := AppendFrame(nil, &PromoteAsk{ID: 1, Force: true}, nil)
	frame[len(frame)-1] = 2
	seal(frame, TypePromoteAsk, 0, nil, 0)
	var d Decoder
	if m, _, err := decodeFrame(&d, frame); !errors.Is(err, ErrMalformed) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestTextIsCleaned(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"two\nlines\tand ümläute":          "two\nlines\tand ümläute",
		"bell\a escape\x1b[1m nul\x00":     "bell  escape [1m nul ",
		"not \xff\xfe UTF-8":               "not ? UTF-8",
		strings.Repeat("x", 2000):          strings.Repeat("x", TextMax),
		"x" + strings.Repeat("ü", TextMax): "x" + strings.Repeat("ü", (TextMax-1)/2),
		"c1 \u009b31m":                     "c1  31m",
	} {
		var d Decoder
		m, _, err := decodeFrame(&d, AppendFrame(nil, &Refuse{Code: CodeBusy, Text: in}, nil))
		if err != nil {
			t.Errorf("%.20q: %v", in, err)
			continue
		}
		if got := m.(*Refuse).Text; got != want || !utf8.ValidString(got) {
			t.Errorf("%.20q: %q, want %q", in, got, want)
		}
	}
	raw := append(bytes.Clone(zeroHeader[:]), 1, 0, 1, 0, 0x1b)
	seal(raw, TypeRefuse, 0, nil, 0)
	var d Decoder
	if _, _, err := decodeFrame(&d, raw); !errors.Is(err, ErrMalformed) {
		t.Errorf("a text with an escape character was received: %v", err)
	}
}

func TestWrongLengthsForDecode(t *testing.T) {
	frame := AppendFrame(nil, &Ack{}, nil)
	h, err := ParseHeader(frame)
	if err != nil {
		t.Fatal(err)
	}
	var d Decoder
	for _, c := range [][3][]byte{
		{frame[:7], frame[16:], nil},
		{frame[:8], frame[17:], nil},
		{frame[:8], frame[16:], {0}},
	} {
		if _, err := d.Decode(h, c[0], c[1], c[2]); !errors.Is(err, ErrMalformed) {
			t.Errorf("lengths %d, %d, %d: %v", len(c[0]), len(c[1]), len(c[2]), err)
		}
	}
}

// TestDecoderReuse: nothing of an earlier message shows in a later one.
func TestDecoderReuse(t *testing.T) {
	var d Decoder
	full := samples()
	for _, s := range full {
		if _, _, err := decodeFrame(&d, s.frame()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []Message{
		&Hello{Role: Primary, Disk: UpToDate, Mode: ModeA},
		&SyncDone{},
		&Stable{Peers: []PeerStable{{Name: "gamma"}}},
		&NewGeneration{Weak: []string{"delta"}},
		&BitmapPart{Words: []uint64{1, 2, 3}},
		&Verdict{Strategy: NoSync},
	} {
		m, _, err := decodeFrame(&d, AppendFrame(nil, want, nil))
		if err != nil || !equal(m, want) {
			t.Errorf("%+v, %v, want %+v", m, err, want)
		}
	}
}

func TestCodesSurvive(t *testing.T) {
	for c := CodeNone; c <= CodeTransport+2; c++ {
		back, ok := ParseCode(c.String())
		if !ok || back != c || c.String() == "" {
			t.Errorf("code %d prints as %q, parsed as %d %v", c, c, back, ok)
		}
	}
	for _, s := range []string{"", "code(1)", "code(70000)", "code(99) ", "Busy"} {
		if c, ok := ParseCode(s); ok {
			t.Errorf("%q parsed as %v", s, c)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	payload := make([]byte, 4096)
	var d Decoder
	buf := make([]byte, 0, 8192)
	for _, s := range []sample{
		{"data", &Data{Op: DataWrite, Seq: 1, Len: 4096}, payload},
		{"ack", &Ack{Received: 1}, nil},
		{"sync-write", &SyncWrite{ID: 1, Len: 4096}, payload},
		{"sync-ack", &SyncAck{ID: 1}, nil},
		{"stable", &Stable{Peers: []PeerStable{{"beta", 1, true, false}, {"gamma", 1, true, true}}}, nil},
		{"sync-digests", &SyncDigests{Len: 1 << 20, Digests: make([]uint64, 256)}, nil},
		{"sync-differs", &SyncDiffers{}, nil},
	} {
		n := testing.AllocsPerRun(100, func() {
			frame := AppendFrame(buf[:0], s.m, s.payload)
			h, err := ParseHeader(frame)
			if err != nil {
				t.Fatal(err)
			}
			m, err := d.Decode(h, frame[:HeaderLen], frame[HeaderLen:], s.payload)
			if err != nil || reflect.TypeOf(m) != reflect.TypeOf(s.m) {
				t.Fatal(m, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}

func BenchmarkData4K(b *testing.B) {
	payload := make([]byte, 4096)
	buf := make([]byte, 0, 8192)
	m := &Data{Op: DataWrite, Seq: 1, Len: 4096}
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		for b.Loop() {
			AppendFrame(buf, m, payload)
		}
	})
	b.Run("decode", func(b *testing.B) { benchmarkDecode(b, m, payload) })
}

func BenchmarkAck(b *testing.B) {
	buf := make([]byte, 0, 64)
	m := &Ack{Received: 1}
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			AppendFrame(buf, m, nil)
		}
	})
	b.Run("decode", func(b *testing.B) { benchmarkDecode(b, m, nil) })
}

func benchmarkDecode(b *testing.B, m Message, payload []byte) {
	frame := AppendFrame(nil, m, payload)
	var d Decoder
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		h, err := ParseHeader(frame)
		if err == nil {
			_, err = d.Decode(h, frame[:HeaderLen], frame[HeaderLen:], payload)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
