package meta

import (
	"bytes"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

const (
	version = 1

	// superSeed seeds the checksums of the super page; all other pages are seeded
	// with the file's id, so that no page of another file is ever taken for one.
	superSeed = 0
)

var magic = [8]byte{'Q', 'R', 'B', 'D', 'M', 'E', 'T', 'A'}

// Offsets in a page's header, little endian. The header has a checksum of its
// own, so that a damaged page can still say when it was written; its place and
// that of the version hold for all versions.
const (
	atMagic     = 0   // 8
	atVersion   = 8   // 2
	atKind      = 10  // 1
	atMirror    = 11  // 1: 1 = written after the other slot, with its content, was durable
	atSlot      = 12  // 2
	atIndex     = 16  // 8
	atSequence  = 24  // 8
	atFile      = 32  // 8
	atHeaderSum = 112 // 8: XXH64 of [0, 112)
	atPageSum   = 120 // 8: XXH64 of [0, 120) and [128, 4096)
)

// seal writes the header of a page whose content is in place.
func seal(p []byte, id pageID, file, seq uint64, mirror bool) {
	clear(p[:headerBytes])
	copy(p[atMagic:], magic[:])
	binary.LittleEndian.PutUint16(p[atVersion:], version)
	p[atKind] = byte(id.kind)
	if mirror {
		p[atMirror] = 1
	}
	binary.LittleEndian.PutUint16(p[atSlot:], uint16(id.slot))
	binary.LittleEndian.PutUint64(p[atIndex:], uint64(id.index))
	binary.LittleEndian.PutUint64(p[atSequence:], seq)
	binary.LittleEndian.PutUint64(p[atFile:], file)
	resum(p, seedOf(id, file))
}

// resum computes both checksums.
func resum(p []byte, seed uint64) {
	binary.LittleEndian.PutUint64(p[atHeaderSum:], sum(seed, p[:atHeaderSum], nil))
	binary.LittleEndian.PutUint64(p[atPageSum:], sum(seed, p[:atPageSum], p[headerBytes:]))
}

func seedOf(id pageID, file uint64) uint64 {
	if id.kind == kindSuper {
		return superSeed
	}
	return file
}

func sum(seed uint64, a, b []byte) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(seed)
	d.Write(a)
	d.Write(b)
	return d.Sum64()
}

// condition is what can be told of one slot by itself.
type condition uint8

const (
	blank  condition = iota // all zero: never written
	intact                  // checksums hold and it is the page that belongs here
	dated                   // bad, but its header says when it was written
	broken                  // bad altogether
)

// copyState is what one slot of a pair holds.
type copyState struct {
	condition condition
	seq       uint64 // of intact and dated
	mirror    bool   // of intact
}

// judge tells what a slot holds. file is 0 for the super page, whose file id is
// not known yet.
func judge(p []byte, id pageID, file uint64) copyState {
	if isZero(p) {
		return copyState{condition: blank}
	}
	seed := seedOf(id, file)
	if !headerHolds(p, seed) || binary.LittleEndian.Uint16(p[atVersion:]) != version ||
		p[atKind] != byte(id.kind) || p[atMirror] > 1 ||
		binary.LittleEndian.Uint16(p[atSlot:]) != uint16(id.slot) ||
		binary.LittleEndian.Uint64(p[atIndex:]) != uint64(id.index) ||
		id.kind != kindSuper && binary.LittleEndian.Uint64(p[atFile:]) != file {
		return copyState{condition: broken}
	}
	c := copyState{condition: intact, seq: binary.LittleEndian.Uint64(p[atSequence:]), mirror: p[atMirror] == 1}
	if binary.LittleEndian.Uint64(p[atPageSum:]) != sum(seed, p[:atPageSum], p[headerBytes:]) {
		c.condition = dated
	}
	return c
}

func hasMagic(p []byte) bool { return bytes.Equal(p[atMagic:atMagic+8], magic[:]) }

func headerHolds(p []byte, seed uint64) bool {
	return hasMagic(p) && binary.LittleEndian.Uint64(p[atHeaderSum:]) == sum(seed, p[:atHeaderSum], nil)
}

var zeroes [pairSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroes[:len(p)]) }

// verdict is what is to be believed of a pair.
type verdict struct {
	valid   int    // slot to believe; -1: none
	damaged bool   // the newest content is lost; valid, if any, is older
	settled bool   // both slots hold the same, or nothing
	bad     bool   // a slot is neither blank nor intact, whatever the reason
	next    uint64 // slot that the next commit writes
}

// decide judges a pair by its two slots. top is the highest sequence that any
// intact or dated page of the file has. What can and what cannot happen to a
// slot by a crash alone is in doc.go; a table of the cases in docs/ONDISK.md.
func decide(slots [2]copyState, top uint64) verdict {
	v := verdict{valid: -1}
	for i, s := range slots {
		if s.condition == intact && (v.valid < 0 || newer(s, slots[v.valid])) {
			v.valid = i
		}
		v.bad = v.bad || s.condition == dated || s.condition == broken
	}
	if v.valid < 0 {
		first, second := slots[0], slots[1]
		switch {
		case !v.bad:
			v.settled = true // never written
		case first.condition == dated && first.seq == top, first.condition == broken:
			v.damaged = second.condition != blank // a first write, torn
		default:
			v.damaged = true
		}
		return v
	}
	good, other := slots[v.valid], slots[1-v.valid]
	v.settled = other.condition == intact && other.seq == good.seq && other.mirror != good.mirror
	v.next = uint64(1 - v.valid)
	// A commit with a higher sequence has started, so the other slot's commit was
	// durable: it is no torn write.
	if other.condition == dated && other.seq > good.seq && other.seq < top {
		v.damaged = true
		v.next = uint64(v.valid) // until it is overwritten the bad slot is the evidence
	}
	return v
}

// newer says that a is to be believed rather than b. Of equal ones it is the
// first written: it is known to be durable.
func newer(a, b copyState) bool {
	if a.seq != b.seq {
		return a.seq > b.seq
	}
	return b.mirror && !a.mirror
}
