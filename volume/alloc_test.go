//go:build !race

package volume

import (
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress/compresstest"
)

// TestWriteAllocates: a replicated 4 KiB write, counted in every stage on both nodes,
// allocates nothing, compressed or not. (The race detector's sync.Pool forgets on purpose.)
func TestWriteAllocates(t *testing.T) {
	t.Run("none", func(t *testing.T) { writeAllocates(t, nil) })
	t.Run("zstd", func(t *testing.T) { writeAllocates(t, always) })
}

func writeAllocates(t *testing.T, compressed func() bool) {
	const size = 16 << 20
	c := packing(t, size, protocol.ModeC, compressed, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	v := c.v("alpha")
	done := make(chan error, 1)
	r := &blockdev.Request{Op: blockdev.OpWrite, Len: 4096, Buf: blockdev.NewBuffer(4096), Done: func(_ *blockdev.Request, err error) { done <- err }}
	copy(r.Buf.Bytes(), compresstest.Pages(1, 4096))
	i := 0
	write := func() {
		r.Off = int64(i%(size/4096)) * 4096
		i++
		v.Submit(r)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for range size / 4096 { // stores and maps are warm
		write()
	}
	before := v.meter.Snapshot().Peers["beta"].Remote["write"].Count
	if n := testing.AllocsPerRun(4096, write); n != 0 {
		t.Errorf("%v allocations for each write", n)
	}
	if counted := v.meter.Snapshot().Peers["beta"].Remote["write"].Count - before; counted < 4096 {
		t.Errorf("only %d writes were counted", counted)
	}
	if saved := v.meter.Snapshot().Peers["beta"].SentSaved; (saved > 0) != (compressed != nil) {
		t.Errorf("%d bytes saved", saved)
	}
}
