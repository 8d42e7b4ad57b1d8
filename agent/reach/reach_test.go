package reach

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/reach/reachtest"
	"github.com/qrbd/qrbd/protocol/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fast is a probe for a loopback that answers at once.
var fast = Probe{Tries: 2, Wait: 100 * time.Millisecond}

func TestProbe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if r, err := fast.Ask(ctx, session.QUIC, reachtest.QUIC(t, 9000, nil)); err != nil || r.Largest != 8952 || r.RTT <= 0 || r.RTT > 10*time.Second {
		t.Errorf("all sizes: %+v, %v", r, err)
	}
	if r, err := fast.Ask(ctx, session.QUIC, reachtest.QUIC(t, 1300, nil)); err != nil || r.Largest != 1200 {
		t.Errorf("small ones only: %+v, %v", r, err)
	}
	foreign := func(b []byte) []byte { b[7] ^= 1; return b } // an answer to somebody else
	if r, err := fast.Ask(ctx, session.QUIC, reachtest.QUIC(t, 9000, foreign)); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("answers of others: %+v, %v", r, err)
	}
	if r, err := fast.Ask(ctx, session.QUIC, reachtest.QUIC(t, 9000, func(b []byte) []byte { return b[:20] })); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("answers cut short: %+v, %v", r, err)
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.LocalAddr().String()
	l.Close()
	if r, err := fast.Ask(ctx, session.QUIC, free); !errors.Is(err, ErrRefused) {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if _, err := fast.Ask(over, session.QUIC, reachtest.QUIC(t, 0, nil)); err == nil {
		t.Error("a probe goes on after its end")
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := fast.Ask(t.Context(), session.TCP, l.Addr().String()); err != nil || r.RTT <= 0 || r.Largest != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	l.Close()
	if r, err := fast.Ask(t.Context(), session.TCP, l.Addr().String()); !errors.Is(err, ErrRefused) {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
	if _, err := fast.Ask(t.Context(), session.TCP, "peer.invalid:1"); err == nil {
		t.Error("an unknown name")
	}
}
