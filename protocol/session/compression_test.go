package session

import "testing"

func TestParseCompression(t *testing.T) {
	for _, c := range []Compression{NoCompression, Zstd} {
		if got, err := ParseCompression(c.String()); got != c || err != nil {
			t.Errorf("%v came back as %v, %v", c, got, err)
		}
	}
	for _, s := range []string{"", "ZSTD", "lz4", Compression(7).String()} {
		if c, err := ParseCompression(s); err == nil {
			t.Errorf("%q parsed as %v", s, c)
		}
	}
}
