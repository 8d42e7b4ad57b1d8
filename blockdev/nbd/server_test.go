package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestDisconnectEverywhere: a client that goes away after each byte of a whole
// conversation, handshake and a write, leaves the server serving.
func TestDisconnectEverywhere(t *testing.T) {
	s, d := serveDisk(t)
	all := binary.BigEndian.AppendUint32(nil, bothFlags)
	all = client.AppendOption(all, nbd.OptStructuredReply, nil)
	all = client.AppendOption(all, nbd.OptSetMetaContext, client.ContextData("crm", "base:allocation"))
	all = client.AppendOption(all, nbd.OptList, nil)
	all = client.AppendOption(all, nbd.OptGo, client.InfoData("crm", 1, 2, 3))
	all = append(all, request(nbd.CmdWrite, 0, 1, 0, 64)...)
	all = append(all, make([]byte, 64)...)
	for n := range len(all) + 1 {
		c, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
		must(t, err)
		_, err = c.Write(all[:n])
		must(t, err)
		if n%2 == 0 { // half of them wait for the greeting, half slam the door
			io.ReadFull(c, make([]byte, 18))
		}
		c.Close()
	}
	alive(t, s)
	eventually(t, "no clients are left", func() bool { return s.Clients("crm") == 0 })
	for _, r := range d.requests() {
		if r.op == blockdev.OpWrite && r.n != 64 {
			t.Errorf("a cut write reached the device: %v", r)
		}
	}
}

// TestSilentConnections: line 10, 200 connections that say nothing do not keep a
// client out, cost little memory, and are closed.
func TestSilentConnections(t *testing.T) {
	x := newExports(&nbd.Export{Name: "crm", Device: newDisk(size)})
	s := serve(t, nbd.Options{Exports: x, MaxHalfOpen: 32, HandshakeTimeout: 300 * time.Millisecond})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var l []net.Conn
	for range 200 {
		c, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
		must(t, err)
		defer c.Close()
		l = append(l, c)
	}
	alive(t, s)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	for i, c := range l { // every one of them comes to its end
		c.SetDeadline(time.Now().Add(limit))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d was not closed", i)
		}
	}
	alive(t, s)
}

// TestHandshakeDeadline: it ends with the handshake, for those who finish it.
func TestHandshakeDeadline(t *testing.T) {
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}), HandshakeTimeout: 100 * time.Millisecond})
	c := dial(t, s, "", client.Options{})
	silent := greet(t, s, bothFlags)
	if _, err := silent.Reply(); !errors.Is(err, io.EOF) {
		t.Errorf("silent connection: %v, want EOF", err)
	}
	must(t, c.ReadAt(make([]byte, 512), 0)) // older than the silent one
}

// TestMaxConns: one more client than allowed gets a reason.
func TestMaxConns(t *testing.T) {
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}), MaxConns: 2})
	dial(t, s, "", client.Options{})
	b := dial(t, s, "", client.Options{})
	h := greet(t, s, bothFlags)
	if got, _ := outcome(h, nbd.OptGo, client.InfoData("")); got != "policy" {
		t.Errorf("third client: %s", got)
	}
	before := nbd.Connections() // of this package's other tests, too
	if before < 3 {
		t.Errorf("the process counts %d connections, of which 3 are this test's", before)
	}
	must(t, b.Close())
	eventually(t, "one has left", func() bool { return s.Clients("crm") == 1 && nbd.Connections() < before })
	if got, _ := outcome(h, nbd.OptGo, client.InfoData("")); got != "ack" {
		t.Errorf("after one left: %s", got)
	}
}

// TestSlowReader: a client that asks and takes no replies does not block the
// device's callbacks, holds bounded memory, keeps nobody else waiting, and gets
// everything once it reads.
func TestSlowReader(t *testing.T) {
	pool := blockdev.NewPool(64 << 20)
	d := newDisk(8 << 20)
	must(t, d.mem.WriteAt([]byte{1}, 0, 0))
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d}), Pool: pool, PerConnBytes: 8 << 20})
	h := greet(t, s, bothFlags)
	outcome(h, nbd.OptGo, client.InfoData(""))
	const n, each = 100, 1 << 20
	go func() {
		for i := range uint64(n) {
			if _, err := h.Conn.Write(request(nbd.CmdRead, 0, i, 0, each)); err != nil {
				t.Error(err)
			}
		}
	}()
	eventually(t, "replies are stuck", func() bool { return pool.Out() >= 7<<20 })
	alive(t, s) // the device executes inside Submit: a blocked callback would be seen here
	if out := pool.Out(); out > 8<<20 {
		t.Errorf("%d bytes are out for one connection", out)
	}
	seen := map[uint64]bool{}
	b := make([]byte, 16+each)
	for range n {
		if _, err := io.ReadFull(h, b); err != nil {
			t.Fatal(err)
		}
		seen[binary.BigEndian.Uint64(b[8:])] = true
		if b[16] != 1 || b[17] != 0 {
			t.Fatal("wrong data")
		}
	}
	if len(seen) != n {
		t.Errorf("%d different replies, want %d", len(seen), n)
	}
	h.Conn.Close()
	eventually(t, "buffers came back", func() bool { return pool.Out() == 0 })
}

// TestCallbackNeverBlocks: Done returns although the client does not drain.
func TestCallbackNeverBlocks(t *testing.T) {
	s, d := serveDisk(t)
	h := greet(t, s, bothFlags)
	outcome(h, nbd.OptGo, client.InfoData(""))
	d.holdAll()
	const n = 40 // of 1 MiB: far more than a socket holds
	for i := range uint64(n) {
		_, err := h.Conn.Write(request(nbd.CmdRead, 0, i, 0, size))
		must(t, err)
	}
	d.wait(t, n)
	released := make(chan struct{})
	go func() {
		d.release()
		close(released)
	}()
	select {
	case <-released:
	case <-time.After(limit):
		t.Fatal("a Done callback waits for the client")
	}
	if _, err := io.CopyN(io.Discard, h, n*(16+size)); err != nil {
		t.Error(err)
	}
}

// TestStalledClient: one that takes nothing for the stall timeout is given up,
// and what it held comes back.
func TestStalledClient(t *testing.T) {
	pool := blockdev.NewPool(64 << 20)
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)}), Pool: pool, StallTimeout: 50 * time.Millisecond})
	h := greet(t, s, bothFlags)
	outcome(h, nbd.OptGo, client.InfoData(""))
	for i := range uint64(20) {
		h.Conn.Write(request(nbd.CmdRead, 0, i, 0, size))
	}
	eventually(t, "the client is given up", func() bool { return s.Clients("crm") == 0 && pool.Out() == 0 })
	if !strings.Contains(s.log.String(), "sending replies") {
		t.Error("the reason is not logged")
	}
}

// TestInFlightBound: no more requests, nor more bytes, than allowed reach the
// device.
func TestInFlightBound(t *testing.T) {
	for name, tt := range map[string]struct {
		each, want int
	}{"requests": {512, 4}, "bytes": {100 << 10, 3}, "one is always let through": {size, 1}} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(size)
			s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d}), PerConnInFlight: 4, PerConnBytes: 300 << 10})
			c := dial(t, s, "", client.Options{})
			d.setHold(func(r *blockdev.Request) bool { return r.Off == 0 && r.Len == int64(tt.each) })
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if err := c.ReadAt(make([]byte, tt.each), 0); err != nil {
						t.Error(err)
					}
				})
			}
			d.wait(t, tt.want)
			other := dial(t, s, "", client.Options{}) // time enough for one more, if it could
			must(t, other.ReadAt(make([]byte, 1), 1))
			if n := len(d.requests()) - 1; n != tt.want {
				t.Errorf("%d requests reached the device, want %d", n, tt.want)
			}
			d.release()
			wg.Wait()
		})
	}
}

// TestPoolBound: connections share the pool's bytes; one that waits for them is
// released by a disconnect.
func TestPoolBound(t *testing.T) {
	pool := blockdev.NewPool(32 << 20)
	d := newDisk(64 << 20)
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d}), Pool: pool})
	a, h := dial(t, s, "", client.Options{}), greet(t, s, bothFlags)
	outcome(h, nbd.OptGo, client.InfoData(""))
	d.setHold(func(r *blockdev.Request) bool { return r.Op == blockdev.OpRead })
	var wg sync.WaitGroup
	wg.Go(func() { a.ReadAt(make([]byte, 32<<20), 0) })
	d.wait(t, 1)
	_, err := h.Conn.Write(append(request(nbd.CmdTrim, 0, 1, 0, 512), request(nbd.CmdRead, 0, 2, 0, 32<<20)...))
	must(t, err)
	_, err = io.ReadFull(h, make([]byte, 16)) // the trim's reply leaves when the read has to wait
	must(t, err)
	if out := pool.Out(); out > 32<<20 {
		t.Errorf("%d bytes are out", out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- s.Disconnect(ctx, "crm") }()
	wg.Wait() // the call fails: the connection is closed
	eventually(t, "the one that waits for bytes ends", func() bool { return s.Clients("crm") == 1 })
	d.release()
	must(t, <-left)
	if pool.Out() != 0 {
		t.Errorf("%d bytes did not come back", pool.Out())
	}
}

// TestDisconnect waits for the device and touches no other export.
func TestDisconnect(t *testing.T) {
	crm, hr := newDisk(size), newDisk(size)
	x := newExports(&nbd.Export{Name: "crm", Device: crm}, &nbd.Export{Name: "hr", Device: hr})
	s := serve(t, nbd.Options{Exports: x})
	a, other := dial(t, s, "crm", client.Options{}), dial(t, s, "hr", client.Options{})
	if s.Clients("crm") != 1 || s.Clients("hr") != 1 || s.Clients("erp") != 0 {
		t.Errorf("clients: crm %d, hr %d", s.Clients("crm"), s.Clients("hr"))
	}
	crm.holdAll()
	go a.WriteAt([]byte("late"), 0, 0)
	crm.wait(t, 1)
	x.set("crm", &nbd.PolicyError{Text: "demoted"})
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	wantErr(t, "disconnect with a request in the device", s.Disconnect(short, "crm"), context.DeadlineExceeded)
	crm.release()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	must(t, s.Disconnect(ctx, "crm"))
	if s.Clients("crm") != 0 {
		t.Error("clients are left")
	}
	must(t, other.ReadAt(make([]byte, 512), 0))
	if got, _ := outcome(greet(t, s, bothFlags), nbd.OptGo, client.InfoData("crm")); got != "policy" {
		t.Errorf("GO afterwards: %s", got)
	}
}

// openThen runs a function inside the first Open.
type openThen struct {
	*exports
	once sync.Once
	then func()
}

func (o *openThen) Open(name string, c nbd.Caller) (*nbd.Export, error) {
	e, err := o.exports.Open(name, c)
	o.once.Do(o.then)
	return e, err
}

// TestDisconnectRace: an export opened before a disconnect is not used after it.
func TestDisconnectRace(t *testing.T) {
	x := &openThen{exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)})}
	var s *server
	x.then = func() {
		x.set("crm", &nbd.PolicyError{Text: "demoted"})
		must(t, s.Disconnect(context.Background(), "crm"))
	}
	s = serve(t, nbd.Options{Exports: x})
	if got, _ := outcome(greet(t, s, bothFlags), nbd.OptGo, client.InfoData("crm")); got != "policy" {
		t.Errorf("GO: %s, want policy", got)
	}
}

// TestShutdown: line 11.
func TestShutdown(t *testing.T) {
	s, d := serveDisk(t)
	c := dial(t, s, "", client.Options{})
	h := greet(t, s, bothFlags)
	idle := greet(t, s, bothFlags)
	d.setHold(func(r *blockdev.Request) bool { return r.Op == blockdev.OpWrite })
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteAt([]byte("last"), 0, 0) }()
	d.wait(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(ctx) }()
	eventually(t, "requests are refused", func() bool { return errors.Is(c.ReadAt(make([]byte, 1), 0), nbd.ESHUTDOWN) })
	for _, id := range []uint32{nbd.OptGo, nbd.OptInfo, nbd.OptList} {
		if got, _ := outcome(h, id, client.InfoData("crm")); got != "shutdown" {
			t.Errorf("option %d: %s, want shutdown", id, got)
		}
	}
	eventually(t, "no new connection is accepted", func() bool { // the socket is closed after requests are refused
		nc, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	select {
	case err := <-down:
		t.Errorf("shutdown did not wait for the write: %v", err)
	default:
	}
	d.release()
	if err := <-wrote; err != nil {
		t.Errorf("the write in flight: %v", err)
	}
	must(t, <-down)
	if _, err := idle.Reply(); err == nil {
		t.Error("a half-open connection is left")
	}
}

// TestShutdownTimeout: a device that hangs does not hang Shutdown.
func TestShutdownTimeout(t *testing.T) {
	s, d := serveDisk(t)
	c := dial(t, s, "", client.Options{})
	d.holdAll()
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteAt([]byte("late"), 0, 0) }()
	d.wait(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	wantErr(t, "shutdown", s.Shutdown(ctx), context.DeadlineExceeded)
	if err := <-wrote; err == nil {
		t.Error("the write was acknowledged")
	}
	d.release()
}

// TestListen covers addresses, modes and stale sockets.
func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "crm.sock")
	l, err := nbd.Listen("unix:" + path)
	must(t, err)
	st, err := os.Stat(path)
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	_, err = nbd.Listen("unix:" + path)
	wantErr(t, "second listener", err, nbd.ErrInUse)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = nbd.Listen("unix:" + path) // the socket is still there, nobody answers
	must(t, err)
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := nbd.Listen("unix:" + path); err == nil {
		t.Error("a regular file was replaced")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file now holds %q, %v", b, err)
	}
	l, err = nbd.Listen("tcp:127.0.0.1:0")
	must(t, err)
	_, err = nbd.Listen("tcp:" + l.Addr().String())
	wantErr(t, "port in use", err, nbd.ErrInUse)
	l.Close()
	for _, bad := range []string{"", "unix:", "tcp:", "udp:1", "/run/x", "tcp:nohost"} {
		if l, err := nbd.Listen(bad); err == nil {
			l.Close()
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestTCP serves over TCP, with Nagle's algorithm off, and ends Serve.
func TestTCP(t *testing.T) {
	l, err := nbd.Listen("tcp:127.0.0.1:0")
	must(t, err)
	s := nbd.NewServer(nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: newDisk(size)})})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := client.Dial(ctx, "tcp:"+l.Addr().String(), "crm", client.Options{})
	must(t, err)
	must(t, c.WriteAt(make([]byte, 300000), 1, blockdev.FUA))
	must(t, c.Close())
	must(t, s.Shutdown(ctx))
	must(t, <-ended)
	must(t, s.Serve(l)) // of a server that was shut down
}

// TestBadMagic: a broken request magic ends the connection at once.
func TestBadMagic(t *testing.T) {
	s, d := serveDisk(t)
	h := greet(t, s, bothFlags)
	outcome(h, nbd.OptGo, client.InfoData(""))
	b := request(nbd.CmdTrim, 0, 1, 0, 512)
	b[0]++
	h.Conn.Write(b)
	if _, err := io.Copy(io.Discard, h); err != nil {
		t.Error(err)
	}
	if len(d.requests()) != 0 {
		t.Error("it reached the device")
	}
	alive(t, s)
}

// TestListenUnix gives a socket to a user and a group, and nothing else to anybody.
func TestListenUnix(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		access   nbd.Access
		uid, gid uint32
		mode     os.FileMode
	}{
		"private":         {nbd.Private(), 0, uint32(os.Getegid()), 0o600},
		"of a user":       {nbd.Access{UID: 64001, GID: -1, Mode: 0o600}, 64001, uint32(os.Getegid()), 0o600},
		"of a group":      {nbd.Access{UID: -1, GID: 64201, Mode: 0o660}, 0, 64201, 0o660},
		"of both, closed": {nbd.Access{UID: 64001, GID: 64201, Mode: 0o600}, 64001, 64201, 0o600},
	} {
		l, err := nbd.ListenUnix(filepath.Join(dir, "s"), tt.access)
		must(t, err)
		st, err := os.Lstat(filepath.Join(dir, "s"))
		must(t, err)
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != tt.uid || sys.Gid != tt.gid || st.Mode().Perm() != tt.mode {
			t.Errorf("%s: uid %d, gid %d, %v", name, sys.Uid, sys.Gid, st.Mode())
		}
		l.Close()
	}
}

// TestNothingLate: of a client that was disconnected nothing reaches the device any more,
// whatever it had sent, once it is let in again.
func TestNothingLate(t *testing.T) {
	s, d := serveDisk(t)
	inside, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	d.mu.Lock()
	d.fail = func(r *blockdev.Request) error {
		first.Do(func() {
			close(inside)
			<-release
		})
		return nil
	}
	d.mu.Unlock()
	c, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
	must(t, err)
	defer c.Close()
	all := binary.BigEndian.AppendUint32(nil, bothFlags)
	all = client.AppendOption(all, nbd.OptGo, client.InfoData("crm"))
	for i := range uint64(20) { // the first is in the device, the others wait behind it
		all = append(append(all, request(nbd.CmdWrite, 0, i+1, i*512, 512)...), bytes.Repeat([]byte{1}, 512)...)
	}
	_, err = c.Write(all)
	must(t, err)
	<-inside
	left := make(chan error, 1)
	go func() { left <- s.Disconnect(context.Background(), "crm") }()
	eventually(t, "the old connection is closed", func() bool {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := io.Copy(io.Discard, c)
		return err == nil
	})
	again := make(chan *client.Client)
	go func() { again <- dial(t, s, "crm", client.Options{}) }()
	close(release)
	b := <-again
	must(t, b.WriteAt(make([]byte, 20*512), 0, 0))
	must(t, <-left)
	got := make([]byte, 20*512)
	must(t, b.ReadAt(got, 0))
	if !bytes.Equal(got, make([]byte, 20*512)) {
		t.Error("writes of the old connection came after those of the new one")
	}
	for _, r := range d.requests() {
		if r.op == blockdev.OpWrite && r.n == 512 && r.off != 0 {
			t.Errorf("%v reached the device after the disconnection", r)
		}
	}
}

// TestDeserted: of a client that closes its connection, and will send again what was not
// answered, nothing that is still on the way is executed. Here it waits for a buffer.
func TestDeserted(t *testing.T) {
	pool := blockdev.NewPool(32 << 20)
	d := newDisk(64 << 20)
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d}), Pool: pool, LeaveUnanswered: true})
	other := dial(t, s, "", client.Options{})
	d.setHold(func(r *blockdev.Request) bool { return r.Op == blockdev.OpRead })
	read := make(chan error, 1)
	go func() { read <- other.ReadAt(make([]byte, 32<<20), 0) }() // has all of the pool
	d.wait(t, 1)
	c, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
	must(t, err)
	all := binary.BigEndian.AppendUint32(nil, bothFlags)
	all = client.AppendOption(all, nbd.OptGo, client.InfoData("crm"))
	for i := range uint64(20) {
		all = append(append(all, request(nbd.CmdWrite, 0, i+1, i*512, 512)...), bytes.Repeat([]byte{1}, 512)...)
	}
	_, err = c.Write(all)
	must(t, err)
	eventually(t, "the client has entered", func() bool { return s.Clients("crm") == 2 })
	time.Sleep(20 * time.Millisecond) // until it waits; if it does not, the test proves less
	c.Close()
	d.release()
	must(t, <-read)
	eventually(t, "the connection has ended", func() bool { return s.Clients("crm") == 1 })
	for _, r := range d.requests() {
		if r.op == blockdev.OpWrite {
			t.Errorf("%v reached the device", r)
		}
	}
}

// TestLeaveUnanswered: while the server shuts down a request gets no error that the
// kernel would take for the disk's; what is in the device is answered.
func TestLeaveUnanswered(t *testing.T) {
	d := newDisk(size)
	s := serve(t, nbd.Options{Exports: newExports(&nbd.Export{Name: "crm", Device: d}), LeaveUnanswered: true})
	c, idle := dial(t, s, "", client.Options{}), dial(t, s, "", client.Options{})
	d.holdAll()
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteAt([]byte("last"), 0, 0) }()
	d.wait(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(ctx) }()
	eventually(t, "the server shuts down", func() bool {
		nc, err := net.Dial("unix", strings.TrimPrefix(s.addr, "unix:"))
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	unanswered := func(what string, err error) {
		t.Helper()
		var e nbd.Errno
		if err == nil || errors.As(err, &e) {
			t.Errorf("%s: %v, want an end without an answer", what, err)
		}
	}
	unanswered("a connection at rest", idle.ReadAt(make([]byte, 1), 0))
	d.release() // the connection's end waits for the write
	must(t, <-wrote)
	unanswered("one that had a request in the device", c.ReadAt(make([]byte, 1), 0))
	must(t, <-down)
}
