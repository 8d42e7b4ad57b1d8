package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/crash"
	"github.com/qrbd/qrbd/protocol"
)

var (
	chaosSeed  = flag.Int64("chaos.seed", 0, "run TestChaos with this seed only")
	chaosCount = flag.Int("chaos.count", 3, "seeds that TestChaos runs for each protocol")
)

// TestChaos runs real volumes, with real goroutines, through lost links, killed
// processes, power cuts, failovers and switchovers under load, and checks what was
// acknowledged against what the survivor holds. tests/sim does the same, and
// worse, in one goroutine; this is for what only concurrency shows. Run it with
// -race.
func TestChaos(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeB, protocol.ModeA} {
		for i := range *chaosCount {
			seed := int64(i + 1)
			if *chaosSeed != 0 {
				seed = *chaosSeed
			}
			t.Run(fmt.Sprintf("%s/%d", mode, seed), func(t *testing.T) { newChaos(t, mode, seed).run() })
		}
	}
}

const (
	chaosBlocks  = 256
	chaosWriters = 4
	chaosStride  = 17 * 4096 // spreads the blocks over several extents
)

// chaos is one run.
type chaos struct {
	t       *testing.T
	c       *cluster
	r       *rand.Rand
	seed    int64
	primary string

	pause   sync.RWMutex // writers hold it for reading while a request is out
	stop    atomic.Bool
	blocks  [chaosBlocks]chaosBlock
	written atomic.Int64
}

// chaosBlock is what one block may hold. Each has one writer at a time.
type chaosBlock struct {
	mu      sync.Mutex
	issued  uint64 // newest stamp handed to the volume
	acked   uint64 // newest stamp acknowledged
	flushed uint64 // newest stamp covered by an acknowledged flush
}

func newChaos(t *testing.T, mode protocol.Mode, seed int64) *chaos {
	var compressed func() bool
	if seed%2 == 0 {
		compressed = mostly()
	}
	x := &chaos{t: t, c: packing(t, chaosBlocks*chaosStride+4096, mode, compressed, "alpha", "beta"), r: rand.New(rand.NewSource(seed)), seed: seed, primary: "alpha"}
	for i, n := range x.c.names {
		x.c.kill(n)
		x.c.nodes[n].store = crash.New(x.c.nodes[n].store, uint64(seed)*2+uint64(i))
	}
	for _, n := range x.c.names {
		x.c.start(n)
	}
	x.c.promote("alpha", PromoteOptions{Force: true})
	x.c.synced("alpha", "beta")
	return x
}

func (x *chaos) other() string {
	if x.primary == "alpha" {
		return "beta"
	}
	return "alpha"
}

func (x *chaos) run() {
	var wg sync.WaitGroup
	for w := range chaosWriters {
		wg.Add(1)
		go func() {
			defer wg.Done()
			x.writer(w)
		}()
	}
	for range 8 {
		time.Sleep(time.Duration(x.r.Intn(40)) * time.Millisecond)
		x.episode()
	}
	x.stop.Store(true)
	wg.Wait()
	x.settle()
	if x.written.Load() == 0 {
		x.t.Error("nothing was written")
	}
}

// writer writes its blocks with rising stamps, and flushes now and then.
func (x *chaos) writer(w int) {
	r := rand.New(rand.NewSource(x.seed*100 + int64(w)))
	stamp := uint64(w)
	for !x.stop.Load() {
		x.pause.RLock()
		if r.Intn(8) == 0 {
			x.flush()
		} else {
			stamp += chaosWriters
			x.write(r.Intn(chaosBlocks/chaosWriters)*chaosWriters+w, stamp, r.Intn(10) == 0)
		}
		x.pause.RUnlock()
	}
}

// submit sends a request to the primary; false: no answer, or an error, and what
// became of it is unknown.
func (x *chaos) submit(req *blockdev.Request) bool {
	v := x.c.v(x.primary)
	if v == nil {
		time.Sleep(time.Millisecond)
		return false
	}
	done := make(chan error, 1)
	req.Done = func(_ *blockdev.Request, err error) { done <- err }
	v.Submit(req)
	select {
	case err := <-done:
		return err == nil
	case <-v.stop:
		return false
	}
}

func stampOf(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func (x *chaos) write(block int, stamp uint64, fua bool) {
	b := &x.blocks[block]
	b.mu.Lock()
	b.issued = stamp
	b.mu.Unlock()
	buf := blockdev.NewBuffer(4096)
	for i := 0; i < 4096; i += 8 {
		binary.LittleEndian.PutUint64(buf.Bytes()[i:], stamp)
	}
	req := &blockdev.Request{Op: blockdev.OpWrite, Off: int64(block) * chaosStride, Len: 4096, Buf: buf}
	if fua {
		req.Flags = blockdev.FUA
	}
	if !x.submit(req) {
		return
	}
	x.written.Add(1)
	b.mu.Lock()
	b.acked = stamp
	if fua {
		b.flushed = stamp
	}
	b.mu.Unlock()
}

func (x *chaos) flush() {
	var acked [chaosBlocks]uint64
	for i := range x.blocks {
		x.blocks[i].mu.Lock()
		acked[i] = x.blocks[i].acked
		x.blocks[i].mu.Unlock()
	}
	if !x.submit(&blockdev.Request{Op: blockdev.OpFlush}) {
		return
	}
	for i := range x.blocks {
		x.blocks[i].mu.Lock()
		x.blocks[i].flushed = max(x.blocks[i].flushed, acked[i])
		x.blocks[i].mu.Unlock()
	}
}

// quiet runs fn while no request is under way.
func (x *chaos) quiet(fn func()) {
	x.pause.Lock()
	defer x.pause.Unlock()
	fn()
}

func (x *chaos) power(name string) {
	n := x.c.nodes[name]
	d, err := n.store.(*crash.Device).Crash()
	if err != nil {
		x.t.Fatal(err)
	}
	n.store = d
	n.meta.mu.Lock()
	copy(n.meta.now, n.meta.synced)
	n.meta.mu.Unlock()
}

// episode is one misfortune and the recovery from it.
func (x *chaos) episode() {
	c, p, s := x.c, x.primary, x.other()
	what := x.r.Intn(7)
	cut := x.r.Intn(2) == 0 // the power, not only the process
	switch what {
	case 0: // a link that comes back
		c.part(p, s)
		time.Sleep(time.Duration(x.r.Intn(30)) * time.Millisecond)
		c.heal(p, s)
	case 1: // a link that is lost again during the resync
		for range 3 {
			c.part(p, s)
			time.Sleep(time.Duration(x.r.Intn(20)) * time.Millisecond)
			c.heal(p, s)
			time.Sleep(time.Duration(x.r.Intn(10)) * time.Millisecond)
		}
	case 2: // the secondary dies
		c.kill(s)
		if cut {
			x.power(s)
		}
		time.Sleep(time.Duration(x.r.Intn(30)) * time.Millisecond)
		c.start(s)
	case 3, 4: // the primary dies, the secondary takes over
		x.failover(p, s, cut)
	case 5: // planned
		x.quiet(func() {
			x.synced()
			if err := c.v(p).Switchover(context.Background(), s); err != nil {
				x.t.Fatalf("switchover: %v", err)
			}
			x.primary = s
		})
	case 6: // both lose power
		x.bothDie(p, s)
	}
	x.quiet(func() {
		x.synced()
		x.check(x.primary, true)
	})
}

func (x *chaos) synced() {
	x.t.Helper()
	x.c.synced(x.primary, x.other())
}

func (x *chaos) failover(p, s string, cut bool) {
	c := x.c
	x.quiet(func() { x.synced() }) // so that the survivor has everything
	if c.mode == protocol.ModeA {
		x.quiet(func() {
			x.flush()
			c.await(p, func(st Status) bool { return peerOf(st, s).UnackedOps == 0 })
			c.kill(p) // before anything is flushed that the other has not got
		})
	} else {
		c.kill(p) // under load: writers fail until the other is primary
	}
	x.quiet(func() {
		if cut {
			x.power(p)
		}
		c.promote(s, PromoteOptions{PeerFenced: true})
		x.primary = s
		x.check(s, c.mode == protocol.ModeC)
		x.adopt()
	})
	time.Sleep(time.Duration(x.r.Intn(20)) * time.Millisecond)
	c.start(p)
}

func (x *chaos) bothDie(p, s string) {
	c := x.c
	x.quiet(func() { x.synced() })
	c.kill(s)
	c.kill(p)
	x.quiet(func() {
		x.power(p)
		x.power(s)
		c.start(p)
		c.start(s)
		// Either may be promoted once they have settled it.
		c.synced(p, s)
		if x.r.Intn(2) == 0 {
			x.primary = s
		}
		c.promote(x.primary, PromoteOptions{})
		x.checkFlushed()
		x.adopt()
	})
}

// adopt takes what the disk shows as the truth from here on: writes that were
// never acknowledged may have happened or not.
func (x *chaos) adopt() {
	for i := range x.blocks {
		s := x.read(x.primary, i)
		x.blocks[i].acked, x.blocks[i].issued = s, s
		x.blocks[i].flushed = min(x.blocks[i].flushed, s)
	}
}

func (x *chaos) read(node string, block int) uint64 {
	x.t.Helper()
	buf := blockdev.NewBuffer(4096)
	if err := x.c.do(node, &blockdev.Request{Op: blockdev.OpRead, Off: int64(block) * chaosStride, Len: 4096, Buf: buf}); err != nil {
		x.t.Fatal(errors.Join(errors.New("read on "+node), err))
	}
	b := buf.Bytes()
	for s := 0; s < 4096; s += 512 {
		for i := s; i < s+512; i += 8 {
			if stampOf(b[i:]) != stampOf(b[s:]) {
				x.t.Fatalf("block %d on %s: sector %d is torn", block, node, s/512)
			}
		}
	}
	return stampOf(b)
}

// check reads every block from the primary: each holds an acknowledged stamp or a
// later one. exact: nothing may be missing.
func (x *chaos) check(node string, exact bool) {
	x.t.Helper()
	for i := range x.blocks {
		b := &x.blocks[i]
		low := b.acked
		if !exact {
			low = b.flushed
		}
		if s := x.read(node, i); s < low || s > b.issued {
			x.t.Fatalf("seed %d: block %d on %s holds stamp %d; acknowledged %d, flushed %d, issued %d", x.seed, i, node, s, b.acked, b.flushed, b.issued)
		}
	}
}

func (x *chaos) checkFlushed() { x.t.Helper(); x.check(x.primary, false) }

// settle ends a run: both replicas are equal, byte for byte.
func (x *chaos) settle() {
	x.synced()
	x.c.flush(x.primary)
	x.c.await(x.primary, func(s Status) bool { return peerOf(s, x.other()).UnackedOps == 0 })
	x.check(x.primary, true)
	x.c.equal("alpha", "beta")
}
