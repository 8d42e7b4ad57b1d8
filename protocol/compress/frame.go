package compress

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Blocks of a Zstandard frame: a header of 3 bytes (bit 0 last, bits 1 and 2 the type,
// then the size), little-endian. Source: RFC 8878 section 3.1.1.2.
const (
	blockHeader = 3
	blockMax    = 128 << 10 // bytes, of any block's content
)

const (
	rawBlock = iota
	repeatedBlock
	compressedBlock
)

var errShort = errors.New("it ends in the middle of a block")

// checkFrame says why b is not one frame that names n as the length of its content: nothing
// is allocated for it and nothing expanded. A decoder by itself would take any number of
// frames, also ones that hold nothing.
func checkFrame(b []byte, n int) error {
	var h zstd.Header
	switch err := h.Decode(b); {
	case err != nil:
		return err
	case h.Skippable:
		return errors.New("a frame to be skipped")
	case h.DictionaryID != 0:
		return fmt.Errorf("dictionary %d is not known", h.DictionaryID)
	case h.HasCheckSum:
		return errors.New("a checksum where none belongs")
	case !h.HasFCS || h.FrameContentSize != uint64(n):
		return fmt.Errorf("its content has %d bytes, not %d", h.FrameContentSize, n)
	}
	rest, err := skipBlocks(b[h.HeaderSize:], n)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow the frame", len(rest))
	}
	return err
}

// skipBlocks returns what follows the last block. Of blocks whose content is not
// compressed the sum is at most n.
func skipBlocks(b []byte, n int) ([]byte, error) {
	for {
		if len(b) < blockHeader {
			return nil, errShort
		}
		v := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		last, size := v&1 == 1, v>>3
		if size > blockMax {
			return nil, fmt.Errorf("a block of %d bytes", size)
		}
		b = b[blockHeader:]
		takes := size
		switch v >> 1 & 3 {
		case rawBlock:
			n -= size
		case repeatedBlock:
			n -= size
			takes = 1
		case compressedBlock:
		default:
			return nil, errors.New("a block of a reserved type")
		}
		if n < 0 {
			return nil, errors.New("its blocks hold more than it says")
		}
		if len(b) < takes {
			return nil, errShort
		}
		if b = b[takes:]; last {
			return b, nil
		}
	}
}
