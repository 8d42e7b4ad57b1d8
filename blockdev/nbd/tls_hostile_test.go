package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
)

// recorded keeps what is sent.
type recorded struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorded) Write(p []byte) (int, error) {
	r.sent.Write(p)
	return r.Conn.Write(p)
}

// TestTLSDisconnectEverywhere: a client that goes away after each byte of STARTTLS
// and of TLS itself, or goes on with garbage there, leaves the server serving.
func TestTLSDisconnectEverywhere(t *testing.T) {
	s := serveTLS(t, func(o *nbd.Options) { o.HandshakeTimeout = time.Second }) // garbage that is a length is waited for
	cfg := s.db1()
	path := strings.TrimPrefix(s.addr, "unix:")
	// One good conversation, to learn how much a client sends.
	nc, err := net.Dial("unix", path)
	must(t, err)
	rec := &recorded{Conn: nc}
	c, err := client.New(t.Context(), rec, "crm", client.Options{TLS: cfg})
	must(t, err)
	total := rec.sent.Len()
	c.Abort()
	if total < 500 {
		t.Fatalf("%d bytes recorded", total)
	}
	for _, garbage := range []bool{false, true} {
		for n := 1; n < total; n += 1 + n/200 {
			nc, err := net.Dial("unix", path)
			must(t, err)
			nc.SetDeadline(time.Now().Add(limit))
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			_, err = client.New(ctx, &cutting{Conn: nc, left: n, garbage: garbage}, "crm", client.Options{TLS: cfg})
			cancel()
			if err == nil {
				t.Fatalf("a conversation cut after %d of %d bytes succeeded", n, total)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("after %d bytes, garbage %v: %v", n, garbage, err)
			}
		}
	}
	s.alive(t)
	eventually(t, "no clients are left", func() bool { return s.Clients("crm") == 0 })
}

// cutting closes its sending side after some bytes, or sends garbage from there.
type cutting struct {
	net.Conn
	left    int
	garbage bool
}

func (c *cutting) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	b := slices.Clone(p)
	if n < len(p) && c.garbage {
		for i := n; i < len(b); i++ {
			b[i] ^= 0xff
		}
		n = len(p)
	}
	if _, err := c.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	if n < len(p) {
		c.Conn.(*net.UnixConn).CloseWrite()
		return n, io.ErrShortWrite
	}
	return n, nil
}

// TestTLSHandshakeDeadline: TLS that does not come, or comes byte by byte, ends
// with the handshake's deadline, and the server is there for others meanwhile.
func TestTLSHandshakeDeadline(t *testing.T) {
	s := serveTLS(t, func(o *nbd.Options) { o.HandshakeTimeout, o.MaxHalfOpen = 500*time.Millisecond, 8 })
	silent := greet(t, s.server, bothFlags)
	if _, err := silent.Ask(nbd.OptStartTLS, nil); err != nil {
		t.Fatal(err)
	}
	slow := greet(t, s.server, bothFlags)
	if _, err := slow.Ask(nbd.OptStartTLS, nil); err != nil {
		t.Fatal(err)
	}
	go func() { // a record of 16 KiB, for ever
		slow.Conn.Write([]byte{22, 3, 1, 0x40, 0})
		for {
			if _, err := slow.Conn.Write([]byte{1}); err != nil {
				return
			}
			runtime.Gosched()
		}
	}()
	idle := s.startTLS(t, s.db1()) // and one that stops after TLS
	s.alive(t)
	for _, h := range []*client.Handshake{silent, slow, idle} {
		if _, err := io.Copy(io.Discard, h); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("not closed at the deadline")
		}
	}
	var l []*client.Handshake
	for range 30 { // half-open ones displace each other, not who is served
		h := greet(t, s.server, bothFlags)
		h.Send(nbd.OptStartTLS, nil)
		l = append(l, h)
	}
	s.alive(t)
	for _, h := range l {
		if _, err := io.Copy(io.Discard, h); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a half-open one was not closed")
		}
	}
}

// TestTLSOversize: the budget of options holds before and over TLS.
func TestTLSOversize(t *testing.T) {
	s := serveTLS(t, func(o *nbd.Options) { o.HandshakeTimeout = time.Second })
	for _, secure := range []bool{false, true} {
		h := greet(t, s.server, bothFlags)
		want := "TLS required"
		if secure {
			must(t, h.StartTLS(t.Context(), s.db1()))
			want = "unsup"
		}
		n := 0
		for ; n < 5000; n++ {
			if got, _ := outcome(h, 99, nil); got != want {
				break
			}
		}
		if n > 1025 || n < 1000 { // with the refusal of one too many, which is the same before TLS
			t.Errorf("TLS %v: %d options were answered, want 1024", secure, n)
		}
		h = greet(t, s.server, bothFlags)
		if secure {
			must(t, h.StartTLS(t.Context(), s.db1()))
		}
		b := client.AppendOption(nil, nbd.OptGo, nil)
		binary.BigEndian.PutUint32(b[12:], 0xffffffff)
		_, err := h.Conn.Write(b)
		must(t, err)
		if r, err := h.Reply(); err != nil || r.Type != nbd.RepErrTooBig && r.Type != nbd.RepErrTLSReqd {
			t.Errorf("TLS %v: option of 2^32-1 bytes: %#x %v", secure, r.Type, err)
		}
	}
	s.alive(t)
}

// TestTLSStalledClient: who takes no replies over TLS neither blocks callbacks nor
// a disconnect, and is given up.
func TestTLSStalledClient(t *testing.T) {
	pool := blockdev.NewPool(64 << 20)
	s := serveTLS(t, func(o *nbd.Options) { o.Pool, o.StallTimeout = pool, 100*time.Millisecond })
	h := s.startTLS(t, s.db1())
	outcome(h, nbd.OptGo, client.InfoData("crm"))
	must(t, s.d.mem.WriteAt(bytes.Repeat([]byte{1}, size), 0, 0))
	for i := range uint64(20) {
		h.Conn.Write(request(nbd.CmdRead, 0, i, 0, size))
	}
	eventually(t, "the client is given up", func() bool { return s.Clients("crm") == 0 && pool.Out() == 0 })
	s.alive(t)
}

// TestTLSShutdown: requests in flight are answered over TLS before the end.
func TestTLSShutdown(t *testing.T) {
	s := serveTLS(t, nil)
	c := dial(t, s.server, "crm", client.Options{TLS: s.db1()})
	s.d.holdAll()
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteAt([]byte("last"), 0, 0) }()
	s.d.wait(t, 1)
	h := greet(t, s.server, bothFlags)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(ctx) }()
	eventually(t, "requests are refused", func() bool { return errors.Is(c.ReadAt(make([]byte, 1), 0), nbd.ESHUTDOWN) })
	if got, _ := outcome(h, nbd.OptStartTLS, nil); got != "shutdown" {
		t.Errorf("STARTTLS: %s", got)
	}
	s.d.release()
	must(t, <-wrote)
	must(t, <-down)
}
