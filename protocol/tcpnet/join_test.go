package tcpnet

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// FuzzReadJoin: whatever a peer sends first is a Join and nothing else, or an error.
func FuzzReadJoin(f *testing.F) {
	join := protocol.AppendFrame(nil, &protocol.Join{Ticket: ticket{1, 2, 31: 3}}, nil)
	f.Add(join)
	f.Add(join[:20])
	f.Add(protocol.AppendFrame(nil, &protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		m, err := readJoin(r, make([]byte, len(join)))
		if err != nil {
			return
		}
		if read := len(data) - r.Len(); read != len(join) || !bytes.Equal(protocol.AppendFrame(nil, m, nil)[protocol.HeaderLen:], data[protocol.HeaderLen:read]) {
			t.Fatalf("%d bytes of %x make %+v", read, data, m)
		}
	})
}

// place is an endpoint that the tests call by hand.
func place(t *testing.T, id *session.Identity, allowed ...*session.Identity) *endpoint {
	t.Helper()
	cert, err := id.Certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(session.Port{Listen: "127.0.0.1:0", Identity: id, Certificate: cert,
		Congestion: func(ed25519.PublicKey) string { return "reno" }, // every kernel has it
		Peers:      func() int { return len(allowed) },
		Allowed: func(key ed25519.PublicKey) bool {
			for _, a := range allowed {
				if key.Equal(a.Public()) {
					return true
				}
			}
			return false
		},
		Heartbeat: time.Second, PeerTimeout: time.Second, DialTimeout: time.Second, Failed: func(net.Addr, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e.(*endpoint)
}

func newIdentity(t *testing.T) *session.Identity {
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestTicketBindsStreams: a stream is taken with the ticket and the key of its session
// together; with another ticket, with another configured peer's key, or without
// a Join its connection ends and nothing is handed over.
func TestTicketBindsStreams(t *testing.T) {
	ida, idb, idm := newIdentity(t), newIdentity(t), newIdentity(t)
	beta := place(t, idb, ida, idm)
	alpha, mallory := place(t, ida, idb), place(t, idm, idb)
	at, keys := beta.Addr().String(), []ed25519.PublicKey{idb.Public()}
	out, err := alpha.Dial(t.Context(), at, keys)
	if err != nil {
		t.Fatal(err)
	}
	c := out.(*conn)
	in, err := beta.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if in.(*conn).ticket != c.ticket || c.ticket == (ticket{}) {
		t.Fatalf("tickets %x and %x", in.(*conn).ticket, c.ticket)
	}
	if _, err := in.Open(t.Context(), protocol.StreamBulk); !errors.Is(err, errNotDialer) {
		t.Errorf("the accepting side opened a stream: %v", err)
	}
	try := func(e *endpoint, tk ticket) (handed bool) {
		s, err := e.dial(t.Context(), at, keys, alpnStream, c.heard)
		if err != nil {
			t.Fatal(err)
		}
		defer s.end(abortive)
		s.Write(protocol.AppendFrame(nil, &protocol.Join{Ticket: tk}, nil))
		ended := make(chan error, 1)
		go func() {
			_, err := s.Read(make([]byte, 1))
			ended <- err
		}()
		select {
		case taken := <-in.(*conn).joined:
			taken.Abort(0)
			<-ended
			return true
		case err := <-ended:
			if !errors.Is(err, session.ErrAborted) {
				t.Errorf("refused with %v", err)
			}
			return false
		}
	}
	wrong := c.ticket
	wrong[31] ^= 1
	for _, k := range []struct {
		name string
		from *endpoint
		with ticket
		want bool
	}{
		{"the session's own", alpha, c.ticket, true},
		{"one bit off", alpha, wrong, false},
		{"none", alpha, ticket{}, false},
		{"another peer with the ticket", mallory, c.ticket, false},
		{"the session's own again", alpha, c.ticket, true},
	} {
		if got := try(k.from, k.with); got != k.want {
			t.Errorf("%s: taken %v", k.name, got)
		}
	}
	c.Close(protocol.CodeShutdown, "over")
	go io.Copy(io.Discard, &control{in.(*conn)})
	<-in.Done()
	var closed *session.CloseError
	if !errors.As(in.Cause(), &closed) || closed.Text != "over" {
		t.Errorf("ended with %v", in.Cause())
	}
	if try(alpha, c.ticket) {
		t.Error("taken after the session's end")
	}
}

// TestHalfOpenEnds: a connection that does not say what it is ends in time, before and after
// TLS, and counts no more.
func TestHalfOpenEnds(t *testing.T) {
	ida, idb := newIdentity(t), newIdentity(t)
	alpha, beta := place(t, ida, idb), place(t, idb, ida)
	silent, err := net.Dial("tcp", beta.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	joinless, err := alpha.dial(t.Context(), beta.Addr().String(), []ed25519.PublicKey{idb.Public()}, alpnStream, new(atomic.Uint64))
	if err != nil {
		t.Fatal(err)
	}
	defer joinless.end(abortive)
	for _, r := range []io.Reader{silent, joinless} {
		began := time.Now()
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Error("bytes for nothing")
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("ended after %v", took)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		beta.mu.Lock()
		left := len(beta.guests)
		beta.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections still counted", left)
		}
	}
}

// TestPeersHostsAreNoStrangers: when there are too many, the oldest stranger makes room, and a guest from a peer's host only when there
// is no other.
func TestPeersHostsAreNoStrangers(t *testing.T) {
	peer, other := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}
	e := &endpoint{port: session.Port{Peers: func() int { return 0 }, PeerOn: func(host netip.Addr) bool { return host == session.HostOf(peer) }}}
	greet := func(addr net.Addr) *stream {
		c, far := net.Pipe()
		t.Cleanup(func() { far.Close() })
		s := newStream(at{c, addr}, new(atomic.Uint64), tls.Server, &tls.Config{})
		e.greet(s)
		return s
	}
	first, second := greet(peer), greet(other)
	for range guestsMax - 2 {
		greet(other)
	}
	greet(other)
	if len(e.guests) != guestsMax || !slices.Contains(e.guests, first) || slices.Contains(e.guests, second) {
		t.Errorf("%d guests, a peer's among them %v, the oldest stranger %v", len(e.guests), slices.Contains(e.guests, first), slices.Contains(e.guests, second))
	}
	for range guestsMax {
		greet(peer)
	}
	if len(e.guests) != guestsMax || slices.Contains(e.guests, first) {
		t.Errorf("%d guests, the oldest of peers' %v", len(e.guests), slices.Contains(e.guests, first))
	}
}

// at is a connection from an address.
type at struct {
	net.Conn
	addr net.Addr
}

func (c at) RemoteAddr() net.Addr { return c.addr }

// TestStrangerOnStreamALPN: who has no configured key gets nowhere on a stream's
// connection either.
func TestStrangerOnStreamALPN(t *testing.T) {
	idb := newIdentity(t)
	beta := place(t, idb, newIdentity(t))
	stranger := place(t, newIdentity(t), idb)
	s, err := stranger.dial(t.Context(), beta.Addr().String(), []ed25519.PublicKey{idb.Public()}, alpnStream, new(atomic.Uint64))
	if err == nil { // TLS 1.3 lets the client go on before the server has looked
		_, err = s.Read(make([]byte, 1))
		s.end(abortive)
	}
	var failed *session.Failure
	if !errors.As(err, &failed) || failed.Reason != session.KeyRefused {
		t.Errorf("refused with %v", err)
	}
}

// TestOtherProtocols: a node that speaks TLS but no protocol of this one is told so by an alert.
func TestOtherProtocols(t *testing.T) {
	beta := place(t, newIdentity(t))
	for _, c := range []struct {
		config *tls.Config
		what   string
	}{
		{&tls.Config{NextProtos: []string{"h2"}}, "another ALPN"},
		{&tls.Config{NextProtos: []string{session.ALPN}, MaxVersion: tls.VersionTLS12}, "TLS 1.2"},
	} {
		c.config.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", beta.Addr().String(), c.config)
		if err == nil {
			conn.Close()
			t.Errorf("%s is let in", c.what)
		}
	}
}
