package quicnet

import (
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol/session"
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
	// Handshakes whose answer nobody reads: the dialer's socket is deaf.
	ctx, cancel := context.WithCancel(t.Context())
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.Certificate(time.Now())
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
			tr.Dial(ctx, e.Addr(), session.ClientTLS(cert, nil), nil)
		}()
	}
	check = func() {
		// Those who cannot answer a Retry do not count beyond the first few.
		if n := e.accepted.Load(); n > retryAbove+2 {
			t.Errorf("%d connections", n)
		}
	}
	stop = func() {
		cancel()
		socket.Close()
		for range cap(done) {
			<-done
		}
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
	at, err := Open(session.Port{Listen: "127.0.0.1:0", Identity: id, Certificate: cert, Peers: func() int { return 1 },
		Allowed: func(ed25519.PublicKey) bool { return false }, Heartbeat: time.Second, PeerTimeout: time.Second, DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	n := at.(*endpoint)
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

// deaf loses all that it receives.
type deaf struct{ net.PacketConn }

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if _, _, err := d.PacketConn.ReadFrom(p); err != nil {
			return 0, nil, err
		}
	}
}
