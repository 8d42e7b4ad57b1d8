package linear

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// TestVouchedForTooSoon: the operator vouches for the death of a primary that is only
// stopped. Without a quorum nobody can hold it back when it wakes: what is promised is
// that the successor's history is whole, that the old primary acknowledges a write
// alone only under a generation of its own, so that the two are never joined, and that
// both keep their own until an operator says who loses. Reads of the old primary are
// stale; that is what the operator's word is for.
func TestVouchedForTooSoon(t *testing.T) {
	t.Parallel()
	x := newRun(t, 1, cluster.Options{})
	x.begin()
	alpha, beta := x.c.Nodes[0], x.c.Nodes[1]
	x.within(300*time.Millisecond, 400*time.Millisecond)
	x.stop()
	x.c.WaitInSync("crm", syncWithin)
	shared := alpha.Volume("crm").Generation
	old := x.queue(alpha)
	alpha.Pause()
	old.send() // into the sockets of a process that does not run
	x.h.End(Term(x.terms[alpha].Load()))
	back := x.h.Lost(false)
	beta.WaitLost("crm", "alpha", lostWithin)
	x.promote(beta, "--peer-fenced")
	back()
	x.startAt(beta)
	x.within(500*time.Millisecond, 600*time.Millisecond)
	alpha.Resume()
	acked := old.answered()
	for _, n := range []*cluster.Node{alpha, beta} {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool {
			p := v.Peers[0]
			return p.Connection != "connected" && (strings.Contains(p.Reason, "split") || strings.Contains(p.Reason, "primar"))
		})
	}
	va, vb := alpha.Volume("crm"), beta.Volume("crm")
	t.Logf("the old primary acknowledged %d of %d writes after it woke", len(acked), len(old.blocks))
	if len(acked) > 0 && (va.Generation == shared || va.Generation == vb.Generation) {
		t.Errorf("acknowledged alone, and no generation tells: shared %s, alpha %s, beta %s", shared, va.Generation, vb.Generation)
	}
	if len(acked) > 0 && va.Peer("beta").OutOfSync == 0 {
		t.Errorf("acknowledged alone, and no block is marked: %v", va)
	}
	if vb.Peer("alpha").OutOfSync == 0 {
		t.Errorf("the successor wrote alone, and no block is marked: %v", vb)
	}
	old.check(acked) // its own until an operator says otherwise
	old.close()
	alpha.Must("demote", "crm", "--force")
	beta.Must("connect", "crm", "alpha")
	alpha.Must("connect", "crm", "beta", "--discard-my-data")
	x.judge()
}

// startAt is start with one node only: the other's answers are no part of the history.
func (x *run) startAt(n *cluster.Node) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	l := x.load()
	l.Endpoints = []Endpoint{x.endpoint(n)}
	go func() {
		defer close(ended)
		l.Run(ctx)
	}()
	x.stop = func() { cancel(); <-ended }
}

// queued are writes that a client sends to a process that is stopped, past the blocks
// of the history.
type queued struct {
	x      *run
	disk   *cluster.Disk
	blocks []int
	wg     sync.WaitGroup
	mu     sync.Mutex
	acked  []int // guarded by mu
}

func (x *run) queue(n *cluster.Node) *queued {
	q := &queued{x: x, disk: n.Dial("crm")}
	x.t.Cleanup(q.disk.Abort)
	for i := range 8 {
		q.blocks = append(q.blocks, i)
	}
	return q
}

func (q *queued) offset(b int) int64 { return 512<<20 + int64(b)*blockSize }

func (q *queued) send() {
	for _, b := range q.blocks {
		q.wg.Go(func() {
			p := make([]byte, blockSize)
			fill(p, b, uint64(1000+b))
			if q.disk.WriteAt(p, q.offset(b), false) != nil {
				return
			}
			q.mu.Lock()
			defer q.mu.Unlock()
			q.acked = append(q.acked, b)
		})
	}
	time.Sleep(50 * time.Millisecond) // they are in the socket
}

// answered waits for every write's end and returns those that were acknowledged.
func (q *queued) answered() []int {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		q.wg.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(cluster.Timeout):
		q.x.t.Fatal("writes to the old primary were never answered")
	}
	slices.Sort(q.acked)
	return q.acked
}

// check reads what was acknowledged from whom it was acknowledged by.
func (q *queued) check(acked []int) {
	q.x.t.Helper()
	p := make([]byte, blockSize)
	for _, b := range acked {
		if err := q.disk.ReadAt(p, q.offset(b)); err != nil {
			q.x.t.Errorf("block %d of the old primary: %v", b, err)
			continue
		}
		if v, whole := identify(p, b); v != uint64(1000+b) || !whole {
			q.x.t.Errorf("block %d of the old primary holds %d, whole %v: overwritten without a word", b, v, whole)
		}
	}
}

func (q *queued) close() { q.disk.Close() }
