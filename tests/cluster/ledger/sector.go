package ledger

import (
	"bytes"
	"encoding/binary"
)

// sectorSize is the unit that a disk writes whole or not at all, in bytes.
const sectorSize = 512

// magic starts every written sector.
const magic = 0x7172_6264_4c44_4752 // "qrbdLDGR"

// A written sector, big-endian:
//
//	offset size
//	     0    8 magic
//	     8    8 ledger id
//	    16    8 sector number on the disk
//	    24    8 stamp
//	    32  480 words of splitmix64 seeded by the three above

// fill writes the sector's content into p, sectorSize bytes.
func fill(p []byte, id, sector, stamp uint64) {
	be := binary.BigEndian
	be.PutUint64(p[0:], magic)
	be.PutUint64(p[8:], id)
	be.PutUint64(p[16:], sector)
	be.PutUint64(p[24:], stamp)
	x := id ^ sector*0x9e37_79b9_7f4a_7c15 ^ stamp*0xbf58_476d_1ce4_e5b9
	for i := 32; i < sectorSize; i += 8 {
		x += 0x9e37_79b9_7f4a_7c15
		z := (x ^ x>>30) * 0xbf58_476d_1ce4_e5b9
		z = (z ^ z>>27) * 0x94d0_49bb_1331_11eb
		be.PutUint64(p[i:], z^z>>31)
	}
}

// content says what a sector read from a disk is.
type content uint8

const (
	written content = iota // whole, with a stamp of this ledger and at its place
	zero
	torn      // this ledger's header, but not the bytes that follow from it
	misplaced // whole, but it belongs to another sector
	foreign   // not written by this ledger
)

func (c content) String() string {
	switch c {
	case written:
		return "written"
	case zero:
		return "zero"
	case torn:
		return "torn"
	case misplaced:
		return "misplaced"
	case foreign:
		return "foreign"
	}
	return "invalid"
}

var zeroSector [sectorSize]byte

// identify tells what p, read from the given sector, is, and its stamp.
func identify(p []byte, id, sector uint64) (content, uint64) {
	be := binary.BigEndian
	if be.Uint64(p) != magic || be.Uint64(p[8:]) != id {
		if bytes.Equal(p, zeroSector[:]) {
			return zero, 0
		}
		return foreign, 0
	}
	at, stamp := be.Uint64(p[16:]), be.Uint64(p[24:])
	var want [sectorSize]byte
	fill(want[:], id, at, stamp)
	switch {
	case !bytes.Equal(p, want[:]):
		return torn, stamp
	case at != sector:
		return misplaced, stamp
	}
	return written, stamp
}
