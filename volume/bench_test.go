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

// TestSteadyWriteAllocatesNothing: a replicated write takes no memory of its own on either node once pools, maps and stores are warm.
func TestSteadyWriteAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops what pools keep")
	}
	const size, mean = 8 << 20, 4096
	c := newCluster(t, size, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	v := c.v("alpha")
	done := make(chan error, 1)
	r := &blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: blockdev.NewBuffer(4096), Done: func(_ *blockdev.Request, err error) { done <- err }}
	i := 0
	write := func() {
		r.Off = int64(i%(size/4096)) * 4096
		i++
		v.Submit(r)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * size / 4096 {
		write()
	}
	// The mean of many, rounded down: time alone (a tick, a flush of the primary's own) takes a little now and then.
	if n := testing.AllocsPerRun(mean, write); n > 0 {
		t.Errorf("%v allocations for each write, on both nodes together", n)
	}
}
