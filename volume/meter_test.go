package volume

import (
	"errors"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/protocol"
)

func TestLatencyBuckets(t *testing.T) {
	us := time.Microsecond
	tests := []struct {
		d    time.Duration
		want int
	}{
		{0, 0}, {1, 0}, {25 * us, 0}, {25*us + 1, 1}, {50 * us, 1}, {50*us + 1, 2}, {100 * us, 2}, {time.Millisecond, 6},
		{latencyFirst << 19, 19}, {latencyFirst<<19 + 1, 20}, {time.Hour, 20}, {1<<63 - 1, 20},
	}
	bounds := LatencyBounds()
	if len(bounds) != latencyBuckets || bounds[0] != 25e-6 || bounds[19] != 13.1072 {
		t.Fatalf("bounds %v", bounds)
	}
	for _, tt := range tests {
		got := bucketOf(tt.d)
		if got != tt.want {
			t.Errorf("%v is in bucket %d, want %d", tt.d, got, tt.want)
		}
		if got < latencyBuckets && tt.d.Seconds() > bounds[got] || got > 0 && tt.d.Seconds() <= bounds[got-1] {
			t.Errorf("%v is not within the bounds of bucket %d", tt.d, got)
		}
	}
}

func TestLatencySnapshot(t *testing.T) {
	var l Latency
	if h := l.Snapshot(); h.Count != 0 || h.Seconds != 0 || len(h.Buckets) != 0 || h.Mean() != 0 || h.Quantile(0.99) != 0 {
		t.Errorf("empty: %+v", h)
	}
	l.Add(-time.Second) // the clock was set
	old := l.Snapshot()
	for range 99 {
		l.Add(60 * time.Microsecond)
	}
	l.Add(time.Second)
	h := l.Snapshot().Since(old)
	if h.Count != 100 || h.Buckets[0] != 0 || h.Buckets[2] != 99 {
		t.Fatalf("%+v", h)
	}
	if m := h.Mean().Round(time.Microsecond); m != 10059*time.Microsecond {
		t.Errorf("mean %v", m)
	}
	if q := h.Quantile(0.5); q != 100*time.Microsecond {
		t.Errorf("median %v", q)
	}
	if q := h.Quantile(1); q < time.Second || q > 2*time.Second {
		t.Errorf("maximum %v", q)
	}
	if again := old.Since(h); again.Count != old.Count {
		t.Errorf("a counter that began anew: %+v", again)
	}
}

func TestLatencyAllocates(t *testing.T) {
	var l Latency
	if n := testing.AllocsPerRun(100, func() { l.Add(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMeter has a pair of volumes count writes and a flush on both sides.
func TestMeter(t *testing.T) {
	const size = 16 << 20
	c := newCluster(t, size, protocol.ModeC, "alpha", "beta")
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
	alpha, beta := c.v("alpha"), c.v("beta")
	request := func(r blockdev.Request) error {
		done := make(chan error, 1)
		r.Done = func(_ *blockdev.Request, err error) { done <- err }
		alpha.Submit(&r)
		return <-done
	}
	must := func(r blockdev.Request) {
		t.Helper()
		if err := request(r); err != nil {
			t.Fatal(err)
		}
	}
	before := alpha.meter.Snapshot()
	for i := range int64(3) {
		must(blockdev.Request{Op: blockdev.OpWrite, Off: i * 4096, Len: 4096, Buf: blockdev.NewBuffer(4096)})
	}
	must(blockdev.Request{Op: blockdev.OpWrite, Off: 1 << 20, Len: 2 * protocol.PayloadMax, Buf: blockdev.NewBuffer(2 * protocol.PayloadMax)})
	must(blockdev.Request{Op: blockdev.OpFlush})
	must(blockdev.Request{Op: blockdev.OpRead, Len: 4096, Buf: blockdev.NewBuffer(4096)})
	if err := request(blockdev.Request{Op: blockdev.OpRead, Off: size, Len: 4096, Buf: blockdev.NewBuffer(4096)}); err == nil {
		t.Fatal("a read past the end succeeded")
	}

	got := alpha.meter.Snapshot()
	w, f, r := got.Ops["write"], got.Ops["flush"], got.Ops["read"]
	if w.Begun != 4 || w.Whole.Count != 4 || w.Local.Count != 5 || w.Bytes != 3*4096+2*protocol.PayloadMax || w.Failed != 0 {
		t.Errorf("writes %+v", w)
	}
	if f.Whole.Count != 1 || f.Local.Count < 1 || f.Bytes != 0 {
		t.Errorf("flushes %+v", f)
	}
	if r.Whole.Count != 1 || r.Bytes != 4096 {
		t.Errorf("reads %+v; one that makes no sense is the frontend's", r)
	}
	toBeta := got.Peers["beta"]
	if toBeta.Wire["write"].Count != 5 || toBeta.Remote["write"].Count != 5 || toBeta.Remote["flush"].Count < 1 {
		t.Errorf("toward beta: wire %+v, remote %+v", toBeta.Wire["write"], toBeta.Remote)
	}
	if sent := toBeta.Sent - before.Peers["beta"].Sent; sent < 3*4096+2*protocol.PayloadMax {
		t.Errorf("sent %d bytes", sent)
	}
	// A peer may confirm before the call that sent it has returned: they are not compared.
	if toBeta.Wire["write"].Seconds <= 0 || toBeta.Remote["write"].Seconds <= 0 {
		t.Errorf("sent within %v s, confirmed within %v s", toBeta.Wire["write"].Seconds, toBeta.Remote["write"].Seconds)
	}
	there := beta.meter.Snapshot().Peers["alpha"]
	if there.Apply["write"].Count != 5 || there.Applied != 3*4096+2*protocol.PayloadMax || there.Apply["flush"].Count < 1 || there.Received < there.Applied {
		t.Errorf("beta has counted %+v", there)
	}
}

// TestMeterErrors: what failed counts as failed, and what the store refused as the
// disk's error.
func TestMeterErrors(t *testing.T) {
	c, d := faultyPair(t, "alpha")
	d.Set(fault.Rule{Op: blockdev.OpRead, Action: fault.Error, Count: 1})
	if err := c.try("alpha", blockdev.OpRead, 0, 4096); err != nil {
		t.Fatal(err) // it is read from the peer
	}
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.NoSpace, Count: 1})
	if err := c.try("alpha", blockdev.OpWrite, 0, 4096); !errors.Is(err, blockdev.ErrNoSpace) {
		t.Fatal(err)
	}
	ops := c.v("alpha").meter.Snapshot().Ops
	if r := ops["read"]; r.DiskErrors != 1 || r.Failed != 0 {
		t.Errorf("a read that the disk could not do, and the peer did: %+v", r)
	}
	if w := ops["write"]; w.DiskErrors != 1 || w.Failed != 1 {
		t.Errorf("a write without space: %+v", w)
	}
	m := NewMeter()
	m.done(OpKindWrite, 4096, time.Millisecond, errors.New("no"))
	m.done(OpKindWrite, 4096, time.Millisecond, nil)
	if o := m.Snapshot().Ops["write"]; o.Failed != 1 || o.Bytes != 4096 || o.Whole.Count != 2 || o.Begun != 2 {
		t.Errorf("%+v", o)
	}
}
