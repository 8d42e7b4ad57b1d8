package archive

import (
	"errors"
	"fmt"
	"io"
)

// scanned is what a file holds.
type scanned struct {
	header Header
	state  state
	index  *index
	end    int64  // of the last good segment
	seq    uint64 // its sequence
	tail   int64  // from here on nothing says that it was durable
	bytes  int64  // of data
	damage error  // nil: none. What was archived after it may be lost
}

func blocksOf(size int64) int64 { return (size + blockSize - 1) / blockSize }

// scan reads a file of size bytes. An error means that it is no archive, or that
// its header or state is unreadable; damage behind those is in the result. It
// allocates in proportion to what it finds.
func scan(r io.ReaderAt, size int64) (*scanned, error) {
	head := make([]byte, dataAt)
	if n, err := r.ReadAt(head, 0); n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: it has %d bytes", ErrNotArchive, size)
		}
		return nil, fmt.Errorf("reading an archive: %w", err)
	}
	s := &scanned{index: newIndex(), end: dataAt}
	var err error
	if s.header, err = decodeHeader(head); err != nil {
		return nil, err
	}
	found := false
	for i := range int64(2) {
		st, ok := decodeState(head[stateAt+i*stateBytes:stateAt+(i+1)*stateBytes], s.header.File)
		if ok && (!found || st.seq > s.state.seq) {
			s.state, found = st, true
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: neither copy of its state is good", ErrDamaged)
	}
	return s, s.segments(r, size)
}

// segments reads heads until one is not good, then the data of those that nothing
// says were durable.
func (s *scanned) segments(r io.ReaderAt, size int64) error {
	s.tail = s.state.end
	var loose []int64 // where segments begin, newest last, that may not have been durable
	var seqs []uint64
	head := make([]byte, headLen(segmentMax))
	for {
		seg, n, err := s.head(r, s.end, size, head)
		if err != nil {
			return err
		}
		if seg == nil || seg.seq != s.seq+1 {
			break
		}
		if seg.durable > s.tail && seg.durable <= s.end {
			s.tail = seg.durable
		}
		loose, seqs = append(loose, s.end), append(seqs, s.seq)
		for len(loose) > 0 && loose[0] < s.tail {
			loose, seqs = loose[1:], seqs[1:]
		}
		s.end, s.seq = s.end+n, seg.seq
	}
	for i, at := range loose {
		good, err := s.verify(r, at, size, head)
		if err != nil {
			return err
		}
		if !good { // torn: it never counted
			s.end, s.seq = at, seqs[i]
			break
		}
	}
	lost, err := s.durableAfter(r, size, head)
	if err != nil {
		return err
	}
	if lost > s.end {
		s.damage = fmt.Errorf("%w: the segment at byte %d does not read back, and was on stable storage", ErrDamaged, s.end)
	}
	return s.load(r, size, head)
}

// head reads the head of the segment at a place; nil when there is none.
func (s *scanned) head(r io.ReaderAt, at, size int64, buf []byte) (*segment, int64, error) {
	if at+sectorSize > size {
		return nil, 0, nil
	}
	if _, err := r.ReadAt(buf[:sectorSize], at); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("reading an archive at byte %d: %w", at, err)
	}
	n, ok := headSize(buf, s.header.File)
	if !ok || at+n > size {
		return nil, 0, nil
	}
	if n > sectorSize {
		if _, err := r.ReadAt(buf[sectorSize:n], at+sectorSize); err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, fmt.Errorf("reading an archive at byte %d: %w", at, err)
		}
	}
	seg, ok := decodeSegment(buf[:n], s.header.File, blocksOf(s.header.Size))
	if !ok || at+seg.bytes() > size {
		return nil, 0, nil
	}
	return &seg, seg.bytes(), nil
}

// verify reports whether the data of a segment is all there.
func (s *scanned) verify(r io.ReaderAt, at, size int64, buf []byte) (bool, error) {
	seg, _, err := s.head(r, at, size, buf)
	if seg == nil || err != nil {
		return false, err
	}
	data := make([]byte, blockSize)
	at += headLen(len(seg.entries))
	for _, e := range seg.entries {
		if e.count > 0 {
			continue
		}
		if _, err := r.ReadAt(data, at); err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("reading an archive at byte %d: %w", at, err)
		}
		if digest(s.header.File, e.block, data) != e.sum {
			return false, nil
		}
		at += blockSize
	}
	return true, nil
}

// durableAfter returns up to where the file is known to have been durable, from the
// state and from what stands behind the last good segment.
func (s *scanned) durableAfter(r io.ReaderAt, size int64, buf []byte) (int64, error) {
	known := s.tail
	for at := s.end; at+sectorSize <= size; {
		seg, n, err := s.head(r, at, size, buf)
		if err != nil {
			return 0, err
		}
		if seg == nil {
			at += sectorSize
			continue
		}
		if seg.seq > s.seq {
			known = max(known, seg.durable)
		}
		at += n
	}
	return known, nil
}

// load builds the index of the good segments.
func (s *scanned) load(r io.ReaderAt, size int64, buf []byte) error {
	for at := int64(dataAt); at < s.end; {
		seg, n, err := s.head(r, at, size, buf)
		if err != nil {
			return err
		}
		if seg == nil {
			return fmt.Errorf("%w: the segment at byte %d reads differently the second time", ErrDamaged, at)
		}
		s.index.add(seg, at)
		s.bytes += seg.blocks() * blockSize
		at += n
	}
	return nil
}
