package compress

import (
	"bytes"
	"encoding/hex"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRoundTrip: what was compressed comes back, whatever it is, beside whatever else is
// in the buffers.
func TestRoundTrip(t *testing.T) {
	z := New(2)
	rapid.Check(t, func(t *rapid.T) {
		src := drawPayload(t)
		before := bytes.Clone(src)
		head := []byte("head")
		packed := z.Compress(bytes.Clone(head), src)
		if !bytes.HasPrefix(packed, head) {
			t.Fatal("what was there is gone")
		}
		room := bytes.Repeat([]byte{0xa5}, len(src)+64)
		if err := z.Expand(room[:len(src)], packed[len(head):]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(room[:len(src)], before) || !bytes.Equal(src, before) {
			t.Fatal("other bytes came back")
		}
		if len(bytes.Trim(room[len(src):], "\xa5")) > 0 {
			t.Fatal("it wrote beyond its place")
		}
	})
}

// drawPayload draws pieces that repeat and pieces that do not, as many as make a payload.
func drawPayload(t *rapid.T) []byte {
	var out []byte
	for len(out) == 0 || len(out) < protocol.PayloadMax && rapid.IntRange(0, 4).Draw(t, "more") > 0 {
		piece := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "piece")
		n := rapid.SampledFrom([]int{1, 2, 20, 500, 4000}).Draw(t, "times")
		out = append(out, bytes.Repeat(piece, n)...)
	}
	return out[:min(len(out), protocol.PayloadMax)]
}

// TestLargest: payloads of every legal size class, of both kinds.
func TestLargest(t *testing.T) {
	z := New(1)
	for _, n := range []int{1, 255, 256, 1024, 4096, 65536, 128 << 10, 128<<10 + 1, windowBytes, windowBytes + 1, protocol.PayloadMax} {
		for name, src := range map[string][]byte{"pages": pages(n), "random": noise(n), "zeroes": make([]byte, n)} {
			packed := z.Compress(nil, src)
			dst := make([]byte, n)
			if err := z.Expand(dst, packed); err != nil || !bytes.Equal(dst, src) {
				t.Errorf("%d bytes of %s: %v", n, name, err)
			}
		}
	}
}

// TestGolden expands what another implementation may send: golden bytes of package
// protocol.
func TestGolden(t *testing.T) {
	packed, err := hex.DecodeString("28b52ffd60000f03800071")
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 4096)
	if err := New(1).Expand(dst, packed); err != nil || !bytes.Equal(dst, bytes.Repeat([]byte("q"), 4096)) {
		t.Errorf("%v: %.20q", err, dst)
	}
}

// TestHostile: what is not one frame of the announced length is refused, and nothing is
// written beyond the place for it.
func TestHostile(t *testing.T) {
	const n = 8192
	z := New(1)
	src := pages(n)
	good := z.Compress(nil, src)
	with := func(o ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(src, nil)
	}
	streamed := func() []byte { // does not say how long its content is
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			t.Fatal(err)
		}
		e.Write(src)
		e.Flush()
		e.Close()
		return b.Bytes()
	}
	corrupt := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x55
		return b
	}
	empty := []byte{0, 0, 0}                 // a raw block of nothing
	rle := []byte{0x03, 0x00, 0x10, 'x'}     // the last block: 128 KiB of x
	frame := func(blocks ...[]byte) []byte { // of n bytes, it says
		return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x1f}, slices.Concat(blocks...)...)
	}
	for name, b := range map[string][]byte{
		"nothing":                  {},
		"garbage":                  noise(500),
		"cut in the header":        good[:6],
		"cut in the middle":        good[:len(good)/2],
		"cut at the end":           good[:len(good)-1],
		"a byte more":              append(bytes.Clone(good), 0),
		"garbage behind":           append(bytes.Clone(good), noise(20)...),
		"a frame behind":           append(bytes.Clone(good), z.Compress(nil, []byte("x"))...),
		"an empty frame behind":    append(bytes.Clone(good), 0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0),
		"a skipped frame behind":   append(bytes.Clone(good), 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0),
		"a skipped frame first":    append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, good...),
		"a checksum":               with(zstd.WithEncoderCRC(true)),
		"a dictionary":             with(zstd.WithEncoderCRC(false), zstd.WithEncoderDictRaw(7, src[:2000])),
		"no length":                streamed(),
		"less content":             z.Compress(nil, src[:n-1]),
		"more content":             z.Compress(nil, append(pages(n), 0)),
		"a bomb":                   z.Compress(nil, make([]byte, 64<<20)),
		"a bomb that understates":  frame(rle),
		"many blocks that are one": frame(bytes.Repeat([]byte{0x02, 0x00, 0x10, 'x'}, 1000), rle),
		"empty blocks without end": frame(bytes.Repeat(empty, 1000)),
		"empty blocks, no content": frame(bytes.Repeat(empty, 1000), []byte{1, 0, 0}),
		"a reserved block":         frame([]byte{0x07, 0, 0}),
		"a block too large":        frame([]byte{0x05, 0xff, 0xff}, noise(200)),
		"a block of noise":         frame([]byte{0x05, 0x10, 0}, noise(512)),
	} {
		room := bytes.Repeat([]byte{0xa5}, n+4096)
		err := z.Expand(room[:n], b)
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
		if len(bytes.Trim(room[n:], "\xa5")) > 0 {
			t.Errorf("%s: it wrote beyond its place", name)
		}
		t.Log(name, "-", err)
	}
	// A changed byte may leave a frame that is sound; the frame around it has a digest.
	refused := 0
	for at := range good {
		room := bytes.Repeat([]byte{0xa5}, n+64)
		if err := z.Expand(room[:n], corrupt(at)); err != nil {
			refused++
		}
		if len(bytes.Trim(room[n:], "\xa5")) > 0 {
			t.Fatalf("byte %d changed: it wrote beyond its place", at)
		}
	}
	if refused < len(good)/10 {
		t.Errorf("of %d changed bytes only %d were noticed", len(good), refused)
	}
	dst := make([]byte, n)
	if err := z.Expand(dst, good); err != nil || !bytes.Equal(dst, src) {
		t.Errorf("after all that: %v", err)
	}
}

// TestBombAllocatesNothing: however much is announced inside, memory is what the caller
// has made.
func TestBombAllocatesNothing(t *testing.T) {
	z := New(1)
	dst := make([]byte, 4096)
	if err := z.Expand(dst, z.Compress(nil, pages(4096))); err != nil {
		t.Fatal(err)
	}
	for name, bomb := range map[string][]byte{
		"said":      z.Compress(nil, make([]byte, 256<<20)),
		"unsaid":    append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f}, bytes.Repeat([]byte{0x02, 0x00, 0x10, 'x'}, 10000)...),
		"in blocks": literalBomb(t),
	} {
		const times = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range times {
			if z.Expand(dst, bomb) == nil {
				t.Fatal("expanded")
			}
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / times; n > 32<<10 {
			t.Errorf("%s: %d bytes allocated for each", name, n)
		}
	}
}

// literalBomb says that it holds 4096 bytes, and its one compressed block holds 128 KiB.
func literalBomb(t testing.TB) []byte {
	long := New(1).Compress(nil, bytes.Repeat([]byte("abcdefgh"), 16<<10))
	var h zstd.Header
	if err := h.Decode(long); err != nil || !h.FirstBlock.Compressed {
		t.Fatal(err, h)
	}
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f}, long[h.HeaderSize:]...)
}

// TestSteadyStateAllocates: nothing, in either direction.
func TestSteadyStateAllocates(t *testing.T) {
	z := New(1)
	for _, n := range []int{4096, 256 << 10, protocol.PayloadMax} {
		src := pages(n)
		packed, dst := make([]byte, 0, 2*n), make([]byte, n)
		if got := testing.AllocsPerRun(50, func() {
			out := z.Compress(packed, src)
			if err := z.Expand(dst, out); err != nil {
				t.Fatal(err)
			}
		}); got != 0 {
			t.Errorf("%d bytes: %v allocations", n, got)
		}
	}
}

// TestConcurrent: more than may work at once wait for their turn, and get it.
func TestConcurrent(t *testing.T) {
	z := New(2)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			src := pages(10000 + i)
			dst := make([]byte, len(src))
			for range 20 {
				if err := z.Expand(dst, z.Compress(nil, src)); err != nil || !bytes.Equal(dst, src) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzExpand: any bytes, for a place of the size that they say or another: an error, or
// exactly that many bytes, and none beyond.
func FuzzExpand(f *testing.F) {
	z := New(1)
	for _, src := range [][]byte{pages(4096), noise(300), make([]byte, 5000), []byte("x")} {
		f.Add(z.Compress(nil, src), int16(0))
	}
	f.Add(literalBomb(f), int16(0))
	f.Fuzz(func(t *testing.T, b []byte, more int16) {
		var h zstd.Header
		if h.Decode(b) != nil || h.FrameContentSize > protocol.PayloadMax {
			h.FrameContentSize = 0
		}
		n := min(max(0, int(h.FrameContentSize)+int(more)), protocol.PayloadMax)
		room := bytes.Repeat([]byte{0xa5}, n+64)
		err := z.Expand(room[:n], b)
		if err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("unnamed error %v", err)
		}
		if len(bytes.Trim(room[n:], "\xa5")) > 0 {
			t.Fatal("it wrote beyond its place")
		}
		if err != nil {
			return
		}
		again := make([]byte, n)
		if err := z.Expand(again, z.Compress(nil, room[:n])); err != nil || !bytes.Equal(again, room[:n]) {
			t.Fatalf("what came out does not come back: %v", err)
		}
	})
}

func noise(n int) []byte { return compresstest.Noise(1, n) }
func pages(n int) []byte { return compresstest.Pages(1, n) }

// BenchmarkZstd is what a payload costs, and how large what goes on the wire is.
func BenchmarkZstd(b *testing.B) {
	z := New(1)
	for _, size := range []struct {
		name  string
		bytes int
	}{{"4KiB", 4 << 10}, {"256KiB", 256 << 10}} {
		for _, kind := range []struct {
			name string
			src  []byte
		}{{"pages", pages(size.bytes)}, {"random", noise(size.bytes)}} {
			packed, dst := make([]byte, 0, 2*size.bytes), make([]byte, size.bytes)
			out := z.Compress(packed, kind.src)
			b.Run("compress/"+kind.name+"/"+size.name, func(b *testing.B) {
				b.SetBytes(int64(size.bytes))
				b.ReportAllocs()
				for b.Loop() {
					z.Compress(packed, kind.src)
				}
				b.ReportMetric(float64(len(out))/float64(size.bytes), "wire/payload")
			})
			b.Run("expand/"+kind.name+"/"+size.name, func(b *testing.B) {
				b.SetBytes(int64(size.bytes))
				b.ReportAllocs()
				for b.Loop() {
					if err := z.Expand(dst, out); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
