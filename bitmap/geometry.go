package bitmap

// Units of tracking.
const (
	BlockSize       = 4096                             // bytes; one bit of a Set
	ExtentSize      = 4 << 20                          // bytes; one bit of the Activity
	BlocksPerExtent = ExtentSize / BlockSize           // 1,024
	ExtentsPerPage  = 31                               // extents whose blocks one page of a Set covers
	BlocksPerPage   = ExtentsPerPage * BlocksPerExtent // 31,744
	PageBytes       = BlocksPerPage / 8                // 3,968: a 4,096-byte disk page less a 128-byte header
	WordsPerPage    = PageBytes / 8                    // 496

	// ExtentsPerActivityPage is how many extents one page of the Activity
	// covers: 31,744, that is 124 GiB.
	ExtentsPerActivityPage = PageBytes * 8
)

// Blocks returns the number of blocks of a volume of size bytes, the last
// partial one included.
func Blocks(size int64) int64 { return divUp(size, BlockSize) }

// Extents returns the number of extents of a volume of size bytes, the last
// partial one included.
func Extents(size int64) int64 { return divUp(size, ExtentSize) }

// Touched returns the blocks [from, to) that the byte range [off, off+n) has at
// least one byte in. An empty range touches none.
func Touched(off, n int64) (from, to int64) {
	if n <= 0 {
		return off / BlockSize, off / BlockSize
	}
	return off / BlockSize, (off+n-1)/BlockSize + 1
}

// Covered returns the blocks [from, to) that lie wholly inside the byte range
// [off, off+n) of a volume of size bytes. The volume's last partial block counts
// as whole when the range reaches the volume's end. None: from == to.
func Covered(off, n, size int64) (from, to int64) {
	from = divUp(off, BlockSize)
	if off+n >= size {
		to = Blocks(size)
	} else {
		to = (off + n) / BlockSize
	}
	if n <= 0 || to < from {
		to = from
	}
	return from, to
}

func divUp(n, d int64) int64 {
	if n <= 0 {
		return 0
	}
	return (n-1)/d + 1
}
