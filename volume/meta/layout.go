package meta

import (
	"fmt"

	"github.com/qrbd/qrbd/bitmap"
)

// Geometry of the file; see docs/ONDISK.md.
const (
	// SizeMax is the largest volume: 64 TiB, whose metadata spans 62 GiB of sparse
	// file and at most 400 MiB of memory with every extent active.
	SizeMax = 64 << 40

	pageSize    = 4096
	headerBytes = pageSize - bitmap.PageBytes // 128
	pairSize    = 2 * pageSize

	peersMax   = 15 // bitmap regions
	superPair  = 0
	fixedPairs = 8 // super and 7 reserved
	// runPages of one peer's bitmap lie together (64 KiB), then the next peer's:
	// short runs keep the file of a small volume small, and growing a volume only
	// appends.
	runPages = 8
	// segmentPages: an activity page covers 31,744 extents, that is the extents of
	// 1,024 bitmap pages.
	segmentPages = bitmap.ExtentsPerActivityPage / bitmap.ExtentsPerPage
	segmentPairs = 1 + segmentPages*peersMax // 15,361
)

// kind says what a page holds.
type kind uint8

const (
	kindSuper kind = iota + 1
	kindActivity
	kindBitmap
)

// pageID names a logical page.
type pageID struct {
	kind  kind
	slot  int // peer slot of a bitmap page
	index int64
}

func (id pageID) String() string {
	switch id.kind {
	case kindSuper:
		return "superblock"
	case kindActivity:
		return fmt.Sprintf("activity page %d", id.index)
	case kindBitmap:
		return fmt.Sprintf("bitmap page %d of peer slot %d", id.index, id.slot)
	}
	return fmt.Sprintf("page of kind %d", id.kind)
}

// layout is where a volume's pages are.
type layout struct {
	size     int64 // of the volume
	blocks   int64
	extents  int64
	bitmap   int64 // bitmap pages per peer
	activity int64 // activity pages
	pairs    int64
}

func newLayout(size int64) layout {
	l := layout{size: size, blocks: bitmap.Blocks(size), extents: bitmap.Extents(size)}
	l.bitmap = (l.blocks + bitmap.BlocksPerPage - 1) / bitmap.BlocksPerPage
	l.activity = (l.extents + bitmap.ExtentsPerActivityPage - 1) / bitmap.ExtentsPerActivityPage
	runs := (l.bitmap + runPages - 1) / runPages
	l.pairs = fixedPairs + l.activity + runs*runPages*peersMax
	return l
}

// bytes returns the length of the file.
func (l layout) bytes() int64 { return l.pairs * pairSize }

// pair returns where a page is. REQUIRES: the page exists.
func (l layout) pair(id pageID) int64 {
	switch id.kind {
	case kindSuper:
		return superPair
	case kindActivity:
		return fixedPairs + id.index*segmentPairs
	case kindBitmap:
		segment, page := id.index/segmentPages, id.index%segmentPages
		run := page/runPages*peersMax + int64(id.slot)
		return fixedPairs + segment*segmentPairs + 1 + run*runPages + page%runPages
	}
	panic(fmt.Sprintf("meta: pair of %v", id))
}

// page is the inverse of pair; false for reserved pairs and those that only fill
// up the last run.
func (l layout) page(pair int64) (pageID, bool) {
	if pair == superPair {
		return pageID{kind: kindSuper}, true
	}
	if pair < fixedPairs || pair >= l.pairs {
		return pageID{}, false
	}
	segment, rest := (pair-fixedPairs)/segmentPairs, (pair-fixedPairs)%segmentPairs
	if rest == 0 {
		return pageID{kind: kindActivity, index: segment}, segment < l.activity
	}
	run, page := (rest-1)/runPages, (rest-1)%runPages
	id := pageID{kind: kindBitmap, slot: int(run % peersMax)}
	id.index = segment*segmentPages + run/peersMax*runPages + page
	return id, id.index < l.bitmap
}

// bits returns how many bits of a page's content may be set.
func (l layout) bits(id pageID) int64 {
	switch id.kind {
	case kindActivity:
		return min(bitmap.ExtentsPerActivityPage, l.extents-id.index*bitmap.ExtentsPerActivityPage)
	case kindBitmap:
		return min(bitmap.BlocksPerPage, l.blocks-id.index*bitmap.BlocksPerPage)
	}
	panic(fmt.Sprintf("meta: bits of %v", id))
}

// clearFrom reports whether no bit at or after n is set in b.
func clearFrom(b []byte, n int64) bool {
	for i := n / 8; i < int64(len(b)); i++ {
		v := b[i]
		if i == n/8 {
			v >>= uint(n % 8)
		}
		if v != 0 {
			return false
		}
	}
	return true
}
