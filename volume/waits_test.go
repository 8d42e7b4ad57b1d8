package volume

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/fault"
	"github.com/qrbd/qrbd/protocol"
)

// refusedWithin checks that an operation ends by itself, in time, with a refusal of the
// code that says why.
func refusedWithin(t *testing.T, limit time.Duration, code protocol.Code, words string, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	begun := time.Now()
	err := do(ctx)
	took := time.Since(begun)
	var e *Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Text, words) {
		t.Errorf("ended with %v; want %v and %q", err, code, words)
	}
	if took > limit {
		t.Errorf("took %v, more than %v", took, limit)
	}
	t.Log(took.Round(time.Millisecond), err)
}

// TestHandshakeThatStops: a peer goes silent after each step of the handshake, its
// connection alive. The connection ends, nothing is changed by it, writes go on.
func TestHandshakeThatStops(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  func(p *rawPeer)
	}{
		{"says nothing", func(*rawPeer) {}},
		{"says hello, and has no data", func(p *rawPeer) {
			p.hello("beta", func(h *protocol.Hello) { h.Disk, h.Current = protocol.Inconsistent, 0 })
		}},
		{"hears the verdict", func(p *rawPeer) {
			p.hello("beta", func(h *protocol.Hello) { h.Disk, h.Current = protocol.Inconsistent, 0 })
			expect[*protocol.Verdict](p)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := lonely(t, protocol.ModeC, "alpha")
			before := peerOf(c.v("alpha").Status(), "beta").OutOfSync
			p := rawTo(t, c, "alpha", "beta")
			tc.run(p)
			begun := time.Now()
			p.drain()
			select {
			case <-closedBy(p):
			case <-time.After(25 * time.Second):
				t.Fatal("the connection does not end")
			}
			t.Log("ended after", time.Since(begun).Round(time.Millisecond))
			c.write("alpha", 0, fill(1, 4096), 0)
			if after := peerOf(c.v("alpha").Status(), "beta").OutOfSync; after < before {
				t.Errorf("%d bytes were out of sync, then %d", before, after)
			}
		})
	}
}

// closedBy is closed when the node has let the peer's connection go.
func closedBy(p *rawPeer) <-chan struct{} {
	gone, v := make(chan struct{}), p.c.v(p.to)
	go func() {
		defer close(gone)
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && v.Linked("beta"); {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return gone
}

// TestPromoteNobodyAnswers: a connected peer never answers the question.
func TestPromoteNobodyAnswers(t *testing.T) {
	t.Parallel()
	c := lonely(t, protocol.ModeC, "beta")
	p := rawTo(t, c, "beta", "alpha")
	p.asPrimary("alpha")
	p.send(&protocol.State{Role: protocol.Secondary, Disk: protocol.UpToDate, Current: p.theirs.Current}, nil)
	c.await("beta", func(s Status) bool { return peerOf(s, "alpha").Role == "secondary" })
	p.drain()
	refusedWithin(t, 8*time.Second, protocol.CodeTimeout, "alpha does not answer", func(ctx context.Context) error {
		return c.v("beta").Promote(ctx, PromoteOptions{})
	})
	if s := c.v("beta").Status(); s.Role != "secondary" {
		t.Errorf("role %s", s.Role)
	}
}

// TestSwitchoverNobodyAnswers: the peer confirms every write, and never takes over.
func TestSwitchoverNobodyAnswers(t *testing.T) {
	t.Parallel()
	c := lonely(t, protocol.ModeC, "alpha")
	p := rawTo(t, c, "alpha", "beta")
	p.hello("beta", func(h *protocol.Hello) { h.Disk = protocol.UpToDate })
	v := expect[*protocol.Verdict](p)
	if v.Strategy != protocol.NoSync {
		t.Skipf("verdict %v", v.Strategy) // the bits say otherwise; the case needs an equal peer
	}
	go func() {
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
	c.await("alpha", func(s Status) bool { return peerOf(s, "beta").Replication == "established" })
	refusedWithin(t, 15*time.Second, protocol.CodeTimeout, "fell silent during the switchover", func(ctx context.Context) error {
		return c.v("alpha").Switchover(ctx, "beta")
	})
}

// TestDemoteOverAHangingStore: what is under way never ends, so neither does the
// draining; the volume stays primary and says so.
func TestDemoteOverAHangingStore(t *testing.T) {
	t.Parallel()
	c, d := faultyPair(t, "alpha")
	t.Cleanup(func() { d.Set() })
	d.Set(fault.Rule{Op: blockdev.OpWrite, Action: fault.Hang, Count: 1})
	done := make(chan error, 1)
	go func() { done <- c.try("alpha", blockdev.OpWrite, 0, 4096) }()
	c.await("alpha", func(Status) bool { return d.Waiting() == 1 })
	refusedWithin(t, 12*time.Second, protocol.CodeTimeout, "still under way", func(ctx context.Context) error {
		return c.v("alpha").Demote(ctx)
	})
	if s := c.v("alpha").Status(); s.Role != "primary" {
		t.Errorf("role %s", s.Role)
	}
	d.Set()
	if err := <-done; err != nil {
		t.Errorf("the write that hung: %v", err)
	}
	c.write("alpha", 4096, fill(1, 4096), blockdev.FUA)
}
