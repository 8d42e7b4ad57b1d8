package compresstest_test

import (
	"bytes"
	"testing"

	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
)

// TestKinds: what is measured with them means what is said of them.
func TestKinds(t *testing.T) {
	z := compress.New(1)
	for _, n := range []int{compresstest.PageSize, 256 << 10} {
		a := compresstest.Pages(1, n)
		if len(a) != n || !bytes.Equal(a, compresstest.Pages(1, n)) || bytes.Equal(a, compresstest.Pages(2, n)) {
			t.Errorf("%d bytes: pages are not a function of the seed", n)
		}
		if part := float64(len(z.Compress(nil, a))) / float64(n); part < 0.3 || part > 0.5 {
			t.Errorf("%d bytes: pages compress to %.2f", n, part)
		}
		if got := len(z.Compress(nil, compresstest.Noise(1, n))); got < n {
			t.Errorf("%d bytes: noise compresses to %d", n, got)
		}
	}
}
