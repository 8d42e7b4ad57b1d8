package session

import "fmt"

// Compression is what becomes of payloads that this node sends to a peer.
type Compression uint8

// Compressions.
const (
	NoCompression Compression = iota
	Zstd                      // they are compressed, as far as the peer expands that
)

// String returns the word of the configuration.
func (c Compression) String() string {
	switch c {
	case NoCompression:
		return "none"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("invalid(%d)", uint8(c))
}

// ParseCompression is the inverse of String.
func ParseCompression(s string) (Compression, error) {
	for _, c := range []Compression{NoCompression, Zstd} {
		if c.String() == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("%q is not a compression: write \"none\" or \"zstd\"", s)
}
