package linear

import "encoding/binary"

// blockSize is the register's size, bytes; a sector is what a disk writes whole.
const (
	blockSize  = 4096
	sectorSize = 512
)

// fill writes the content of a block that holds the value. Value 0 is zeroes. Each
// sector is the value, big-endian, and words that follow from it, its block and its
// place, so that no mixture looks whole.
func fill(p []byte, block int, value uint64) {
	if value == 0 {
		clear(p)
		return
	}
	for at := 0; at < len(p); at += 8 {
		w := value
		if at%sectorSize != 0 {
			w = mix(value ^ uint64(block)<<40 ^ uint64(at)<<20)
		}
		binary.BigEndian.PutUint64(p[at:], w)
	}
}

// identify returns the value that the block holds; whole is false when it is no
// value's content.
func identify(p []byte, block int) (value uint64, whole bool) {
	value = binary.BigEndian.Uint64(p)
	for at := 8; at < len(p); at += 8 {
		w := value
		if value != 0 && at%sectorSize != 0 {
			w = mix(value ^ uint64(block)<<40 ^ uint64(at)<<20)
		}
		if binary.BigEndian.Uint64(p[at:]) != w {
			return value, false
		}
	}
	return value, true
}

// mix is the finaliser of splitmix64. Source: Steele, Lea, Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014.
func mix(x uint64) uint64 {
	x += 0x9e37_79b9_7f4a_7c15
	x = (x ^ x>>30) * 0xbf58_476d_1ce4_e5b9
	x = (x ^ x>>27) * 0x94d0_49bb_1331_11eb
	return x ^ x>>31
}
