package archive

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// Sizes in the file, bytes.
const (
	blockSize  = blockdev.BlockSize
	sectorSize = blockdev.SectorSize

	headerBytes = 4096
	stateAt     = headerBytes // two slots of stateBytes, then zeroes
	stateBytes  = sectorSize
	dataAt      = headerBytes + 4096 // the first segment

	segmentMax   = 256 // entries of a segment, of which each may have a block: 1 MiB
	segmentFixed = 48  // bytes before the entries
	entryBytes   = 16

	version    = 1
	nameMax    = 64
	textMax    = 200
	historyMax = 32

	zeroEntry = 1 << 63
)

var (
	headerMagic  = [8]byte{'Q', 'R', 'B', 'D', 'A', 'R', 'C', 'H'}
	stateMagic   = [8]byte{'Q', 'R', 'B', 'D', 'A', 'S', 'T', 'A'}
	segmentMagic = [8]byte{'Q', 'R', 'B', 'D', 'A', 'S', 'E', 'G'}

	le = binary.LittleEndian
)

// Header says whose data an archive holds. It is written once.
type Header struct {
	File   uint64    // random; never zero
	Time   time.Time // when the archive was begun
	Volume string
	Node   string // the loser
	Winner string
	Rule   string
	Size   int64 // of the volume, bytes
	Full   bool  // every block was to be overwritten

	// Of the side that is given up, and of the winner when it was.
	ID      protocol.VolumeID
	Lost    protocol.Generation
	Kept    protocol.Generation
	Parent  protocol.Generation // at which they parted; zero: not known
	History []protocol.Generation
	Disk    protocol.Disk
}

// Name is what people call the archive by: its time and four digits.
func (h *Header) Name() string {
	return h.Time.UTC().Format("20060102-150405") + fmt.Sprintf("-%04x", uint16(h.File))
}

// Phase is where an archive stands.
type Phase uint8

// The phases.
const (
	// Collecting: the sync that discards is not over.
	Collecting Phase = iota + 1
	// Following: it is; what is overwritten now is still kept.
	Following
	// Sealed: nothing is added any more.
	Sealed
)

// String returns the phase's name.
func (p Phase) String() string {
	switch p {
	case Collecting:
		return "collecting"
	case Following:
		return "following"
	case Sealed:
		return "sealed"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// state is what changes in an archive besides its segments.
type state struct {
	seq    uint64
	phase  Phase
	whole  bool  // the sync that discards had ended
	end    int64 // bytes of the file that are durable
	from   int64 // bytes of the file when it began to follow
	synced time.Time
	sealed time.Time
	why    string // it was sealed
}

func (h *Header) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, headerMagic[:])
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], headerBytes)
	le.PutUint64(b[16:], h.File)
	le.PutUint64(b[24:], uint64(h.Time.UnixNano()))
	le.PutUint64(b[32:], uint64(h.Size))
	le.PutUint32(b[40:], blockSize)
	if h.Full {
		b[44] = 1
	}
	b[45] = byte(h.Disk)
	b[46] = byte(len(h.History))
	copy(b[48:64], h.ID[:])
	le.PutUint64(b[64:], uint64(h.Lost))
	le.PutUint64(b[72:], uint64(h.Kept))
	le.PutUint64(b[80:], uint64(h.Parent))
	for i, s := range []string{h.Volume, h.Node, h.Winner, h.Rule} {
		putText(b[96+72*i:], s, nameMax)
	}
	for i, g := range h.History {
		le.PutUint64(b[384+8*i:], uint64(g))
	}
	le.PutUint64(b[headerBytes-8:], xxhash.Sum64(b[:headerBytes-8]))
	return b
}

func (h *Header) validate() error {
	for _, s := range []string{h.Volume, h.Node, h.Winner, h.Rule} {
		if len(s) > nameMax {
			return fmt.Errorf("archive: %q is longer than %d bytes", s, nameMax)
		}
	}
	if h.File == 0 || h.Size <= 0 || len(h.History) > historyMax {
		return fmt.Errorf("archive: file id %d, size %d, %d generations", h.File, h.Size, len(h.History))
	}
	return nil
}

func decodeHeader(b []byte) (Header, error) {
	var h Header
	switch {
	case len(b) < headerBytes || [8]byte(b) != headerMagic:
		return h, ErrNotArchive
	case le.Uint64(b[headerBytes-8:]) != xxhash.Sum64(b[:headerBytes-8]):
		return h, fmt.Errorf("%w: its header does not match its digest", ErrDamaged)
	case le.Uint32(b[8:]) != version:
		return h, fmt.Errorf("%w: %d", ErrVersion, le.Uint32(b[8:]))
	case le.Uint32(b[12:]) != headerBytes || le.Uint32(b[40:]) != blockSize || b[46] > historyMax:
		return h, fmt.Errorf("%w: header of %d bytes, blocks of %d, %d generations", ErrDamaged, le.Uint32(b[12:]), le.Uint32(b[40:]), b[46])
	}
	h.File = le.Uint64(b[16:])
	h.Time = time.Unix(0, int64(le.Uint64(b[24:]))).UTC()
	h.Size = int64(le.Uint64(b[32:]))
	h.Full = b[44]&1 != 0
	h.Disk = protocol.Disk(b[45])
	copy(h.ID[:], b[48:64])
	h.Lost = protocol.Generation(le.Uint64(b[64:]))
	h.Kept = protocol.Generation(le.Uint64(b[72:]))
	h.Parent = protocol.Generation(le.Uint64(b[80:]))
	for i, s := range []*string{&h.Volume, &h.Node, &h.Winner, &h.Rule} {
		text, ok := takeText(b[96+72*i:], nameMax)
		if !ok {
			return h, fmt.Errorf("%w: a name of %d bytes", ErrDamaged, b[96+72*i])
		}
		*s = text
	}
	for i := range int(b[46]) {
		h.History = append(h.History, protocol.Generation(le.Uint64(b[384+8*i:])))
	}
	if err := h.validate(); err != nil {
		return h, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return h, nil
}

func putText(b []byte, s string, limit int) {
	s = s[:min(len(s), limit)]
	b[0] = byte(len(s))
	copy(b[1:], s)
}

func takeText(b []byte, limit int) (string, bool) {
	n := int(b[0])
	if n > limit {
		return "", false
	}
	return string(b[1 : 1+n]), true
}

func (s *state) encode(file uint64) []byte {
	b := make([]byte, stateBytes)
	copy(b, stateMagic[:])
	le.PutUint64(b[8:], file)
	le.PutUint64(b[16:], s.seq)
	b[24] = byte(s.phase)
	if s.whole {
		b[25] = 1
	}
	le.PutUint64(b[32:], uint64(s.end))
	le.PutUint64(b[40:], uint64(s.from))
	le.PutUint64(b[48:], nanos(s.synced))
	le.PutUint64(b[56:], nanos(s.sealed))
	putText(b[64:], s.why, textMax)
	le.PutUint64(b[stateBytes-8:], xxhash.Sum64(b[:stateBytes-8]))
	return b
}

func decodeState(b []byte, file uint64) (s state, ok bool) {
	if [8]byte(b) != stateMagic || le.Uint64(b[8:]) != file || le.Uint64(b[stateBytes-8:]) != xxhash.Sum64(b[:stateBytes-8]) {
		return s, false
	}
	s = state{seq: le.Uint64(b[16:]), phase: Phase(b[24]), whole: b[25]&1 != 0, end: int64(le.Uint64(b[32:])), from: int64(le.Uint64(b[40:])),
		synced: fromNanos(le.Uint64(b[48:])), sealed: fromNanos(le.Uint64(b[56:]))}
	s.why, ok = takeText(b[64:], textMax)
	return s, ok && s.phase >= Collecting && s.phase <= Sealed && s.end >= dataAt && s.from >= 0
}

func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func fromNanos(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

// entry is one block with its digest, or a run of zero blocks.
type entry struct {
	block int64
	count int64  // blocks of zeroes; 0: one block of data
	sum   uint64 // of the data
}

// segment is the head of a segment. Its blocks follow it in the file.
type segment struct {
	seq     uint64
	durable int64 // bytes of the file that were durable when it was written
	entries []entry
}

// headLen returns the bytes of the head of a segment with n entries.
func headLen(n int) int64 {
	return (segmentFixed + int64(n)*entryBytes + sectorSize - 1) / sectorSize * sectorSize
}

// blocks returns how many blocks of data follow the head.
func (s *segment) blocks() int64 {
	n := int64(0)
	for i := range s.entries {
		if s.entries[i].count == 0 {
			n++
		}
	}
	return n
}

// bytes returns the length of head and data.
func (s *segment) bytes() int64 { return headLen(len(s.entries)) + s.blocks()*blockSize }

// appendHead appends the encoded head.
func (s *segment) appendHead(b []byte, file uint64) []byte {
	at := len(b)
	b = append(b, make([]byte, headLen(len(s.entries)))...)
	h := b[at:]
	copy(h, segmentMagic[:])
	le.PutUint64(h[8:], file)
	le.PutUint64(h[16:], s.seq)
	le.PutUint64(h[24:], uint64(s.durable))
	le.PutUint32(h[32:], uint32(len(s.entries)))
	for i, e := range s.entries {
		x := h[segmentFixed+i*entryBytes:]
		if e.count > 0 {
			le.PutUint64(x, uint64(e.block)|zeroEntry)
			le.PutUint64(x[8:], uint64(e.count))
			continue
		}
		le.PutUint64(x, uint64(e.block))
		le.PutUint64(x[8:], e.sum)
	}
	le.PutUint64(h[40:], headSum(h))
	return b
}

// headSum is the XXH64 of a head without the digest itself.
func headSum(h []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	d.Write(h[:40])
	d.Write(h[48:])
	return d.Sum64()
}

// headSize reads the length of a head from its first segmentFixed bytes; false when
// these are no head of the file.
func headSize(h []byte, file uint64) (int64, bool) {
	n := le.Uint32(h[32:])
	if [8]byte(h) != segmentMagic || le.Uint64(h[8:]) != file || n == 0 || n > segmentMax {
		return 0, false
	}
	return headLen(int(n)), true
}

// decodeSegment reads a whole head of a volume of so many blocks.
func decodeSegment(h []byte, file uint64, blocks int64) (s segment, ok bool) {
	size, ok := headSize(h, file)
	if !ok || int64(len(h)) != size || le.Uint64(h[40:]) != headSum(h) {
		return s, false
	}
	s.seq, s.durable = le.Uint64(h[16:]), int64(le.Uint64(h[24:]))
	for i := range int(le.Uint32(h[32:])) {
		x := h[segmentFixed+i*entryBytes:]
		e := entry{block: int64(le.Uint64(x) &^ zeroEntry), sum: le.Uint64(x[8:])}
		if le.Uint64(x)&zeroEntry != 0 {
			e.count, e.sum = int64(e.sum), 0
			if e.count <= 0 || e.count > segmentMax {
				return s, false
			}
		}
		if e.block >= blocks || max(e.count, 1) > blocks-e.block {
			return s, false
		}
		s.entries = append(s.entries, e)
	}
	return s, true
}

// digest is a block's XXH64, seeded so that a block of another place or file is
// never taken for it.
func digest(file uint64, block int64, data []byte) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(file + uint64(block))
	d.Write(data)
	return d.Sum64()
}
