package volume

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/protocol"
)

// faulty puts a fault device under a node that is restarted for it.
func (c *cluster) faulty(name string) *fault.Device {
	c.t.Helper()
	c.kill(name)
	d := fault.New(c.nodes[name].store, 1)
	c.nodes[name].store = d
	c.start(name)
	return d
}

func (c *cluster) try(name string, op blockdev.Op, off, n int64) error {
	r := &blockdev.Request{Op: op, Off: off, Len: n}
	if op == blockdev.OpWrite || op == blockdev.OpRead {
		r.Buf = blockdev.NewBuffer(int(n))
	}
	return c.do(name, r)
}

// faultyPair is two nodes in sync, alpha primary, with the store of one under
// faults.
func faultyPair(t *testing.T, name string) (*cluster, *fault.Device) {
	t.Helper()
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	d := c.faulty(name)
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.randomWrites("alpha", 1, 20)
	return c, d
}

// released checks that every buffer came back.
func (c *cluster) released(name string, pool *blockdev.Pool) {
	c.t.Helper()
	for range 2000 {
		if pool.Out() == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.t.Errorf("%s: %d bytes of buffers are still out", name, pool.Out())
}

// TestPeerThatStops: a connected peer stops, in each way in which it can.
// The write under way completes without it, in bounded time.
func TestPeerThatStops(t *testing.T) {
	cases := []struct {
		name string
		mode protocol.Mode
		run  func(p *rawPeer)
	}{
		{"reads and never acknowledges", protocol.ModeC, func(p *rawPeer) { p.drain() }},
		{"never reads", protocol.ModeC, func(*rawPeer) {}},
		{"never reads, protocol A", protocol.ModeA, func(*rawPeer) {}},
		{"applies and never flushes", protocol.ModeC, func(p *rawPeer) {
			go func() {
				for {
					m, err := p.next()
					if err != nil {
						return
					}
					if d, ok := m.(*protocol.Data); ok && d.Op == protocol.DataWrite {
						p.send(&protocol.Ack{Received: d.Seq, Applied: d.Seq}, nil)
					}
				}
			}()
		}},
		{"never confirms a generation", protocol.ModeC, func(p *rawPeer) { p.drain() }},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := lonely(t, tc.mode, "alpha")
			pool := blockdev.NewPool(64 << 20)
			p := rawTo(t, c, "alpha", "beta")
			p.hello("beta", func(h *protocol.Hello) { h.Disk = protocol.Consistent })
			v := expect[*protocol.Verdict](p)
			if v.Strategy != protocol.TargetBitmap && v.Strategy != protocol.NoSync {
				t.Fatalf("verdict %v by %s", v.Strategy, v.Rule)
			}
			if v.Strategy == protocol.TargetBitmap {
				p.send(&protocol.BitmapDone{}, nil)
				expect[*protocol.SyncStart](p)
				p.send(&protocol.SyncReady{}, nil)
			}
			tc.run(p)
			var wg sync.WaitGroup
			begun := time.Now()
			for i := range 40 {
				wg.Go(func() {
					b := pool.Get(1<<20, nil)
					defer b.Release()
					r := &blockdev.Request{Op: blockdev.OpWrite, Off: int64(i) << 20, Len: 1 << 20, Buf: b}
					if i%8 == 7 {
						r.Flags = blockdev.FUA
					}
					if err := c.do("alpha", r); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if err := c.try("alpha", blockdev.OpFlush, 0, 0); err != nil {
				t.Error(err)
			}
			t.Log("took", time.Since(begun))
			c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Connection != "connected" })
			c.released("clients", pool)
		})
	}
}

// TestPeerThatAsksAndDoesNotListen: answers do not pile up.
func TestPeerThatAsksAndDoesNotListen(t *testing.T) {
	c := lonely(t, protocol.ModeC, "beta")
	p := rawTo(t, c, "beta", "alpha")
	p.asPrimary("alpha")
	frame := protocol.AppendFrame(nil, &protocol.PromoteAsk{ID: 1}, nil)
	var many []byte
	for range 1000 {
		many = append(many, frame...)
	}
	p.write.SetWriteDeadline(time.Now().Add(15 * time.Second))
	v := c.v("beta")
	for range 20000 {
		v.mu.Lock()
		if l := v.links[0]; l != nil && len(l.queue) > wordsMax {
			t.Errorf("%d answers are queued", len(l.queue))
		}
		v.mu.Unlock()
		if _, err := p.write.Write(many); err != nil {
			break
		}
	}
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Connection != "connected" })
}

// TestSecondaryStoreHangs: the primary goes on without it; what hung lands on
// nothing newer when it comes back; the node closes in bounded time.
func TestSecondaryStoreHangs(t *testing.T) {
	c, d := faultyPair(t, "beta")
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang, Count: 1})
	begun := time.Now()
	c.write("alpha", 0, fill(5, 4096), 0)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the write took %v", took)
	}
	c.write("alpha", 0, fill(6, 4096), 0)
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Connection != "connected" })
	err := c.v("beta").Promote(context.Background(), PromoteOptions{PeerFenced: true})
	if err == nil || !strings.Contains(err.Error(), "has not finished a write") {
		t.Errorf("promoted over a write that hangs: %v", err)
	}
	time.Sleep(500 * time.Millisecond)
	if s := c.v("beta").Status(); peerOf(s, "alpha").Connection == "connected" {
		t.Errorf("connected while the old connection's write hangs: %+v", s)
	}
	d.Set()
	c.synced("alpha", "beta")
	c.flush("alpha")
	c.equal("alpha", "beta")
}

// TestPrimaryStoreHangs: the volume still answers for itself, notices its peer, and
// closes in bounded time.
func TestPrimaryStoreHangs(t *testing.T) {
	c, d := faultyPair(t, "alpha")
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang}, fault.Rule{Op: blockdev.OpFlush, Action: fault.Hang})
	results := make(chan error, 64)
	for i := range 32 { // overlapping in pairs, so that acknowledgements issue some
		go func() { results <- c.try("alpha", blockdev.OpWrite, int64(i/2)*4096, 4096) }()
	}
	time.Sleep(1200 * time.Millisecond) // the volume's own flush hangs too
	c.part("alpha", "beta")
	c.heal("alpha", "beta")
	c.await("alpha", func(s Status) bool { return s.InFlight > 0 && peerOf(s, "beta").Connection == "connected" })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	begun := time.Now()
	if err := c.v("alpha").Close(ctx); err == nil {
		t.Error("closed, and the store hangs")
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("Close took %v", took)
	}
	d.Set()
	for range 32 {
		select {
		case <-results:
		case <-time.After(10 * time.Second):
			t.Fatal("a request was never answered")
		}
	}
	if err := c.v("alpha").Close(context.Background()); err != nil {
		t.Error("second Close:", err)
	}
}

// TestAcknowledgedIntoAHang: the peer's answer lets a write go to a store that
// hangs by now. Whoever brought the answer must not hang with it.
func TestAcknowledgedIntoAHang(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	da, db := c.faulty("alpha"), c.faulty("beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.randomWrites("alpha", 1, 20)
	db.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
	done := make(chan error, 2)
	go func() { done <- c.try("alpha", blockdev.OpWrite, 0, 4096) }()
	c.await("alpha", func(s Status) bool { return s.InFlight == 1 && db.Waiting() == 1 })
	go func() { done <- c.try("alpha", blockdev.OpWrite, 0, 4096) }() // waits for the first
	time.Sleep(50 * time.Millisecond)
	da.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
	db.Set()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.await("alpha", func(Status) bool { return da.Waiting() == 1 })
	c.part("alpha", "beta")
	c.heal("alpha", "beta")
	c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Connection == "connected" })
	da.Set()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.synced("alpha", "beta")
}

// TestNoGenerationComes: a write is still with the local store when the peer that
// has not answered it is lost and the metadata fails.
func TestNoGenerationComes(t *testing.T) {
	c := newCluster(t, testSize, protocol.ModeC, "alpha", "beta")
	da, db := c.faulty("alpha"), c.faulty("beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	c.randomWrites("alpha", 1, 20)
	da.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
	db.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
	done := make(chan error, 1)
	go func() { done <- c.try("alpha", blockdev.OpWrite, 0, 4096) }()
	c.await("alpha", func(Status) bool { return da.Waiting() == 1 && db.Waiting() == 1 })
	c.nodes["alpha"].meta.fail(errors.New("gone"))
	c.part("alpha", "beta")
	go c.try("alpha", blockdev.OpWrite, 8<<20, 4096) // begins a generation
	c.await("alpha", func(s Status) bool { return s.Disk == "failed" })
	da.Set()
	db.Set()
	select {
	case err := <-done:
		if !errors.Is(err, blockdev.ErrFailed) {
			t.Errorf("write: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the write was never answered")
	}
}

// TestMetadataFails: who waits for it gets an answer; the agent survives and says
// why.
func TestMetadataFails(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	c.randomWrites("alpha", 1, 20)
	c.part("alpha", "beta")
	c.nodes["alpha"].meta.fail(errors.New("metadata disk on fire"))
	var others sync.WaitGroup
	for i := range 8 { // needs a generation and new extents
		others.Go(func() { c.try("alpha", blockdev.OpWrite, int64(i)*5<<20, 4096) })
	}
	if err := c.try("alpha", blockdev.OpWrite, 40<<20, 4096); !errors.Is(err, blockdev.ErrFailed) {
		t.Errorf("a write that the metadata cannot cover: %v", err)
	}
	others.Wait()
	s := c.await("alpha", func(s Status) bool { return s.Disk == "failed" && s.InFlight == 0 })
	if !strings.Contains(s.Reason, "on fire") {
		t.Errorf("reason %q", s.Reason)
	}
	if err := c.try("alpha", blockdev.OpRead, 0, 4096); !errors.Is(err, blockdev.ErrFailed) {
		t.Errorf("read: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.v("alpha").Demote(ctx); err != nil {
		t.Error("demote:", err)
	}
	if err := c.v("alpha").Promote(ctx, PromoteOptions{Force: true}); err == nil {
		t.Error("promoted with a failed disk")
	}
	if err := c.v("alpha").Close(ctx); err != nil && ctx.Err() != nil {
		t.Error("close:", err)
	}
}

// TestMetadataFailsWithWritesOut: the same while writes wait for a peer that is
// lost at that moment.
func TestMetadataFailsWithWritesOut(t *testing.T) {
	c, d := faultyPair(t, "beta")
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang})
	done := make(chan error, 16)
	for i := range 16 {
		go func() { done <- c.try("alpha", blockdev.OpWrite, int64(i)*4096, 4096) }()
	}
	c.await("alpha", func(s Status) bool { return s.InFlight >= 16 })
	c.nodes["alpha"].meta.fail(errors.New("gone"))
	c.mu.Lock()
	c.cut[pair("alpha", "beta")] = true
	for _, s := range c.conns[pair("alpha", "beta")] {
		s.Abort()
	}
	c.mu.Unlock()
	for range 16 {
		select {
		case err := <-done:
			if !errors.Is(err, blockdev.ErrFailed) {
				t.Errorf("acknowledged under a generation that is not durable: %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Fatal("a write was never answered")
		}
	}
	d.Set()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.v("alpha").Demote(ctx); err != nil {
		t.Error("demote:", err)
	}
}

// TestStoreErrors: no space is the request's, a read error the peer's to make good; a
// failed flush is the disk's.
func TestStoreErrors(t *testing.T) {
	t.Run("read", func(t *testing.T) {
		c, d := faultyPair(t, "alpha")
		d.Set(fault.Rule{Op: blockdev.OpRead, Action: fault.Error})
		if err := c.try("alpha", blockdev.OpRead, 0, 4096); err != nil {
			t.Error("read from the peer:", err)
		}
		if s := c.v("alpha").Status(); s.Disk != "up-to-date" {
			t.Errorf("after a read error: %+v", s)
		}
		d.Set()
		if err := c.try("alpha", blockdev.OpRead, 0, 4096); err != nil {
			t.Error(err)
		}
	})
	t.Run("no space on the primary", func(t *testing.T) {
		c, d := faultyPair(t, "alpha")
		d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.NoSpace, Count: 3})
		for i := range 3 {
			if err := c.try("alpha", blockdev.OpWrite, int64(i)<<20, 4096); !errors.Is(err, blockdev.ErrNoSpace) {
				t.Errorf("write: %v", err)
			}
		}
		c.write("alpha", 8<<20, fill(1, 4096), 0)
		c.synced("alpha", "beta")
		c.flush("alpha")
		c.equal("alpha", "beta")
	})
	t.Run("no space for a flush", func(t *testing.T) {
		c, d := faultyPair(t, "alpha")
		d.Set(fault.Rule{Op: blockdev.OpFlush, Action: fault.NoSpace, Count: 1})
		c.await("alpha", func(s Status) bool { c.try("alpha", blockdev.OpFlush, 0, 0); return s.Disk == "failed" })
	})
	t.Run("no space on the secondary", func(t *testing.T) {
		c, d := faultyPair(t, "beta")
		d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.NoSpace})
		c.write("alpha", 0, fill(1, 4096), 0)
		c.await("beta", func(s Status) bool { return s.Disk == "failed" && strings.Contains(s.Reason, "space") })
		c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Disk == "failed" })
		c.write("alpha", 4096, fill(2, 4096), blockdev.FUA)
	})
}

// TestCloseRaces: requests, connections and a second Close while the first runs;
// every request is answered.
func TestCloseRaces(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeC, protocol.ModeA} {
		t.Run(mode.String(), func(t *testing.T) {
			c := twoInSync(t, mode)
			v := c.v("alpha")
			pool := blockdev.NewPool(64 << 20)
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for w := range 8 {
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						b := pool.Get(4096, nil)
						done := make(chan error, 1)
						v.Submit(&blockdev.Request{Op: blockdev.OpWrite, Off: int64(w*1000+i%1000) * 4096, Len: 4096, Buf: b,
							Done: func(_ *blockdev.Request, err error) { done <- err }})
						select {
						case <-done:
						case <-time.After(20 * time.Second):
							t.Error("a write was never answered")
							return
						}
						b.Release()
					}
				})
			}
			time.Sleep(50 * time.Millisecond)
			for range 3 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					if err := v.Close(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Go(func() {
				for range 20 {
					w1, w2 := socketPair(t)
					b1, b2 := socketPair(t)
					v.AttachPeer("beta", Conn{Write: w2, Bulk: b2})
					w1.Abort()
					b1.Abort()
				}
			})
			time.Sleep(300 * time.Millisecond)
			close(stop)
			wg.Wait()
			c.mu.Lock()
			c.nodes["alpha"].vol = nil
			c.mu.Unlock()
			c.released("clients", pool)
		})
	}
}

// TestBuffersComeBack: links are cut while they carry large writes; nothing is
// leaked, on either side.
func TestBuffersComeBack(t *testing.T) {
	c := twoInSync(t, protocol.ModeA)
	pool := blockdev.NewPool(128 << 20)
	for round := range 4 {
		var wg sync.WaitGroup
		for i := range 64 {
			b := pool.Get(512<<10, nil)
			wg.Add(1)
			c.v("alpha").Submit(&blockdev.Request{Op: blockdev.OpWrite, Off: int64(i) * 512 << 10, Len: 512 << 10, Buf: b,
				Done: func(_ *blockdev.Request, err error) {
					b.Release()
					wg.Done()
				}})
			if i == 20+round*10 {
				c.part("alpha", "beta")
			}
		}
		wg.Wait()
		c.released("clients", pool)
		c.heal("alpha", "beta")
		c.synced("alpha", "beta")
	}
	for _, n := range c.names {
		c.released(n, c.v(n).opt.Pool)
	}
}

// TestVerifyAndDisconnect: an operator cuts what an operator started.
func TestVerifyAndDisconnect(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for range 5 {
		done := make(chan error, 1)
		go func() {
			_, err := c.v("alpha").Verify(ctx, VerifyOptions{Peer: "beta"}, nil)
			done <- err
		}()
		time.Sleep(time.Millisecond)
		if err := c.v("alpha").Disconnect(ctx, ""); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
		case <-ctx.Done():
			t.Fatal("the verify never ended")
		}
		if err := c.v("alpha").Connect(ctx, "", false); err != nil {
			t.Fatal(err)
		}
		c.synced("alpha", "beta")
	}
}

// beTarget has the node, a primary, overwrite this peer, and answers up to where
// the data starts to flow.
func (p *rawPeer) beTarget() {
	p.t.Helper()
	p.hello("beta", func(h *protocol.Hello) { h.Disk, h.Current = protocol.Inconsistent, 0 })
	if v := expect[*protocol.Verdict](p); v.Strategy != protocol.TargetFull {
		p.t.Fatalf("verdict %v by %s", v.Strategy, v.Rule)
	}
	p.send(&protocol.BitmapDone{}, nil)
	expect[*protocol.SyncStart](p)
	p.send(&protocol.SyncReady{}, nil)
}

// TestTargetsThatMisbehave: answers to the bulk stream that no sound target gives.
// The write stream lives all along.
func TestTargetsThatMisbehave(t *testing.T) {
	cases := []struct {
		name string
		run  func(p *rawPeer)
	}{
		{"reads and never answers", func(p *rawPeer) { p.drain() }},
		{"never reads", func(*rawPeer) {}},
		{"answers what was not sent", func(p *rawPeer) { p.sendBulk(&protocol.SyncAck{ID: 1 << 40}, nil) }},
		{"compares what is to be copied", func(p *rawPeer) {
			for id := range uint64(64) {
				p.sendBulk(&protocol.SyncDiffers{ID: id, Differ: [4]uint64{^uint64(0)}}, nil)
			}
		}},
		{"confirms a flush that nobody asked for", func(p *rawPeer) { p.sendBulk(&protocol.SyncFlushed{ID: 1}, nil) }},
		{"acknowledges, and never flushes", func(p *rawPeer) {
			go func() {
				for {
					m, err := p.nextBulk()
					if err != nil {
						return
					}
					switch m := m.(type) {
					case *protocol.SyncWrite:
						p.sendBulk(&protocol.SyncAck{ID: m.ID}, nil)
					case *protocol.SyncZero:
						p.sendBulk(&protocol.SyncAck{ID: m.ID}, nil)
					}
				}
			}()
		}},
		{"confirms a sync that goes on", func(p *rawPeer) { p.send(&protocol.SyncDoneAck{}, nil) }},
		{"writes where it is to read", func(p *rawPeer) { p.sendBulk(&protocol.SyncWrite{ID: 1, Len: 4096}, make([]byte, 4096)) }},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := lonely(t, protocol.ModeA, "alpha")
			for off := int64(0); off < 32<<20; off += 1 << 20 {
				c.write("alpha", off, fill(off, 1<<20), 0)
			}
			v := c.v("alpha")
			v.mu.Lock()
			v.bulkTimeout = time.Second
			v.mu.Unlock()
			p := rawTo(t, c, "alpha", "beta")
			p.beTarget()
			go func() { // the write stream of a sound peer
				for {
					m, err := p.next()
					if err != nil {
						return
					}
					if d, ok := m.(*protocol.Data); ok {
						p.send(&protocol.Ack{Received: d.Seq, Applied: d.Seq, Durable: d.Seq}, nil)
					}
				}
			}()
			tc.run(p)
			s := c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Connection != "connected" })
			t.Log(peerOf(s, "beta").Reason)
			if n := peerOf(s, "beta").OutOfSync; n != testSize {
				t.Errorf("%d bytes out of sync: bits were cleared without a copy", n)
			}
			c.write("alpha", 0, fill(1, 4096), 0)
		})
	}
}

// TestRolesUnderLoad: demotions and switchovers while requests are in flight: each
// request is answered, and what was acknowledged is on both sides.
func TestRolesUnderLoad(t *testing.T) {
	c := twoInSync(t, protocol.ModeC)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	at := "alpha"
	for round := range 6 {
		other := map[string]string{"alpha": "beta", "beta": "alpha"}[at]
		v := c.v(at)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					op := []blockdev.Op{blockdev.OpWrite, blockdev.OpRead, blockdev.OpFlush, blockdev.OpZero}[i%4]
					if err := c.try(at, op, int64(w/2*64+i%64)*4096, 4096); err != nil && !errors.Is(err, blockdev.ErrShutdown) {
						t.Error(op, err)
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		var err error
		switch round % 3 {
		case 0:
			err = v.Switchover(ctx, other)
		case 1:
			err = v.Demote(ctx)
		case 2: // with the peer lost in the middle of it
			go c.part("alpha", "beta")
			if err = v.Switchover(ctx, other); err != nil {
				t.Log(err)
				err = v.Demote(ctx)
			}
		}
		close(stop)
		wg.Wait()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c.await(at, func(s Status) bool { return s.Role == "secondary" && s.InFlight == 0 })
		c.heal("alpha", "beta")
		c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Replication == "established" })
		switch round % 3 {
		case 0:
			at = other
			c.await(at, func(s Status) bool { return s.Role == "primary" })
		default:
			if c.v(other).Status().Role == "primary" {
				at = other
			} else {
				c.promote(at, PromoteOptions{})
			}
		}
		c.synced("alpha", "beta")
		c.flush(at)
		c.equal("alpha", "beta")
	}
}
