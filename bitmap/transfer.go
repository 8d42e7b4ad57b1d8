package bitmap

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// AppendWords appends words [first, first+count) to dst, fewer where the set
// ends.
func (s *Set) AppendWords(dst []uint64, first int64, count int) []uint64 {
	if first < 0 || count < 0 {
		panic(fmt.Sprintf("bitmap: words [%d, +%d)", first, count))
	}
	end := s.Words()
	if int64(count) < end-first {
		end = first + int64(count)
	}
	for w := first; w < end; {
		p := w / WordsPerPage
		i := w % WordsPerPage
		n := min(WordsPerPage-i, end-w)
		if pg := s.pages[p]; pg != nil {
			dst = append(dst, pg[i:i+n]...)
		} else {
			dst = append(dst, zeroPage[:n]...)
		}
		w += n
	}
	return dst
}

var zeroPage page

// OrWords adds the blocks of words [first, first+len(words)) and returns how
// many were not in the set before. Words or bits beyond the end of the set are
// ErrRange and change nothing.
func (s *Set) OrWords(first int64, words []uint64) (added int64, err error) {
	total := s.Words()
	if first < 0 || first > total || int64(len(words)) > total-first {
		return 0, fmt.Errorf("words [%d, +%d) of %d: %w", first, len(words), total, ErrRange)
	}
	if n := len(words); n > 0 && first+int64(n) == total && words[n-1]&^lastMask(s.blocks) != 0 {
		return 0, fmt.Errorf("word %#x at %d of %d blocks: %w", words[n-1], total-1, s.blocks, ErrRange)
	}
	for k := 0; k < len(words); {
		w := first + int64(k)
		p, i := w/WordsPerPage, w%WordsPerPage
		n := int(min(WordsPerPage-i, int64(len(words)-k)))
		added += s.orInPage(p, i, words[k:k+n])
		k += n
	}
	s.count += added
	return added, nil
}

func (s *Set) orInPage(p, i int64, words []uint64) (added int64) {
	pg := s.pages[p]
	if pg == fullPage {
		return 0
	}
	for k, w := range words {
		if w == 0 {
			continue
		}
		if pg == nil {
			pg = s.alloc()
			s.pages[p] = pg
		}
		at := &pg[i+int64(k)]
		added += int64(bits.OnesCount64(w &^ *at))
		*at |= w
	}
	s.grow(p, added)
	return added
}

// NextWord returns the index of the first word at or after from that is not
// zero, or -1.
func (s *Set) NextWord(from int64) int64 {
	from = max(from, 0)
	if from >= s.Words() {
		return -1
	}
	b := s.find(from*64, s.blocks, 0)
	if b >= s.blocks {
		return -1
	}
	return b / 64
}

// lastMask returns the bits of the last word of a set that may be set.
func lastMask(blocks int64) uint64 { return ^uint64(0) >> (uint(-blocks) % 64) }

// ChangedPages appends the pages that have changed since they were last taken,
// ascending, and marks them taken. Whoever takes them writes them, or puts them
// back with MarkChanged.
func (s *Set) ChangedPages(dst []int64) []int64 {
	for i, w := range s.changed {
		for ; w != 0; w &= w - 1 {
			dst = append(dst, int64(i)*64+int64(bits.TrailingZeros64(w)))
		}
		s.changed[i] = 0
	}
	return dst
}

// AnyChanged reports whether ChangedPages would return a page.
func (s *Set) AnyChanged() bool {
	for _, w := range s.changed {
		if w != 0 {
			return true
		}
	}
	return false
}

// PageChanged reports whether the page has changes that were not yet taken. A
// page that was taken and is still being written is not changed.
func (s *Set) PageChanged(page int64) bool {
	return s.changed[page/64]>>(uint(page)%64)&1 != 0
}

// MarkChanged marks a page changed, to be used after its write failed.
func (s *Set) MarkChanged(page int64) {
	if page < 0 || page >= s.Pages() {
		panic(fmt.Sprintf("bitmap: page %d of %d", page, s.Pages()))
	}
	s.mark(page)
}

// MarkAllChanged counts every page that has a bit set as changed: they are to be
// written to a place that has none of them.
func (s *Set) MarkAllChanged() {
	for p := range s.Pages() {
		if from := p * BlocksPerPage; s.Any(from, from+s.size(p)) {
			s.mark(p)
		}
	}
}

// AppendPage appends the page's PageBytes bytes: block b of the page is bit b%8
// of byte b/8. Bits beyond the end of the set are zero.
func (s *Set) AppendPage(dst []byte, page int64) []byte {
	pg := s.pages[page]
	if pg == nil {
		pg = &zeroPage
	}
	for _, w := range pg {
		dst = binary.LittleEndian.AppendUint64(dst, w)
	}
	return dst
}

// LoadPage replaces the page's bits by those of b, PageBytes long, and does not
// mark it changed. Bits beyond the end of the set are ErrRange and change
// nothing.
func (s *Set) LoadPage(page int64, b []byte) error {
	if len(b) != PageBytes || page < 0 || page >= s.Pages() {
		panic(fmt.Sprintf("bitmap: load of %d bytes as page %d of %d", len(b), page, s.Pages()))
	}
	pg := s.alloc()
	var count int64
	for i := range pg {
		pg[i] = binary.LittleEndian.Uint64(b[8*i:])
		count += int64(bits.OnesCount64(pg[i]))
	}
	if !clearBeyond(pg, s.size(page)) {
		s.spare = pg
		return fmt.Errorf("page %d of %d blocks: %w", page, s.blocks, ErrRange)
	}
	s.count += count - int64(s.counts[page])
	s.counts[page] = uint16(count)
	switch count {
	case 0:
		s.replace(page, nil)
		s.spare = pg
	case BlocksPerPage:
		s.replace(page, fullPage)
		s.spare = pg
	default:
		s.replace(page, pg)
	}
	return nil
}

// clearBeyond reports whether no bit at or after n is set.
func clearBeyond(pg *page, n int64) bool {
	for i := n / 64; i < WordsPerPage; i++ {
		w := pg[i]
		if i == n/64 {
			w >>= uint(n) % 64
		}
		if w != 0 {
			return false
		}
	}
	return true
}
