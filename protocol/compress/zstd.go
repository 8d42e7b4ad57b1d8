package compress

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/qrbd/qrbd/protocol"
)

// ErrFrame: the bytes are not one sound Zstandard frame of the length that was
// announced.
var ErrFrame = errors.New("compressed payload is damaged or not what was announced")

// windowBytes is how far back a payload's own bytes are looked for: an encoder's memory.
// More than a run of a resync has would find nothing more.
const windowBytes = 256 << 10

// Zstd compresses and expands. It implements protocol.Compressor.
type Zstd struct {
	concurrent int
	encoder    func() *zstd.Encoder
	decoder    func() *zstd.Decoder
}

// New returns a Zstd that works on at most concurrent payloads at once in each
// direction, at least 1; more wait for their turn.
func New(concurrent int) *Zstd {
	z := &Zstd{concurrent: max(1, concurrent)}
	z.encoder, z.decoder = sync.OnceValue(z.newEncoder), sync.OnceValue(z.newDecoder)
	return z
}

// newEncoder: the fastest level, since what a slower one saves is less than what the
// CPU is worth; no checksum, since the frame around it has one; the length of the content
// said whatever it is (single segment).
func (z *Zstd) newEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(z.concurrent),
		zstd.WithWindowSize(windowBytes), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true))
	if err != nil {
		panic(fmt.Sprintf("compress: %v", err)) // an option is out of range
	}
	return e
}

func (z *Zstd) newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(z.concurrent), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(protocol.PayloadMax), zstd.WithDecoderMaxWindow(protocol.PayloadMax), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(fmt.Sprintf("compress: %v", err))
	}
	return d
}

// Compress implements protocol.Compressor. It does not allocate when dst has room.
func (z *Zstd) Compress(dst, src []byte) []byte { return z.encoder().EncodeAll(src, dst) }

// Expand fills dst from what Compress made of a payload of len(dst) bytes, at most
// protocol.PayloadMax; src may not overlap it. Anything else is ErrFrame: a frame of
// another length, more or less than one frame, one that needs a dictionary. dst then
// holds anything. It writes nothing beyond dst.
func (z *Zstd) Expand(dst, src []byte) error {
	if err := checkFrame(src, len(dst)); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	out, err := z.decoder().DecodeAll(src, dst[:0:len(dst)])
	if err == nil && len(out) != len(dst) {
		err = fmt.Errorf("%d bytes instead of %d", len(out), len(dst))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}
