package sessiontest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// rawDial connects to n as a program that has the key but is not qrbd.
func (w With) rawDial(t *testing.T, n *testNode, id *session.Identity) (session.Conn, session.Carrier) {
	t.Helper()
	cert, err := id.Certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.Open[w.Transport](session.Port{Listen: "127.0.0.1:0", Identity: id, Certificate: cert,
		Allowed: func(ed25519.PublicKey) bool { return false }, Peers: func() int { return 0 },
		Heartbeat: heartbeat, PeerTimeout: peerTimeout, DialTimeout: dialTimeout, Failed: func(net.Addr, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	conn, err := e.Dial(t.Context(), n.Addr().String(), []ed25519.PublicKey{n.id.Public()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(0, "") })
	ctl, err := conn.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn, ctl
}

func helloFrame(name string) []byte {
	return protocol.AppendFrame(nil, &protocol.NodeHello{Major: protocol.Major, Name: name, Instance: rand.Uint64()}, nil)
}

// rawSession is a rawDial that has said hello properly.
func (w With) rawSession(t *testing.T, n *testNode, id *session.Identity, name string) (session.Conn, session.Carrier, *session.Session) {
	t.Helper()
	conn, ctl := w.rawDial(t, n, id)
	ctl.Write(helloFrame(name))
	answer := make([]byte, protocol.HeaderLen)
	if _, err := io.ReadFull(ctl, answer); err != nil {
		t.Fatal(err)
	}
	if h, err := protocol.ParseHeader(answer); err != nil {
		t.Fatal(err)
	} else if _, err := io.CopyN(io.Discard, ctl, int64(h.BodyLen)); err != nil {
		t.Fatal(err)
	}
	ctl.Write(protocol.AppendFrame(nil, &protocol.Ping{}, nil))
	return conn, ctl, next(t, n.ups, "session with the raw client")
}

// closedWith waits for the connection's end and returns the code it was given.
func closedWith(t *testing.T, conn session.Conn, ctl session.Carrier) protocol.Code {
	t.Helper()
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(io.Discard, ctl)
	}()
	next(t, conn.Done(), "end of the connection")
	next(t, read, "end of the control stream")
	var closed *session.CloseError
	if err := conn.Cause(); !errors.As(err, &closed) {
		t.Fatalf("ended with %v", err)
	}
	return closed.Code
}

// testBadHandshakes: a peer with a right key and wrong bytes is refused with a
// reason, and can connect properly afterwards.
func (w With) testBadHandshakes(t *testing.T) {
	id := newIdentity(t)
	beta := w.startNode(t, "beta", newIdentity(t), func(o *session.Options) { o.DialTimeout = 300 * time.Millisecond })
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	huge := protocol.AppendFrame(nil, &protocol.Data{Op: protocol.DataWrite, Len: 1 << 20}, make([]byte, 1<<20))
	large := protocol.AppendFrame(nil, &protocol.BitmapPart{Words: make([]uint64, protocol.BitmapWordMax)}, nil)
	lying := helloFrame("alpha")
	binary.LittleEndian.PutUint32(lying, 0xffffffff)
	corrupt := helloFrame("alpha")
	corrupt[20] ^= 1
	for _, c := range []struct {
		name  string
		bytes []byte // nil: nothing on the control stream
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
			conn, ctl := w.rawDial(t, beta, id)
			if c.bytes != nil {
				ctl.Write(c.bytes)
				if c.end {
					ctl.Close()
				}
			}
			if code := closedWith(t, conn, ctl); code != c.want {
				t.Errorf("closed with %v, want %v", code, c.want)
			}
		})
	}
	if len(beta.ups) != 0 {
		t.Error("a session began")
	}
	w.rawSession(t, beta, id, "alpha")
}

// testBadSessions: wrong bytes inside a session end it with a reason.
func (w With) testBadSessions(t *testing.T) {
	id := newIdentity(t)
	beta := w.startNode(t, "beta", newIdentity(t), nil)
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	onStream := func(data []byte) func(session.Conn, session.Carrier) {
		return func(conn session.Conn, _ session.Carrier) {
			st, err := conn.Open(t.Context(), protocol.StreamBulk)
			if err != nil {
				panic(err)
			}
			st.Write(data)
		}
	}
	for _, c := range []struct {
		name string
		do   func(session.Conn, session.Carrier)
		want protocol.Code
	}{
		{"garbage on control", func(_ session.Conn, ctl session.Carrier) { ctl.Write([]byte("garbage, garbage")) }, protocol.CodeProtocol},
		{"hello again", func(_ session.Conn, ctl session.Carrier) { ctl.Write(helloFrame("alpha")) }, protocol.CodeProtocol},
		{"end of control", func(_ session.Conn, ctl session.Carrier) { ctl.Close() }, protocol.CodeProtocol},
		{"control aborted", func(_ session.Conn, ctl session.Carrier) { ctl.Abort(1) }, protocol.CodeProtocol},
		{"garbage on a stream", onStream([]byte("garbage, garbage")), protocol.CodeProtocol},
		{"a stream without StreamOpen", onStream(protocol.AppendFrame(nil, &protocol.Ack{}, nil)), protocol.CodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "control aborted" && !w.AbortedControl {
				t.Skip("without its control stream there is nobody to tell")
			}
			conn, ctl, _ := w.rawSession(t, beta, id, "alpha")
			c.do(conn, ctl)
			if code := closedWith(t, conn, ctl); code != c.want {
				t.Errorf("closed with %v, want %v", code, c.want)
			}
			next(t, beta.downs, "down")
		})
	}
}

// testFlood: a peer that opens all the streams it may, says nothing on them,
// fills every window and sends pings without reading costs bounded memory, and
// the session with another peer works.
func (w With) testFlood(t *testing.T) {
	alpha, beta, a, _ := w.startPair(t, nil)
	id := newIdentity(t)
	beta.knowsAs("mallory", "127.0.0.1:9", id)
	conn, ctl, flooded := w.rawSession(t, beta, id, "mallory")
	before := heapHeld()
	go func() {
		ping := bytes.Repeat(protocol.AppendFrame(nil, &protocol.Ping{}, nil), 100)
		for {
			if _, err := ctl.Write(ping); err != nil {
				return
			}
		}
	}()
	fill := make([]byte, 1<<20)
	openWithin := func(limit time.Duration) (session.Carrier, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return conn.Open(ctx, protocol.StreamBulk)
	}
	for i := range session.StreamsMax - 1 {
		st, err := openWithin(Patience)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		frame := protocol.AppendFrame(nil, &protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "flood"}, nil)
		if i%2 == 1 { // never says what it is
			go st.Write(frame[:9])
		} else { // nobody will read what follows
			go func() {
				st.Write(frame)
				st.Write(fill)
			}()
		}
	}
	if _, err := openWithin(time.Second); err == nil {
		t.Errorf("more than %d streams", session.StreamsMax)
	}
	st, remote := openAmid(t, a, beta, "flood")
	go echo(remote, 4096)
	seen, at := int64(0), time.Now()
	for seen < w.FloodBytes {
		roundTrips(t, st, 4096, 100)
		if now := int64(flooded.Stats().BytesReceived); now >= min(seen+w.FloodBytes/20, w.FloodBytes) {
			seen, at = now, time.Now()
		} else if time.Since(at) > Patience {
			t.Fatalf("the flood stops at %+v", flooded.Stats())
		}
	}
	// The windows, and as much again for the flooding side, which is this
	// process too.
	held := heapHeld() - before
	t.Logf("%d MiB held", held>>20)
	if held > w.HeldMax {
		t.Errorf("%d MiB more held", held>>20)
	}
	if len(alpha.downs)+len(beta.downs) != 0 {
		t.Error("a session ended")
	}
}

// openAmid is openPair while streams of another volume are being opened.
func openAmid(t *testing.T, a *session.Session, beta *testNode, other string) (*session.Stream, *session.Stream) {
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

// testStrangers: who has no key keeps nobody out, whatever it sends or does not.
func (w With) testStrangers(t *testing.T) {
	// Strangers stay; a busy host has time; and beta, who would dial after PeerTimeout, leaves it to alpha to come through.
	patient := func(o *session.Options) { o.DialTimeout, o.PeerTimeout = 20*time.Second, time.Minute }
	ida, idb := identities(t)
	beta := w.startNode(t, "beta", idb, patient)
	beta.Node.AddPeer(session.Peer{Name: "gamma", Keys: []ed25519.PublicKey{newIdentity(t).Public()}, Transport: w.Transport, Address: "127.0.0.1:9"})
	check, stop := w.Strangers(t, beta.endpoints[w.Transport])
	alpha := w.startNode(t, "alpha", ida, patient)
	beta.knows(alpha)
	alpha.knows(beta)
	next(t, alpha.ups, "session among strangers")
	for len(alpha.fails) > 0 {
		if e := <-alpha.fails; e.Reason == session.Refused {
			t.Errorf("kept out by strangers at first: %v", e)
		}
	}
	check()
	stop()
	next(t, beta.ups, "session")
	if len(beta.ups)+len(alpha.downs) != 0 {
		t.Errorf("%d more sessions, %d ended", len(beta.ups), len(alpha.downs))
	}
}

// testReplacedSession: who connects again has one session, the new one; the old
// connection is told.
func (w With) testReplacedSession(t *testing.T) {
	id := newIdentity(t)
	beta := w.startNode(t, "beta", newIdentity(t), nil)
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	first, firstCtl, _ := w.rawSession(t, beta, id, "alpha")
	second, _, _ := w.rawSession(t, beta, id, "alpha")
	if err := next(t, beta.downs, "down"); !errors.Is(err, session.ErrReplaced) {
		t.Errorf("cause %v", err)
	}
	if code := closedWith(t, first, firstCtl); code != protocol.CodeDuplicate {
		t.Errorf("closed with %v", code)
	}
	select {
	case <-second.Done():
		t.Errorf("the new connection ended: %v", second.Cause())
	default:
	}
}

// testSilentStreams: streams that never say what they are do not keep others
// from being opened.
func (w With) testSilentStreams(t *testing.T) {
	id := newIdentity(t)
	beta := w.startNode(t, "beta", newIdentity(t), func(o *session.Options) { o.DialTimeout = 200 * time.Millisecond })
	beta.knowsAs("alpha", "127.0.0.1:9", id)
	conn, _, _ := w.rawSession(t, beta, id, "alpha")
	for i := range 3*openings + 1 {
		st, err := conn.Open(t.Context(), protocol.StreamBulk)
		if err != nil {
			t.Fatal(err)
		}
		frame := protocol.AppendFrame(nil, &protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}, nil)
		if i < 3*openings {
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
