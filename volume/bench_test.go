package volume

import (
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
)

// BenchmarkReplicatedWrite is a 4 KiB write through two volumes over loopback, one
// at a time, of a page of a database; allocations are those of both nodes together.
func BenchmarkReplicatedWrite(b *testing.B) {
	for _, how := range []struct {
		name       string
		mode       protocol.Mode
		compressed func() bool
	}{{"C", protocol.ModeC, nil}, {"A", protocol.ModeA, nil}, {"C zstd", protocol.ModeC, always}} {
		b.Run(how.name, func(b *testing.B) {
			const size = 64 << 20
			c := packing(b, size, how.mode, how.compressed, "alpha", "beta")
			c.promote("alpha", PromoteOptions{Force: true})
			c.synced("alpha", "beta")
			v := c.v("alpha")
			done := make(chan error, 1)
			buf := blockdev.NewBuffer(4096)
			copy(buf.Bytes(), compresstest.Pages(1, 4096))
			r := &blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: buf, Done: func(_ *blockdev.Request, err error) { done <- err }}
			write := func(i int) {
				r.Off = int64(i%(size/4096)) * 4096
				v.Submit(r)
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			for i := range size / 4096 { // stores and maps are warm
				write(i)
			}
			b.SetBytes(4096)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				write(i)
				i++
			}
		})
	}
}

// BenchmarkDigest is what comparing a block by digest costs the CPU, on either side.
func BenchmarkDigest(b *testing.B) {
	run := make([]byte, 256<<10)
	var digests []uint64
	b.SetBytes(int64(len(run)))
	b.ReportAllocs()
	seed := uint64(0)
	for b.Loop() {
		digests = appendDigests(digests[:0], run, seed)
		seed++
	}
}
