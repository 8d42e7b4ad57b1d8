package tcpnet

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/session/sessiontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var suite = sessiontest.With{
	Transport:  session.TCP,
	Open:       map[session.Transport]session.Opener{session.TCP: Open},
	Simulate:   func(*testing.T) sessiontest.Link { return simulate() },
	Crash:      crash,
	CrashCause: session.ErrLost,
	Strangers:  strangers,
	Silent: func(t *testing.T) string {
		silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections, and nobody answers
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
		return silent.Addr().String()
	},
	FloodBytes:   2 << 20,
	HeldMax:      3 * 2 * session.StreamsMax * (readMax + batchMax),
	ControlApart: true,
}

func TestSession(t *testing.T)     { suite.Run(t) }
func BenchmarkEcho4K(b *testing.B) { suite.BenchmarkEcho(b) }
func BenchmarkBulk(b *testing.B)   { suite.BenchmarkBulk(b) }

// crash ends the sockets as the kernel does when a process dies.
func crash(at session.Endpoint) {
	e := at.(*endpoint)
	e.listener.Close()
	e.mu.Lock()
	var all []*stream
	for c := range e.conns {
		all = append(all, c.ctl)
		for s := range c.streams {
			all = append(all, s)
		}
	}
	e.mu.Unlock()
	for _, s := range all {
		s.end(abortive)
	}
}

// strangers say nothing, or half of something, or something else than TLS, on many more
// connections than there may be.
func strangers(t *testing.T, at session.Endpoint) (check, stop func()) {
	e := at.(*endpoint)
	const each = 60
	var mu sync.Mutex
	var conns []net.Conn
	keep := func() net.Conn {
		c, err := net.Dial("tcp", e.Addr().String())
		if err != nil {
			t.Error(err)
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
		return c
	}
	var wg sync.WaitGroup
	for range each {
		keep() // and says nothing
		if c := keep(); c != nil {
			c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1}) // the beginning of a ClientHello
		}
		if c := keep(); c != nil {
			c.Write([]byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n"))
		}
		if c := keep(); c != nil { // one byte at a time
			wg.Go(func() {
				for _, err := c.Write([]byte{22}); err == nil; _, err = c.Write([]byte{3}) {
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		if c := keep(); c != nil { // TLS without a certificate
			wg.Go(func() {
				tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{session.ALPN}}).Handshake()
			})
		}
	}
	check = func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := len(e.guests); n > guestsMax+4 {
			t.Errorf("%d connections without a key", n)
		}
	}
	stop = func() {
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}
	return check, stop
}
