package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/compress"
	"github.com/qrbd/qrbd/volume/meta"
)

// memStorage is a metadata file in memory. It keeps what was synced apart, so that
// a test can cut the power.
type memStorage struct {
	mu     sync.Mutex
	now    []byte
	synced []byte
	broken error // what Sync returns from now on
}

func (s *memStorage) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

func (s *memStorage) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off >= int64(len(s.now)) {
		return 0, io.EOF
	}
	n := copy(p, s.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *memStorage) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(s.now[off:], p), nil
}

func (s *memStorage) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	copy(s.synced, s.now)
	return nil
}

func (s *memStorage) Size() (int64, error) { return int64(len(s.now)), nil }
func (s *memStorage) Close() error         { return nil }

// tcpStream is a Stream over a TCP connection on loopback.
type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Close() error { return s.CloseWrite() }
func (s tcpStream) Abort()       { s.TCPConn.Close() }

// tryStream is a tcpStream that takes bytes without waiting, when it pleases.
type tryStream struct {
	tcpStream
	calls *atomic.Int64
}

// TryWrite implements TryWriter: every third time there is no room.
func (s tryStream) TryWrite(p []byte) (bool, error) {
	if s.calls.Add(1)%3 == 0 {
		return false, nil
	}
	_, err := s.Write(p)
	return err == nil, err
}

// node is one replica in a test.
type node struct {
	name  string
	store blockdev.Device
	meta  *memStorage
	vol   *Volume
}

// cluster is a volume on several nodes in one process, with links over loopback
// that can be cut.
type cluster struct {
	t     testing.TB
	size  int64
	mode  protocol.Mode
	nodes map[string]*node
	names []string

	tries    *atomic.Int64 // not nil: write streams are tryStreams
	compress func() bool   // of every connection
	// options changes a node's; nil: nothing.
	options func(name string, o *Options)

	mu    sync.Mutex
	cut   map[string]bool // "a-b": no connections
	conns map[string][]Stream
	// opening: a pair that is being connected; both sides ask.
	opening map[string]bool
	log     *slog.Logger
}

// testZstd is shared, as it is by the volumes of an agent.
var testZstd = compress.New(2)

func newCluster(t testing.TB, size int64, mode protocol.Mode, names ...string) *cluster {
	c := &cluster{t: t, size: size, mode: mode, nodes: map[string]*node{}, cut: map[string]bool{}, conns: map[string][]Stream{}, opening: map[string]bool{}}
	c.log = slog.New(slog.DiscardHandler)
	if os.Getenv("QRBD_TEST_LOG") != "" {
		c.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	c.begin(names)
	t.Cleanup(func() {
		for _, n := range c.names {
			c.kill(n)
		}
	})
	return c
}

// begin creates and starts the nodes.
func (c *cluster) begin(names []string) {
	c.t.Helper()
	c.names = names
	for _, n := range names {
		c.create(n)
	}
	for _, n := range names {
		c.start(n)
	}
}

// create gives a node an empty store and metadata.
func (c *cluster) create(name string) {
	c.t.Helper()
	start, total, err := meta.Format(&meta.Super{Size: c.size, Node: name, Name: "crm", Disk: protocol.Inconsistent}, randomID())
	if err != nil {
		c.t.Fatal(err)
	}
	st := &memStorage{now: make([]byte, total), synced: make([]byte, total)}
	copy(st.now, start)
	st.Sync()
	c.nodes[name] = &node{name: name, store: blockdev.NewMemory(c.size), meta: st}
}

// keepOpen is a store that outlives its volume.
type keepOpen struct{ blockdev.Device }

func (keepOpen) Close() error { return nil }

func (c *cluster) start(name string) {
	c.t.Helper()
	n := c.nodes[name]
	file, state, err := meta.Open(n.meta)
	if err != nil {
		c.t.Fatal(err)
	}
	o := Options{Name: "crm", Self: name, Size: c.size, Store: keepOpen{n.store}, Meta: file, State: state, Pool: blockdev.NewPool(64 << 20), Zstd: testZstd,
		Log: c.log.With("node", name), AskConnect: func(peer string) { c.connect(name, peer) }, WriteTimeout: 3 * time.Second,
		FlushInterval: 100 * time.Millisecond, ActivityIdle: 200 * time.Millisecond}
	for _, p := range c.names {
		if p != name {
			o.Peers = append(o.Peers, PeerConfig{Name: p, Mode: c.mode})
		}
	}
	if c.options != nil {
		c.options(name, &o)
	}
	v, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	n.vol = v
	c.mu.Unlock()
}

func pair(a, b string) string { return min(a, b) + "-" + max(a, b) }

// connect makes the streams; the smaller name opens them, as in a session.
func (c *cluster) connect(from, to string) {
	c.mu.Lock()
	a, b := c.nodes[min(from, to)].vol, c.nodes[max(from, to)].vol
	no := c.cut[pair(from, to)] || a == nil || b == nil || c.opening[pair(from, to)] || a.Linked(max(from, to))
	if !no {
		c.opening[pair(from, to)] = true
	}
	c.mu.Unlock()
	if no {
		return
	}
	go func() {
		defer func() {
			c.mu.Lock()
			delete(c.opening, pair(from, to))
			c.mu.Unlock()
		}()
		w1, w2 := socketPair(c.t)
		b1, b2 := socketPair(c.t)
		c.mu.Lock()
		ends := []Stream{w1, w2, b1, b2}
		c.conns[pair(from, to)] = ends
		cut := c.cut[pair(from, to)]
		c.mu.Unlock()
		if cut { // meanwhile: part did not see these
			for _, s := range ends {
				s.Abort()
			}
			return
		}
		one, two := Conn{Write: w1, Bulk: b1, Compress: c.compress}, Conn{Write: w2, Bulk: b2, Compress: c.compress}
		if c.tries != nil {
			one.Write, two.Write = tryStream{w1, c.tries}, tryStream{w2, c.tries}
		}
		b.AttachPeer(min(from, to), two)
		a.AttachPeer(max(from, to), one)
	}()
}

func socketPair(t testing.TB) (a, b tcpStream) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go func() {
		conn, _ := l.Accept()
		got <- conn
	}()
	one, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Error(err)
		return
	}
	return tcpStream{one.(*net.TCPConn)}, tcpStream{(<-got).(*net.TCPConn)}
}

// part cuts the link between two nodes until heal.
func (c *cluster) part(a, b string) {
	c.mu.Lock()
	c.cut[pair(a, b)] = true
	conns := c.conns[pair(a, b)]
	c.mu.Unlock()
	for _, s := range conns {
		s.Abort()
	}
	c.await(a, func(s Status) bool { return peerOf(s, b).Connection != "connected" })
	c.await(b, func(s Status) bool { return peerOf(s, a).Connection != "connected" })
}

func (c *cluster) heal(a, b string) {
	c.mu.Lock()
	c.cut[pair(a, b)] = false
	c.mu.Unlock()
}

// kill stops a node as SIGKILL would; the store keeps what was written.
func (c *cluster) kill(name string) {
	c.mu.Lock()
	v := c.nodes[name].vol
	c.nodes[name].vol = nil
	c.mu.Unlock()
	if v != nil {
		v.halt()
	}
	for _, other := range c.names {
		if other != name && c.v(other) != nil {
			c.await(other, func(s Status) bool { return peerOf(s, name).Connection != "connected" })
		}
	}
}

func (c *cluster) v(name string) *Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[name].vol
}

func peerOf(s Status, name string) PeerStatus {
	for _, p := range s.Peers {
		if p.Name == name {
			return p
		}
	}
	return PeerStatus{}
}

func (c *cluster) await(name string, ok func(Status) bool) Status {
	c.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		s := c.v(name).Status()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			for _, n := range c.names {
				if v := c.v(n); v != nil {
					c.t.Logf("%s: %+v", n, v.Status())
				}
			}
			c.t.Fatalf("%s: waited in vain", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// synced waits until a and b are established and equal by their own word.
func (c *cluster) synced(a, b string) {
	c.t.Helper()
	for _, x := range [][2]string{{a, b}, {b, a}} {
		c.await(x[0], func(s Status) bool {
			p := peerOf(s, x[1])
			return p.Replication == "established" && p.OutOfSync == 0 && p.Disk == "up-to-date" && s.Disk == "up-to-date"
		})
	}
}

func (c *cluster) promote(name string, o PromoteOptions) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.v(name).Promote(ctx, o); err != nil {
		c.t.Fatalf("promote %s: %v", name, err)
	}
}

func (c *cluster) do(name string, r *blockdev.Request) error {
	done := make(chan error, 1)
	r.Done = func(_ *blockdev.Request, err error) { done <- err }
	c.v(name).Submit(r)
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		return errors.New("no answer")
	}
}

func (c *cluster) write(name string, off int64, b []byte, fl blockdev.Flags) {
	c.t.Helper()
	buf := blockdev.NewBuffer(len(b))
	copy(buf.Bytes(), b)
	if err := c.do(name, &blockdev.Request{Op: blockdev.OpWrite, Flags: fl, Off: off, Len: int64(len(b)), Buf: buf}); err != nil {
		c.t.Fatalf("write on %s: %v", name, err)
	}
}

func (c *cluster) flush(name string) {
	c.t.Helper()
	if err := c.do(name, &blockdev.Request{Op: blockdev.OpFlush}); err != nil {
		c.t.Fatalf("flush on %s: %v", name, err)
	}
}

// equal compares the stores byte for byte.
func (c *cluster) equal(a, b string) {
	c.t.Helper()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < c.size; off += int64(len(x)) {
		n := min(int64(len(x)), c.size-off)
		if err := c.nodes[a].store.ReadAt(x[:n], off); err != nil {
			c.t.Fatal(err)
		}
		if err := c.nodes[b].store.ReadAt(y[:n], off); err != nil {
			c.t.Fatal(err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			for i := range x[:n] {
				if x[i] != y[i] {
					c.t.Fatalf("%s and %s differ at %d", a, b, off+int64(i))
				}
			}
		}
	}
}

func fill(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func (c *cluster) randomWrites(name string, seed int64, count int) {
	c.t.Helper()
	r := rand.New(rand.NewSource(seed))
	for range count {
		n := 512 * (1 + r.Intn(64))
		off := r.Int63n((c.size-int64(n))/512) * 512
		b := fill(r.Int63(), n)
		clear(b[n/2:]) // compresses
		c.write(name, off, b, 0)
	}
}

func (c *cluster) String() string { return fmt.Sprint(c.names) }

// startPair creates alpha and beta in a cluster without nodes, and brings them in sync:
// alpha is primary.
func (c *cluster) startPair() {
	c.t.Helper()
	c.begin([]string{"alpha", "beta"})
	c.promote("alpha", PromoteOptions{Force: true})
	c.synced("alpha", "beta")
}
