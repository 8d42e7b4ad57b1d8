package archive

import (
	"maps"
	"slices"
)

// place is where a block's content is.
type place struct {
	pos int64 // in the file; noPlace or zeroPlace
	sum uint64
}

const (
	noPlace   = 0
	zeroPlace = 1 // the block held zeroes
)

const chunkBlocks = 64

// index finds a block's content: 16 bytes a block where blocks lie together, at
// most 1 KiB and a map's entry where they do not.
type index struct {
	chunks map[int64]*[chunkBlocks]place
	count  int64
}

func newIndex() *index { return &index{chunks: map[int64]*[chunkBlocks]place{}} }

// at returns a block's place; pos is noPlace when it is not archived.
func (x *index) at(block int64) place {
	if c := x.chunks[block/chunkBlocks]; c != nil {
		return c[block%chunkBlocks]
	}
	return place{}
}

func (x *index) has(block int64) bool { return x.at(block).pos != noPlace }

// put adds a block unless it is there: the first content counts.
func (x *index) put(block int64, p place) {
	c := x.chunks[block/chunkBlocks]
	if c == nil {
		c = new([chunkBlocks]place)
		x.chunks[block/chunkBlocks] = c
	}
	if c[block%chunkBlocks].pos == noPlace {
		c[block%chunkBlocks] = p
		x.count++
	}
}

// add puts the blocks of a segment that begins at pos.
func (x *index) add(s *segment, pos int64) {
	pos += headLen(len(s.entries))
	for _, e := range s.entries {
		if e.count > 0 {
			for i := range e.count {
				x.put(e.block+i, place{pos: zeroPlace})
			}
			continue
		}
		x.put(e.block, place{pos, e.sum})
		pos += blockSize
	}
}

// sorted returns the chunks in ascending order.
func (x *index) sorted() []int64 { return slices.Sorted(maps.Keys(x.chunks)) }
