package quicnet

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/session/sessiontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var suite = sessiontest.With{
	Transport: session.QUIC,
	Open:      map[session.Transport]session.Opener{session.QUIC: Open},
	Simulate:  func(t *testing.T) sessiontest.Link { return simulate(t, &cuttable{}) },
	SimulateLine: func(t *testing.T, rate int, queue time.Duration) sessiontest.Link {
		return simulate(t, &cuttable{rate: rate, queue: queue})
	},
	Crash:      func(e session.Endpoint) { e.(*endpoint).socket.Close() },
	CrashCause: session.ErrRestarted,
	Strangers:  strangers,
	Silent: func(t *testing.T) string {
		silent, err := listenUDP("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
		return silent.LocalAddr().String()
	},
	FloodBytes: 20 << 20,
	// The windows, and as much again for the flooding side.
	HeldMax:        3 * connWindowMax,
	AbortedControl: true,
}

func TestSession(t *testing.T)     { suite.Run(t) }
func BenchmarkEcho4K(b *testing.B) { suite.BenchmarkEcho(b) }
func BenchmarkBulk(b *testing.B)   { suite.BenchmarkBulk(b) }

// cuttable is a network whose directions can be cut: packets toward a cut
// address vanish. It may have a rate, with a queue in front that drops what it
// has no room for.
type cuttable struct {
	simnet.PerfectRouter
	sockets [2]*simnet.SimConn
	cutTo   [3]atomic.Bool // by last byte of the address
	rate    int            // bytes per second, each direction; 0: unlimited
	queue   time.Duration  // the longest wait in the queue
	mu      sync.Mutex
	freeAt  [3]time.Time // guarded by mu: when the line toward an address is free
}

func (c *cuttable) SendPacket(p simnet.Packet) error {
	to := p.To.(*net.UDPAddr).IP.To4()[3]
	if c.cutTo[to].Load() {
		return nil
	}
	if c.rate == 0 {
		return c.PerfectRouter.SendPacket(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	start := c.freeAt[to]
	if start.Before(now) {
		start = now
	}
	if start.Sub(now) > c.queue {
		return nil
	}
	c.freeAt[to] = start.Add(time.Duration(len(p.Data)) * time.Second / time.Duration(c.rate))
	time.AfterFunc(c.freeAt[to].Sub(now), func() { c.PerfectRouter.SendPacket(p) })
	return nil
}

// simulate makes a network of places 10.0.0.1 and 10.0.0.2 with a round trip of 2 ms.
func simulate(t *testing.T, c *cuttable) *cuttable {
	network := &simnet.Simnet{Router: c}
	for i := range c.sockets {
		c.sockets[i] = network.NewEndpoint(&net.UDPAddr{IP: net.IPv4(10, 0, 0, byte(i+1)).To4(), Port: 7790},
			simnet.NodeBiDiLinkSettings{Latency: time.Millisecond})
	}
	if err := network.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	return c
}

// Opener implements sessiontest.Link.
func (c *cuttable) Opener(place int) session.Opener {
	return func(p session.Port) (session.Endpoint, error) { return openOn(c.sockets[place-1], p) }
}

// Cut implements sessiontest.Link.
func (c *cuttable) Cut(toward int, cut bool) { c.cutTo[toward].Store(cut) }
