package volume

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

// TestNothingIsLostWithoutWaiting: a stream that has no room right now gets the
// frame later, and in its place.
func TestNothingIsLostWithoutWaiting(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeA} {
		for _, writers := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", mode, writers), func(t *testing.T) {
				c := newCluster(t, testSize, mode)
				c.tries = new(atomic.Int64)
				c.startPair()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() { c.randomWrites("alpha", int64(w), 200) })
				}
				wg.Wait()
				c.flush("alpha")
				s := c.await("alpha", func(s Status) bool { return peerOf(s, "beta").UnackedOps == 0 })
				if s := peerOf(s, "beta"); s.Connection != "connected" || s.OutOfSync != 0 {
					t.Errorf("the connection was lost: %+v", s)
				}
				c.equal("alpha", "beta")
				if c.tries.Load() == 0 {
					t.Error("nothing was tried")
				}
			})
		}
	}
}
