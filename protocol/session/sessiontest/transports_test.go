package sessiontest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/tcpnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTransportsDiffer: when the two sides have different transports for each other, both are
// told so, and what to do.
func TestTransportsDiffer(t *testing.T) {
	both := map[session.Transport]session.Opener{session.QUIC: quicnet.Open, session.TCP: tcpnet.Open}
	quic, tcp := With{Transport: session.QUIC, Open: both}, With{Transport: session.TCP, Open: both}
	for _, smaller := range []bool{true, false} {
		low, high := identities(t)
		if !smaller {
			low, high = high, low
		}
		fast := func(o *session.Options) {
			o.PeerTimeout, o.Heartbeat, o.BackoffMax = 200*time.Millisecond, 50*time.Millisecond, 200*time.Millisecond
		}
		alpha, beta := quic.startNode(t, "alpha", low, fast), tcp.startNode(t, "beta", high, fast)
		beta.knows(alpha)
		alpha.knows(beta)
		for _, n := range []*testNode{alpha, beta} {
			for told := false; !told; {
				e := next(t, n.fails, "word of the transport at "+n.recorder.name)
				var closed *session.CloseError
				told = e.Reason == session.TransportDiffers && strings.Contains(e.Error(), "write the same transport in [[peer]]") &&
					(!errors.As(e, &closed) || closed.Code == protocol.CodeTransport)
			}
		}
		if len(alpha.ups)+len(beta.ups) != 0 {
			t.Error("a session of two transports")
		}
		alpha.stop()
		beta.stop()
	}
}
