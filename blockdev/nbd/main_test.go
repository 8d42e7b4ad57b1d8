package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit ends a test's waiting; nothing here takes nearly as long.
const limit = 20 * time.Second

const size = 1 << 20

// exports is a fixed set of exports; refuse overrides Open by name.
type exports struct {
	mu     sync.Mutex
	names  []string
	by     map[string]*nbd.Export
	refuse map[string]error
}

func newExports(l ...*nbd.Export) *exports {
	x := &exports{by: map[string]*nbd.Export{}, refuse: map[string]error{}}
	for _, e := range l {
		x.names = append(x.names, e.Name)
		x.by[e.Name] = e
	}
	return x
}

func (x *exports) List(nbd.Caller) []string { return x.names }

func (x *exports) Open(name string, _ nbd.Caller) (*nbd.Export, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if name == "" && len(x.names) == 1 {
		name = x.names[0]
	}
	if err := x.refuse[name]; err != nil {
		return nil, err
	}
	if e := x.by[name]; e != nil {
		return e, nil
	}
	return nil, nbd.ErrUnknownExport
}

func (x *exports) set(name string, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refuse[name] = err
}

// disk is a Submitter for tests: a memory device that executes requests inside
// Submit, unless held, and fails them on demand.
type disk struct {
	mem *blockdev.Memory

	mu   sync.Mutex
	fail func(r *blockdev.Request) error
	// hold: requests for which it is true wait in held.
	hold func(r *blockdev.Request) bool
	held []*blockdev.Request
	came chan struct{} // a token per held request
	seen []asked
	ext  func(off, n int64, limit int) ([]blockdev.Extent, error)
}

// asked is a request as the device saw it.
type asked struct {
	op     blockdev.Op
	flags  blockdev.Flags
	off, n int64
}

func newDisk(n int64) *disk {
	return &disk{mem: blockdev.NewMemory(n), came: make(chan struct{}, 4096)}
}

func (d *disk) Size() int64 { return d.mem.Size() }

func (d *disk) Submit(r *blockdev.Request) {
	d.mu.Lock()
	d.seen = append(d.seen, asked{r.Op, r.Flags, r.Off, r.Len})
	if d.hold != nil && d.hold(r) {
		d.held = append(d.held, r)
		d.mu.Unlock()
		d.came <- struct{}{}
		return
	}
	d.mu.Unlock()
	d.run(r)
}

func (d *disk) run(r *blockdev.Request) {
	d.mu.Lock()
	fail := d.fail
	d.mu.Unlock()
	if fail != nil {
		if err := fail(r); err != nil {
			r.Done(r, err)
			return
		}
	}
	var err error
	switch r.Op {
	case blockdev.OpRead:
		err = d.mem.ReadAt(r.Buf.Bytes(), r.Off)
	case blockdev.OpWrite:
		err = d.mem.WriteAt(r.Buf.Bytes(), r.Off, r.Flags)
	case blockdev.OpZero:
		err = d.mem.Zero(r.Off, r.Len, r.Flags)
	case blockdev.OpTrim:
		err = d.mem.Trim(r.Off, r.Len, r.Flags)
	case blockdev.OpFlush:
		err = d.mem.Flush()
	}
	r.Done(r, err)
}

// release runs what is held, newest first.
func (d *disk) release() {
	d.mu.Lock()
	l := d.held
	d.held, d.hold = nil, nil
	d.mu.Unlock()
	for i := len(l) - 1; i >= 0; i-- {
		d.run(l[i])
	}
}

func (d *disk) holdAll() { d.setHold(func(*blockdev.Request) bool { return true }) }

func (d *disk) setHold(f func(*blockdev.Request) bool) {
	d.mu.Lock()
	d.hold = f
	d.mu.Unlock()
}

func (d *disk) setFail(f func(*blockdev.Request) error) {
	d.mu.Lock()
	d.fail = f
	d.mu.Unlock()
}

// requests returns what the device was asked so far and forgets it.
func (d *disk) requests() []asked {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.seen
	d.seen = nil
	return l
}

func (d *disk) Extents(off, n int64, limit int) ([]blockdev.Extent, error) {
	d.mu.Lock()
	f := d.ext
	d.mu.Unlock()
	if f != nil {
		return f(off, n, limit)
	}
	return d.mem.Extents(off, n, limit)
}

// wait takes n tokens of held requests.
func (d *disk) wait(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-d.came:
		case <-time.After(limit):
			t.Fatal("the device did not get the request")
		}
	}
}

// server is a running server on a Unix socket.
type server struct {
	*nbd.Server
	addr string
	log  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func serve(t testing.TB, o nbd.Options) *server {
	t.Helper()
	s := &server{addr: "unix:" + filepath.Join(t.TempDir(), "s"), log: &syncBuffer{}}
	o.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.Server = nbd.NewServer(o)
	l, err := nbd.Listen(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// serveDisk serves one export "crm" of 1 MiB.
func serveDisk(t testing.TB) (*server, *disk) {
	d := newDisk(size)
	return serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d})}), d
}

func dial(t testing.TB, s *server, export string, o client.Options) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := client.Dial(ctx, s.addr, export, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Abort() })
	return c
}

// greet opens a connection and agrees to the flags.
func greet(t testing.TB, s *server, flags uint32) *client.Handshake {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	h, err := client.Greet(ctx, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Conn.Close() })
	h.Conn.SetDeadline(time.Now().Add(limit))
	if err := h.SendFlags(flags); err != nil {
		t.Fatal(err)
	}
	return h
}

const bothFlags = uint32(nbd.FlagFixedNewstyle | nbd.FlagNoZeroes)

// outcome is what an option came to: "ack" with the replies before it, the name
// of an error reply, or "closed".
func outcome(h *client.Handshake, id uint32, data []byte) (string, []client.OptReply) {
	l, err := h.Ask(id, data)
	return outcomeOf(err), l
}

func outcomeOf(err error) string {
	var refused *client.OptionError
	switch {
	case err == nil:
		return "ack"
	case errors.As(err, &refused):
		names := map[uint32]string{
			nbd.RepErrUnsup: "unsup", nbd.RepErrPolicy: "policy", nbd.RepErrInvalid: "invalid",
			nbd.RepErrUnknown: "unknown", nbd.RepErrShutdown: "shutdown", nbd.RepErrTooBig: "too big",
			nbd.RepErrTLSReqd: "TLS required",
		}
		if n, ok := names[refused.Reply]; ok {
			return n
		}
		return fmt.Sprintf("%#x", refused.Reply)
	}
	return "closed"
}

// alive fails the test unless a new client is served.
func alive(t testing.TB, s *server) {
	t.Helper()
	c := dial(t, s, "crm", client.Options{})
	if err := c.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("server does not serve any more: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
