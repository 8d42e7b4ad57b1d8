package volume

import (
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// BenchmarkReplicatedWrite is a 4 KiB write through two volumes over loopback, one
// at a time; allocations are those of both nodes together.
func BenchmarkReplicatedWrite(b *testing.B) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeA} {
		b.Run(mode.String(), func(b *testing.B) {
			const size = 64 << 20
			c := newCluster(b, size, mode, "alpha", "beta")
			c.promote("alpha", PromoteOptions{Force: true})
			c.synced("alpha", "beta")
			v := c.v("alpha")
			done := make(chan error, 1)
			buf := blockdev.NewBuffer(4096)
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
