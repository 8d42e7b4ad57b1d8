package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume/meta"
)

// owner is a client that alone writes a part of the volume, and knows what is in it.
type owner struct {
	c    *cluster
	r    *rand.Rand
	off  int64
	want []byte
}

// step does one request and looks at what it reads.
func (w *owner) step() error {
	n := 512 * (1 + w.r.Intn(64))
	at := w.r.Intn((len(w.want)-n)/512) * 512
	req := &blockdev.Request{Off: w.off + int64(at), Len: int64(n)}
	switch k := w.r.Intn(20); {
	case k == 0:
		return w.c.do("alpha", &blockdev.Request{Op: blockdev.OpFlush})
	case k < 8:
		req.Op, req.Buf = blockdev.OpRead, blockdev.NewBuffer(n)
		if err := w.c.do("alpha", req); err != nil {
			return err
		}
		if !bytes.Equal(req.Buf.Bytes()[:n], w.want[at:at+n]) {
			return errors.New("read something else than what was written")
		}
		return nil
	case k < 10:
		req.Op = blockdev.OpZero
		clear(w.want[at : at+n])
	default:
		req.Op, req.Buf = blockdev.OpWrite, blockdev.NewBuffer(n)
		if k < 12 {
			req.Flags = blockdev.FUA
		}
		w.r.Read(w.want[at : at+n/2])
		clear(w.want[at+n/2 : at+n]) // compresses
		copy(req.Buf.Bytes(), w.want[at:at+n])
	}
	return w.c.do("alpha", req)
}

// owners is some at work, until stop.
type owners struct {
	list  []*owner
	wg    sync.WaitGroup
	done  atomic.Bool
	steps atomic.Int64
}

func startOwners(c *cluster) *owners {
	const count = 6
	o := &owners{}
	part := c.size / count / 4096 * 4096
	for i := range int64(count) {
		w := &owner{c, rand.New(rand.NewSource(i)), i * part, make([]byte, min(part, 512<<10))}
		if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpZero, Off: w.off, Len: int64(len(w.want))}); err != nil {
			c.t.Fatal(err)
		}
		o.list = append(o.list, w)
		o.wg.Go(func() {
			for !o.done.Load() {
				if err := w.step(); err != nil {
					c.t.Errorf("a client of %d: %v", w.off, err)
					return
				}
				o.steps.Add(1)
			}
		})
	}
	return o
}

// more waits until the clients have done so many more requests.
func (o *owners) more(c *cluster, n int64) {
	c.t.Helper()
	from := o.steps.Load()
	c.await("alpha", func(Status) bool { return o.steps.Load() >= from+n || c.t.Failed() })
}

func (o *owners) stop() {
	o.done.Store(true)
	o.wg.Wait()
}

// on compares a store with what the clients know; under A a peer may be behind.
func (o *owners) on(c *cluster, name string) {
	c.t.Helper()
	c.await(name, func(Status) bool {
		for _, w := range o.list {
			b := make([]byte, len(w.want))
			if err := c.nodes[name].store.ReadAt(b, w.off); err != nil {
				c.t.Fatal(err)
			}
			if !bytes.Equal(b, w.want) {
				return false
			}
		}
		return true
	})
}

// TestDiskless: the primary's disk fails under load, by a write or by a flush, in C
// and in A. No request fails, what is read is what was written, everything is on the
// peer; then the disk is replaced under the same load, and both are equal.
func TestDiskless(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeA} {
		for name, op := range map[string]blockdev.Op{"write": blockdev.OpWrite, "flush": blockdev.OpFlush} {
			t.Run(mode.String()+" "+name, func(t *testing.T) {
				c := packing(t, testSize, mode, mostly(), "alpha", "beta")
				d := c.faulty("alpha")
				c.promote("alpha", PromoteOptions{Force: true})
				c.synced("alpha", "beta")
				o := startOwners(c)
				defer o.stop()
				o.more(c, 100)
				d.Set(fault.Rule{Op: op, Action: fault.Error})
				c.await("alpha", func(s Status) bool { return s.Disk == "failed" })
				o.more(c, 300)
				if s := c.v("alpha").Status(); s.Role != "primary" {
					t.Errorf("without its disk: %+v", s)
				}
				c.replace("alpha")
				c.synced("alpha", "beta")
				o.more(c, 100)
				o.stop()
				c.flush("alpha")
				o.on(c, "alpha")
				o.on(c, "beta")
				c.equal("alpha", "beta")
				if a, b := c.counted("alpha", "beta").SentSaved, c.counted("beta", "alpha").SentSaved; a == 0 || b == 0 {
					t.Errorf("%d and %d bytes saved: nothing was compressed", a, b)
				}
			})
		}
	}
}

// replace gives a primary an empty disk in place of the failed one.
func (c *cluster) replace(name string) {
	c.t.Helper()
	n := c.nodes[name]
	err := c.v(name).ReplaceDisk(context.Background(), func() (Disk, error) {
		start, total, err := meta.Format(&meta.Super{Size: c.size, Node: name, Name: "crm", Disk: protocol.Inconsistent}, randomID())
		if err != nil {
			return Disk{}, err
		}
		n.store = blockdev.NewMemory(c.size)
		n.meta = &memStorage{now: make([]byte, total), synced: make([]byte, total)}
		copy(n.meta.now, start)
		file, state, err := meta.Open(n.meta)
		return Disk{Store: keepOpen{n.store}, Meta: file, State: state}, err
	})
	if err != nil {
		c.t.Fatalf("replace the disk of %s: %v", name, err)
	}
}

// TestReadRepair: what the primary's disk cannot read is read from the peer, and
// written anew, while clients go on.
func TestReadRepair(t *testing.T) {
	c, d := faultyPair(t, "alpha")
	o := startOwners(c)
	defer o.stop()
	for range 10 {
		o.more(c, 30)
		d.Set(fault.Rule{Op: blockdev.OpRead, Action: fault.Error, Count: 3})
		o.more(c, 30)
	}
	o.stop()
	if d.Hit() == 0 {
		t.Error("no read failed")
	}
	// What is bad in one place is written there again, from the peer.
	want := fill(7, 64<<10)
	c.write("alpha", 8<<20, want, blockdev.FUA)
	d.Set(fault.Rule{Op: blockdev.OpRead, Action: fault.Error, Count: 1})
	clobbered := make([]byte, len(want))
	if err := d.WriteAt(clobbered, 8<<20, 0); err != nil {
		t.Fatal(err)
	}
	b := blockdev.NewBuffer(len(want))
	if err := c.do("alpha", &blockdev.Request{Op: blockdev.OpRead, Off: 8 << 20, Len: int64(len(want)), Buf: b}); err != nil || !bytes.Equal(b.Bytes()[:len(want)], want) {
		t.Errorf("read of a bad place: %v", err)
	}
	c.await("alpha", func(Status) bool {
		got := make([]byte, len(want))
		return d.ReadAt(got, 8<<20) == nil && bytes.Equal(got, want)
	})
	if s := c.v("alpha").Status(); s.Disk != "up-to-date" {
		t.Errorf("after repairs: %+v", s)
	}
	c.flush("alpha")
	o.on(c, "alpha")
	o.on(c, "beta")
	c.equal("alpha", "beta")
}
