package quicnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// rawDial connects to n as a program that has the key but is not qrbd.
func rawDial(t *testing.T, n *testNode, id *Identity) *quic.Conn {
	t.Helper()
	cert, err := id.certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := quic.DialAddr(t.Context(), n.Addr().String(), clientTLS(cert, n.peersKeys()), &quic.Config{MaxIncomingStreams: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseWithError(0, "") })
	return conn
}

func helloFrame(name string) []byte {
	return protocol.AppendFrame(nil, &protocol.NodeHello{Major: protocol.Major, Name: name, Instance: rand.Uint64()}, nil)
}

// rawSession is a rawDial that has said hello properly.
func rawSession(t *testing.T, n *testNode, id *Identity, name string) (*quic.Conn, *quic.Stream, *Session) {
	t.Helper()
	conn := rawDial(t, n, id)
	ctl, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctl.Write(helloFrame(name))
	if _, err := (&frameReader{r: ctl}).next(); err != nil {
		t.Fatal(err)
	}
	ctl.Write(protocol.AppendFrame(nil, &protocol.Ping{}, nil))
	return conn, ctl, next(t, n.ups, "session with the raw client")
}

// closedWith waits for the connection's end and returns the code it was given.
func closedWith(t *testing.T, conn *quic.Conn) protocol.Code {
	t.Helper()
	next(t, conn.Context().Done(), "end of the connection")
	var app *quic.ApplicationError
	if err := context.Cause(conn.Context()); !errors.As(err, &app) || !app.Remote {
		t.Fatalf("ended with %v", err)
	}
	return protocol.Code(app.ErrorCode)
}

// TestBadHandshakes: a peer with a right key and wrong bytes is refused with a
// reason, and can connect properly afterwards.
func TestBadHandshakes(t *testing.T) {
	id := newIdentity(t)
	beta := startNode(t, "beta", newIdentity(t), func(o *Options) { o.DialTimeout = 300 * time.Millisecond })
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	huge := protocol.AppendFrame(nil, &protocol.Data{Op: protocol.DataWrite, Len: 1 << 20}, make([]byte, 1<<20))
	large := protocol.AppendFrame(nil, &protocol.BitmapPart{Words: make([]uint64, protocol.BitmapWordMax)}, nil)
	lying := helloFrame("alpha")
	binary.LittleEndian.PutUint32(lying, 0xffffffff)
	corrupt := helloFrame("alpha")
	corrupt[20] ^= 1
	for _, c := range []struct {
		name  string
		bytes []byte // nil: no control stream at all
		end   bool   // close the stream after the bytes
		want  protocol.Code
	}{
		{"nothing", nil, false, protocol.CodeTimeout},
		{"half a hello", helloFrame("alpha")[:9], false, protocol.CodeTimeout},
		{"half a hello and the end", helloFrame("alpha")[:9], true, protocol.CodeInternal},
		{"hello without the last step", helloFrame("alpha"), false, protocol.CodeTimeout},
		{"hello twice", append(helloFrame("alpha"), helloFrame("alpha")...), false, protocol.CodeProtocol},
		{"garbage", bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100), false, protocol.CodeProtocol},
		{"a data frame of 1 MiB", huge, false, protocol.CodeProtocol},
		{"a body of 32 KiB", large, false, protocol.CodeProtocol},
		{"a length of 4 GiB", lying, false, protocol.CodeProtocol},
		{"corrupted", corrupt, false, protocol.CodeProtocol},
		{"ping first", protocol.AppendFrame(nil, &protocol.Ping{}, nil), false, protocol.CodeProtocol},
		{"another name", helloFrame("mallory"), false, protocol.CodeName},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := rawDial(t, beta, id)
			if c.bytes != nil {
				ctl, err := conn.OpenStreamSync(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ctl.Write(c.bytes)
				if c.end {
					ctl.Close()
				}
			}
			if code := closedWith(t, conn); code != c.want {
				t.Errorf("closed with %v, want %v", code, c.want)
			}
		})
	}
	if len(beta.ups) != 0 {
		t.Error("a session began")
	}
	rawSession(t, beta, id, "alpha")
}

// TestBadSessions: wrong bytes inside a session end it with a reason.
func TestBadSessions(t *testing.T) {
	id := newIdentity(t)
	beta := startNode(t, "beta", newIdentity(t), nil)
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	onStream := func(data []byte) func(*quic.Conn, *quic.Stream) {
		return func(conn *quic.Conn, _ *quic.Stream) {
			st, err := conn.OpenStream()
			if err != nil {
				panic(err)
			}
			st.Write(data)
		}
	}
	for _, c := range []struct {
		name string
		do   func(*quic.Conn, *quic.Stream)
		want protocol.Code
	}{
		{"garbage on control", func(_ *quic.Conn, ctl *quic.Stream) { ctl.Write([]byte("garbage, garbage")) }, protocol.CodeProtocol},
		{"hello again", func(_ *quic.Conn, ctl *quic.Stream) { ctl.Write(helloFrame("alpha")) }, protocol.CodeProtocol},
		{"end of control", func(_ *quic.Conn, ctl *quic.Stream) { ctl.Close() }, protocol.CodeProtocol},
		{"control aborted", func(_ *quic.Conn, ctl *quic.Stream) { ctl.CancelWrite(1) }, protocol.CodeProtocol},
		{"garbage on a stream", onStream([]byte("garbage, garbage")), protocol.CodeProtocol},
		{"a stream without StreamOpen", onStream(protocol.AppendFrame(nil, &protocol.Ack{}, nil)), protocol.CodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, ctl, _ := rawSession(t, beta, id, "alpha")
			c.do(conn, ctl)
			if code := closedWith(t, conn); code != c.want {
				t.Errorf("closed with %v, want %v", code, c.want)
			}
			next(t, beta.downs, "down")
		})
	}
}

// TestFlood: a peer that opens all the streams it may, says nothing on them,
// fills every window and sends pings without reading costs bounded memory, and
// the session with another peer works.
func TestFlood(t *testing.T) {
	alpha, beta, a, _ := startPair(t, nil)
	id := newIdentity(t)
	beta.knowsAs("mallory", "127.0.0.1:9", id)
	conn, ctl, flooded := rawSession(t, beta, id, "mallory")
	before := heapHeld()
	go func() {
		ping := bytes.Repeat(protocol.AppendFrame(nil, &protocol.Ping{}, nil), 100)
		for {
			if _, err := ctl.Write(ping); err != nil {
				return
			}
		}
	}()
	open, fill := 0, make([]byte, 1<<20)
	for {
		st, err := conn.OpenStream()
		if err != nil {
			break
		}
		frame := protocol.AppendFrame(nil, &protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "flood"}, nil)
		if open++; open%2 == 0 { // never says what it is
			go st.Write(frame[:9])
		} else { // nobody will read what follows
			go func() {
				st.Write(frame)
				st.Write(fill)
			}()
		}
	}
	if open != streamsMax-1 {
		t.Errorf("%d streams", open)
	}
	st, remote := openAmid(t, a, beta, "flood")
	go echo(remote, 4096)
	for deadline := time.Now().Add(10 * time.Second); flooded.Stats().BytesReceived < 20<<20; {
		roundTrips(t, st, 4096, 100)
		if time.Now().After(deadline) {
			t.Fatalf("the flood stops at %+v", flooded.Stats())
		}
	}
	// The windows, and as much again for the flooding side, which is this
	// process too.
	held := heapHeld() - before
	t.Logf("%d MiB held by %d streams", held>>20, open)
	if held > 3*connWindowMax {
		t.Errorf("%d MiB more held", held>>20)
	}
	if len(alpha.downs)+len(beta.downs) != 0 {
		t.Error("a session ended")
	}
}

// openAmid is openPair while streams of another volume are being opened.
func openAmid(t *testing.T, a *Session, beta *testNode, other string) (*Stream, *Stream) {
	st, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamWrite, Volume: "crm"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if o := next(t, beta.streams, "stream"); o.open.Volume != other {
			return st, o.st
		}
	}
}

func heapHeld() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestStrangers: packets of no meaning, and handshakes that never go on, keep
// nobody out.
func TestStrangers(t *testing.T) {
	ida, idb := identities(t)
	beta := startNode(t, "beta", idb, func(o *Options) { o.DialTimeout = time.Second })
	socket, err := net.Dial("udp", beta.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	junk := make([]byte, 1400)
	rng := rand.NewChaCha8([32]byte{1})
	for range 500 {
		rng.Read(junk)
		socket.Write(junk)
	}
	// Handshakes whose answer nobody reads: the dialer's socket is deaf.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stranger := newIdentity(t)
	cert, err := stranger.certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 200)
	for range cap(done) {
		go func() {
			defer func() { done <- struct{}{} }()
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				return
			}
			defer pc.Close()
			tr := &quic.Transport{Conn: deaf{pc}}
			defer tr.Close()
			tr.Dial(ctx, beta.Addr(), clientTLS(cert, nil), nil)
		}()
	}
	alpha := startNode(t, "alpha", ida, nil)
	beta.knows(alpha)
	alpha.knows(beta)
	next(t, alpha.ups, "session among strangers")
	// Those who cannot answer a Retry do not count beyond the first few.
	if n := beta.accepted.Load(); n > retryAbove+2 {
		t.Errorf("%d connections", n)
	}
	cancel()
	for range cap(done) {
		next(t, done, "end of a stranger")
	}
	if len(beta.ups) != 1 {
		t.Errorf("%d sessions", len(beta.ups))
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	n := startNode(t, "beta", newIdentity(t), nil)
	n.knowsAs("alpha", "127.0.0.1:9", newIdentity(t))
	ctx, cancel := context.WithCancel(t.Context())
	for i := range connsSpare + 2 {
		if _, err := n.admit(ctx, nil); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := n.admit(ctx, nil); err == nil {
		t.Error("admitted one too many")
	}
	cancel()
	for deadline := time.Now().Add(10 * time.Second); n.accepted.Load() != 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if left := n.accepted.Load(); left != 0 {
		t.Errorf("%d connections still counted", left)
	}
}

// TestReplacedSession: who connects again has one session, the new one; the old
// connection is told.
func TestReplacedSession(t *testing.T) {
	id := newIdentity(t)
	beta := startNode(t, "beta", newIdentity(t), nil)
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	first, _, _ := rawSession(t, beta, id, "alpha")
	second, _, _ := rawSession(t, beta, id, "alpha")
	if err := next(t, beta.downs, "down"); !errors.Is(err, ErrReplaced) {
		t.Errorf("cause %v", err)
	}
	if code := closedWith(t, first); code != protocol.CodeDuplicate {
		t.Errorf("closed with %v", code)
	}
	if err := context.Cause(second.Context()); err != nil {
		t.Errorf("the new connection ended: %v", err)
	}
}

// TestSilentStreams: streams that never say what they are do not keep others
// from being opened.
func TestSilentStreams(t *testing.T) {
	id := newIdentity(t)
	beta := startNode(t, "beta", newIdentity(t), func(o *Options) { o.DialTimeout = 200 * time.Millisecond })
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	conn, _, _ := rawSession(t, beta, id, "alpha")
	for i := range 3*openingMax + 1 {
		st, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		frame := protocol.AppendFrame(nil, &protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}, nil)
		if i < 3*openingMax {
			frame = frame[:5]
		}
		st.Write(frame)
	}
	if o := next(t, beta.streams, "stream after silent ones"); o.open.Volume != "crm" {
		t.Errorf("opened %+v", o.open)
	}
	if len(beta.downs) != 0 {
		t.Error("the session ended")
	}
}

// deaf loses all that it receives.
type deaf struct{ net.PacketConn }

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if _, _, err := d.PacketConn.ReadFrom(p); err != nil {
			return 0, nil, err
		}
	}
}
