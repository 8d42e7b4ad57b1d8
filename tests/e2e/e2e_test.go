package e2e

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of a test's time is waiting for a peer's silence to be noticed, so more
	// tests than processors can run at once.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue || os.Getenv("QRBD_E2E_PARALLEL") != "" {
		n := os.Getenv("QRBD_E2E_PARALLEL")
		if _, err := strconv.Atoi(n); err != nil {
			n = "4"
		}
		if err := f.Value.Set(n); err != nil {
			panic(err)
		}
	}
	os.Exit(cluster.Main(m))
}

// long tells whether faults last as long as they would for people.
var long = os.Getenv("QRBD_E2E_LONG") != ""

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// quick lets nodes notice a silent peer sooner than by default.
func quick(c *cluster.Config) { c.Extra = "heartbeat = \"400ms\"\npeer_timeout = \"2s\"\n" }

// lostWithin bounds the time until a node notices that a peer is gone.
const lostWithin = 12 * time.Second

// syncWithin bounds a small resync, reconnection included.
const syncWithin = 40 * time.Second

// newLedger returns a ledger of the first 32 MiB of a volume.
func newLedger() *ledger.Ledger { return ledger.New(0, 32*mib) }

// load is verified load in the background.
type load struct {
	t       *testing.T
	node    *cluster.Node
	disk    *cluster.Disk
	ledger  *ledger.Ledger
	cancel  context.CancelFunc
	done    chan struct{}
	stats   ledger.Stats // valid when done is closed
	err     error        // likewise
	flushed chan struct{}
}

// startLoad drives the node's volume "crm".
func startLoad(t *testing.T, n *cluster.Node, l *ledger.Ledger) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &load{t: t, node: n, disk: n.Dial("crm"), ledger: l, cancel: cancel,
		done: make(chan struct{}), flushed: make(chan struct{}, 1)}
	seed := rand.Uint64()
	t.Logf("load on %s, seed %d", n.Name, seed)
	gen := &ledger.Load{Ledger: l, Seed: seed, Pause: 500 * time.Microsecond, OnFlush: func() {
		select {
		case r.flushed <- struct{}{}:
		default:
		}
	}}
	go func() {
		defer close(r.done)
		r.stats, r.err = gen.Run(ctx, r.disk)
	}()
	t.Cleanup(func() { cancel(); r.disk.Abort(); <-r.done })
	return r
}

// runFor lets the load run, and fails if it ended by itself.
func (r *load) runFor(d time.Duration) {
	r.t.Helper()
	select {
	case <-r.done:
		r.t.Fatalf("load on %s ended: %v after %+v", r.node.Name, r.err, r.stats)
	case <-time.After(d):
	}
}

// progress waits until the load gets another flush acknowledged.
func (r *load) progress(limit time.Duration) {
	r.t.Helper()
	for range 2 { // the first may have been acknowledged long ago
		select {
		case <-r.flushed:
		case <-r.done:
			r.t.Fatalf("load on %s ended: %v after %+v", r.node.Name, r.err, r.stats)
		case <-time.After(limit):
			issued, acked, flushes := r.ledger.Writes()
			r.t.Fatalf("load on %s does not go on: %d writes issued, %d acknowledged, %d flushes", r.node.Name, issued, acked, flushes)
		}
	}
}

// stop ends the load, which must not have failed.
func (r *load) stop() {
	r.t.Helper()
	r.cancel()
	r.join()
	if r.err != nil {
		r.t.Fatalf("load on %s: %v after %+v", r.node.Name, r.err, r.stats)
	}
	r.disk.Close()
	r.report()
}

// broken waits for the load's end after its node died.
func (r *load) broken() {
	r.t.Helper()
	r.join()
	switch {
	case errors.Is(r.err, ledger.ErrWrong):
		r.t.Fatalf("load on %s: %v", r.node.Name, r.err)
	case r.err == nil:
		r.t.Fatalf("load on %s did not notice the node's end", r.node.Name)
	}
	r.report()
}

func (r *load) join() {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(cluster.Timeout):
		r.t.Fatalf("load on %s hangs", r.node.Name)
	}
}

func (r *load) report() {
	issued, acked, flushes := r.ledger.Writes()
	r.t.Logf("load on %s: %d reads, slowest request %v; ledger: %d writes issued, %d acknowledged, %d flushes",
		r.node.Name, r.stats.Reads, r.stats.Slowest.Round(time.Millisecond), issued, acked, flushes)
}

// judge holds the volume "crm", as the primary shows it, against the ledger.
func judge(t *testing.T, n *cluster.Node, l *ledger.Ledger, rule ledger.Rule) {
	t.Helper()
	d := n.Dial("crm")
	defer d.Close()
	v, err := l.Judge(d, rule)
	if err == nil {
		err = v.Err()
	}
	if err != nil {
		t.Fatalf("disk of %s: %v", n.Name, err)
	}
	if v.Written == 0 {
		t.Fatalf("disk of %s holds no write at all: the test shows nothing", n.Name)
	}
}

// settle is judge, and takes what was found as the past.
func settle(t *testing.T, n *cluster.Node, l *ledger.Ledger, rule ledger.Rule) {
	t.Helper()
	judge(t, n, l, rule)
	d := n.Dial("crm")
	defer d.Close()
	if err := l.Rebase(d); err != nil {
		t.Fatal(err)
	}
}

// drive loads the node's volume for a while, then requires what is acknowledged.
func drive(t *testing.T, n *cluster.Node, l *ledger.Ledger, d time.Duration) {
	t.Helper()
	r := startLoad(t, n, l)
	r.runFor(d)
	r.progress(cluster.Timeout)
	r.stop()
	judge(t, n, l, ledger.Acked)
}

// pattern returns n bytes that are different for each seed and compress badly.
func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(p) // never fails
	return p
}

// write writes p at off to the node's volume and flushes.
func write(t *testing.T, n *cluster.Node, volume string, p []byte, off int64) {
	t.Helper()
	d := n.Dial(volume)
	defer d.Close()
	for i := 0; i < len(p); i += mib {
		q := p[i:min(i+mib, len(p))]
		if err := d.WriteAt(q, off+int64(i), false); err != nil {
			t.Fatalf("%s: write %d bytes at %d: %v", n.Name, len(q), off+int64(i), err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatalf("%s: flush: %v", n.Name, err)
	}
}

// read returns n bytes at off of the node's volume.
func read(t *testing.T, n *cluster.Node, volume string, off int64, length int) []byte {
	t.Helper()
	d := n.Dial(volume)
	defer d.Close()
	p := make([]byte, length)
	if err := d.ReadAt(p, off); err != nil {
		t.Fatalf("%s: read %d bytes at %d: %v", n.Name, length, off, err)
	}
	return p
}

// mentions tells whether text contains one of the words, in any case.
func mentions(text string, words ...string) bool {
	for _, w := range words {
		if strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			return true
		}
	}
	return false
}
