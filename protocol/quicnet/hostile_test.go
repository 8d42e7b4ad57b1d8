package quicnet

import (
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/session/sessiontest"
)

const (
	// deafCount is how many strangers begin handshakes again and again without reading an answer.
	deafCount = 40
	// stalledCount is how many prove their address and go no further: more than a node takes at once, which is
	// takenMax (session's handshakesMax).
	stalledCount, takenMax = 60, 32
)

// strangers send packets of no meaning, and begin handshakes that never go on.
func strangers(t *testing.T, at session.Endpoint) (check, stop func()) {
	e := at.(*endpoint)
	socket, err := net.Dial("udp", e.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, 1400)
	rng := rand.NewChaCha8([32]byte{1})
	for range 500 {
		rng.Read(junk)
		socket.Write(junk)
	}
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.Certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	dial := func(retries bool, idle time.Duration) {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return
		}
		defer pc.Close()
		tr := &quic.Transport{Conn: deaf{pc, retries}}
		defer tr.Close()
		tr.Dial(ctx, e.Addr(), session.ClientTLS(cert, nil), &quic.Config{HandshakeIdleTimeout: idle})
	}
	for range deafCount {
		wg.Go(func() {
			for ctx.Err() == nil {
				dial(false, time.Second)
			}
		})
	}
	accepted := func(n int64) {
		for deadline := time.Now().Add(sessiontest.Patience); e.accepted() < n; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%d connections of strangers, want %d", e.accepted(), n)
			}
		}
	}
	accepted(retryAbove)
	// Those who cannot answer a Retry do not count beyond the first few.
	if n := e.accepted(); n > retryAbove+2 {
		t.Errorf("%d connections of who cannot answer", n)
	}
	for range stalledCount {
		wg.Go(func() { dial(true, sessiontest.Patience) })
	}
	accepted(takenMax)
	check = func() {
		if n := e.accepted(); n > int64(connsSpare+2*e.port.Peers()) {
			t.Errorf("%d connections", n)
		}
	}
	stop = func() {
		cancel()
		socket.Close()
		wg.Wait()
	}
	return check, stop
}

func TestConnectionsAreCounted(t *testing.T) {
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.Certificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	peerHost := netip.MustParseAddr("192.0.2.1")
	at, err := Open(session.Port{Listen: "127.0.0.1:0", Identity: id, Certificate: cert, Peers: func() int { return 1 },
		PeerOn:  func(host netip.Addr) bool { return host == peerHost },
		Allowed: func(ed25519.PublicKey) bool { return false }, Heartbeat: time.Second, PeerTimeout: time.Second, DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	n := at.(*endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	stranger := &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}}
	peer := &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: peerHost.AsSlice(), Port: 1}}
	for _, from := range []*quic.ClientInfo{stranger, peer} { // strangers keep no place that peers have
		for i := range connsSpare + 2 {
			if _, err := n.admit(ctx, from); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		if _, err := n.admit(ctx, from); err == nil {
			t.Error("admitted one too many")
		}
	}
	cancel()
	for deadline := time.Now().Add(sessiontest.Patience); n.accepted() != 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if left := n.accepted(); left != 0 {
		t.Errorf("%d connections still counted", left)
	}
}

// deaf loses all that it receives, or all but a Retry.
type deaf struct {
	net.PacketConn
	retries bool
}

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := d.PacketConn.ReadFrom(p)
		// Source: RFC 9000 section 17.2, a long header (0x80) of type Retry (0x30).
		if err != nil || d.retries && n > 0 && p[0]&0xb0 == 0xb0 {
			return n, from, err
		}
	}
}
