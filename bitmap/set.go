package bitmap

import (
	"errors"
	"fmt"
	"math/bits"
)

// ErrRange: words or a page hold bits beyond the end of the set. Nothing was
// changed.
var ErrRange = errors.New("bits beyond the end of the bitmap")

type page [WordsPerPage]uint64

// fullPage stands for every page whose bits are all set. It is never modified.
var fullPage = func() *page {
	p := new(page)
	for i := range p {
		p[i] = ^uint64(0)
	}
	return p
}()

// Set is a set of blocks [0, Blocks). Ranges are half-open block numbers; a
// range outside the set panics, an empty one (from >= to) does nothing.
type Set struct {
	blocks  int64
	count   int64
	pages   []*page  // nil: no bit set; fullPage: all set (only for whole pages)
	counts  []uint16 // set bits of each page
	changed []uint64 // a bit per page
	spare   *page    // one page kept so that a page that comes and goes costs no allocation
}

// NewSet returns an empty set of the given number of blocks.
func NewSet(blocks int64) *Set {
	if blocks < 0 {
		panic(fmt.Sprintf("bitmap: NewSet(%d)", blocks))
	}
	n := divUp(blocks, BlocksPerPage)
	return &Set{
		blocks:  blocks,
		pages:   make([]*page, n),
		counts:  make([]uint16, n),
		changed: make([]uint64, divUp(n, 64)),
	}
}

// Blocks returns the number of blocks that the set ranges over.
func (s *Set) Blocks() int64 { return s.blocks }

// Count returns the number of blocks in the set. It costs nothing.
func (s *Set) Count() int64 { return s.count }

// Pages returns the number of pages.
func (s *Set) Pages() int64 { return int64(len(s.pages)) }

// Words returns the number of 64-bit words: word i covers blocks [64*i, 64*i+64).
func (s *Set) Words() int64 { return divUp(s.blocks, 64) }

// Set adds [from, to) and returns how many blocks were not in the set before.
func (s *Set) Set(from, to int64) (added int64) {
	s.check(from, to)
	for from < to {
		p := from / BlocksPerPage
		end := min(to, (p+1)*BlocksPerPage)
		added += s.setInPage(p, from-p*BlocksPerPage, end-p*BlocksPerPage)
		from = end
	}
	s.count += added
	return added
}

// SetAll adds every block.
func (s *Set) SetAll() { s.Set(0, s.blocks) }

// Clear takes [from, to) out and returns how many blocks were in the set.
func (s *Set) Clear(from, to int64) (removed int64) {
	s.check(from, to)
	for from < to {
		p := from / BlocksPerPage
		end := min(to, (p+1)*BlocksPerPage)
		removed += s.clearInPage(p, from-p*BlocksPerPage, end-p*BlocksPerPage)
		from = end
	}
	s.count -= removed
	return removed
}

// Test reports whether block b is in the set.
func (s *Set) Test(b int64) bool {
	s.check(b, b+1)
	pg := s.pages[b/BlocksPerPage]
	return pg != nil && pg[b%BlocksPerPage/64]>>(uint(b)%64)&1 != 0
}

// Any reports whether some block of [from, to) is in the set.
func (s *Set) Any(from, to int64) bool {
	s.check(from, to)
	if from >= to {
		return false
	}
	return s.find(from, to, 0) < to
}

// Next returns the next run of blocks in the set at or after from, at most max
// blocks long. n is zero when there is none, when from is at or beyond the end,
// or when max is not positive. A run may go over page borders. REQUIRES: from is
// not negative.
func (s *Set) Next(from, max int64) (start, n int64) {
	if max <= 0 {
		return 0, 0
	}
	start = s.find(from, s.blocks, 0)
	if start >= s.blocks {
		return 0, 0
	}
	limit := s.blocks
	if max < limit-start {
		limit = start + max
	}
	return start, s.find(start, limit, ^uint64(0)) - start
}

// find returns the first block of [b, limit) whose bit differs from those of
// skip (0: the first set block; all ones: the first clear one), or limit.
func (s *Set) find(b, limit int64, skip uint64) int64 {
	for b < limit {
		p := b / BlocksPerPage
		end := min((p+1)*BlocksPerPage, limit)
		pg := s.pages[p]
		switch {
		case pg == nil && skip == 0, pg == fullPage && skip != 0:
			b = end
			continue
		case pg == nil, pg == fullPage:
			return b
		}
		for b < end {
			w := (pg[b%BlocksPerPage/64] ^ skip) >> (uint(b) % 64)
			if w != 0 {
				return min(b+int64(bits.TrailingZeros64(w)), limit)
			}
			b = (b/64 + 1) * 64
		}
	}
	return limit
}

func (s *Set) check(from, to int64) {
	if from < to && (from < 0 || to > s.blocks) {
		panic(fmt.Sprintf("bitmap: range [%d, %d) outside [0, %d)", from, to, s.blocks))
	}
}

// size returns the number of blocks that page p covers.
func (s *Set) size(p int64) int64 { return min(BlocksPerPage, s.blocks-p*BlocksPerPage) }

// setInPage sets [from, to), relative to page p, and returns how many were clear.
func (s *Set) setInPage(p, from, to int64) (added int64) {
	pg := s.pages[p]
	if pg == fullPage {
		return 0
	}
	if to-from == BlocksPerPage {
		added = BlocksPerPage - int64(s.counts[p])
		s.replace(p, fullPage)
	} else {
		if pg == nil {
			pg = s.alloc()
			s.pages[p] = pg
		}
		for from < to {
			i, mask, next := span(from, to)
			added += int64(bits.OnesCount64(mask &^ pg[i]))
			pg[i] |= mask
			from = next
		}
	}
	s.grow(p, added)
	return added
}

// clearInPage clears [from, to), relative to page p, and returns how many were set.
func (s *Set) clearInPage(p, from, to int64) (removed int64) {
	pg := s.pages[p]
	if pg == nil {
		return 0
	}
	if to-from == s.size(p) {
		removed = int64(s.counts[p])
	} else {
		if pg == fullPage {
			pg = s.alloc()
			*pg = *fullPage
			s.pages[p] = pg
		}
		for from < to {
			i, mask, next := span(from, to)
			removed += int64(bits.OnesCount64(mask & pg[i]))
			pg[i] &^= mask
			from = next
		}
	}
	if removed == 0 {
		return 0
	}
	s.counts[p] -= uint16(removed)
	if s.counts[p] == 0 {
		s.replace(p, nil)
	}
	s.mark(p)
	return removed
}

// grow accounts for bits added to page p, which is not full before.
func (s *Set) grow(p, added int64) {
	if added == 0 {
		return
	}
	s.counts[p] += uint16(added)
	if s.counts[p] == BlocksPerPage {
		s.replace(p, fullPage)
	}
	s.mark(p)
}

// span returns the word of block from, the mask of [from, to) in it, and the
// first block after that word or to.
func span(from, to int64) (word int64, mask uint64, next int64) {
	word = from / 64
	next = min((word+1)*64, to)
	return word, (^uint64(0) >> (64 - uint(next-from))) << (uint(from) % 64), next
}

func (s *Set) alloc() *page {
	if pg := s.spare; pg != nil {
		s.spare = nil
		*pg = page{}
		return pg
	}
	return new(page)
}

func (s *Set) replace(p int64, pg *page) {
	if old := s.pages[p]; old != nil && old != fullPage {
		s.spare = old
	}
	s.pages[p] = pg
}

func (s *Set) mark(p int64) { s.changed[p/64] |= 1 << (uint(p) % 64) }
