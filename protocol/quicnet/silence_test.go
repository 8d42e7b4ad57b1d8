package quicnet

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/qrbd/qrbd/protocol"
)

// cuttable is a network whose directions can be cut: packets toward a cut
// address vanish. It may have a rate, with a queue in front that drops what it
// has no room for.
type cuttable struct {
	simnet.PerfectRouter
	cutTo  [3]atomic.Bool // by last byte of the address
	rate   int            // bytes per second, each direction; 0: unlimited
	queue  time.Duration  // the longest wait in the queue
	mu     sync.Mutex
	freeAt [3]time.Time // guarded by mu: when the line toward an address is free
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

// simPair runs alpha (10.0.0.1) and beta (10.0.0.2) on a simulated network with
// a round trip of 2 ms, in simulated time.
func simPair(t *testing.T) (c *cuttable, alpha, beta *testNode, a, b *Session) {
	c = &cuttable{}
	alpha, beta, a, b = simPairOver(t, c)
	return c, alpha, beta, a, b
}

func simPairOver(t *testing.T, c *cuttable) (alpha, beta *testNode, a, b *Session) {
	network := &simnet.Simnet{Router: c}
	var nodes [2]*testNode
	ida, idb := identities(t)
	var sockets [2]*simnet.SimConn
	for i := range nodes {
		sockets[i] = network.NewEndpoint(&net.UDPAddr{IP: net.IPv4(10, 0, 0, byte(i+1)).To4(), Port: 7790},
			simnet.NodeBiDiLinkSettings{Latency: time.Millisecond})
	}
	if err := network.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	for i, id := range []*Identity{ida, idb} {
		nodes[i] = startNode(t, []string{"alpha", "beta"}[i], id, func(o *Options) { o.socket = sockets[i] })
	}
	nodes[1].knows(nodes[0])
	nodes[0].knows(nodes[1])
	return nodes[0], nodes[1], next(t, nodes[0].ups, "session"), next(t, nodes[1].ups, "session")
}

// TestSilence: when nothing comes from a peer any more, both directions or
// one, the session ends within PeerTimeout and a heartbeat; and when the link is
// back, there is a new one soon.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  []int
	}{{"both ways", []int{1, 2}}, {"toward the one who dialed", []int{1}}, {"toward the other", []int{2}}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link, alpha, beta, a, _ := simPair(t)
				st, remote := openPair(t, a, beta, protocol.StreamWrite)
				time.Sleep(10 * time.Second) // simulated; heartbeats keep it alive
				if len(alpha.downs)+len(beta.downs) != 0 {
					t.Fatal("the session ended on a sound link")
				}
				start := time.Now()
				for _, to := range c.cut {
					link.cutTo[to].Store(true)
				}
				deaf := alpha
				if c.cut[0] == 2 {
					deaf = beta
				}
				err := next(t, deaf.downs, "down")
				if took := time.Since(start); took > defaultPeerTimeout+defaultHeartbeat || took < defaultPeerTimeout-defaultHeartbeat {
					t.Errorf("noticed after %v", took)
				}
				if deaf == beta {
					st = remote
				}
				if _, readErr := st.Read(make([]byte, 1)); !errors.Is(err, ErrSilent) || !errors.Is(readErr, ErrSilent) {
					t.Errorf("cause %v, of a stream %v", err, readErr)
				}
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if len(alpha.ups)+len(beta.ups) != 0 {
					t.Error("a session over a cut link")
				}
				if e := next(t, alpha.fails, "failure"); e.Reason != Unreachable {
					t.Errorf("alpha: %v", e)
				}
				start = time.Now()
				for _, to := range c.cut {
					link.cutTo[to].Store(false)
				}
				next(t, alpha.ups, "session")
				next(t, beta.ups, "session")
				if took := time.Since(start); took > defaultBackoffMax+defaultDialTimeout {
					t.Errorf("session again after %v", took)
				}
			})
		})
	}
}

// TestIdleStreamsStayOpen: heartbeats are enough; silence on volumes' streams is
// no reason to end.
func TestIdleStreamsStayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := simPair(t)
		st, remote := openPair(t, a, beta, protocol.StreamWrite)
		time.Sleep(5 * time.Minute)
		go st.Write([]byte("x"))
		if n, err := remote.Read(make([]byte, 1)); n != 1 {
			t.Errorf("after five minutes: %v", err)
		}
		if len(alpha.downs)+len(beta.downs) != 0 {
			t.Error("the session ended")
		}
	})
}

// TestStandstill: a volume whose disk stands still reads none of its streams.
// The windows are full, the session lives, and other streams go on.
func TestStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := simPair(t)
		ended := make(chan error, 2)
		var stuck []*Stream
		for _, kind := range []protocol.StreamKind{protocol.StreamWrite, protocol.StreamBulk} {
			st, _ := openPair(t, a, beta, kind)
			stuck = append(stuck, st)
			go func() {
				_, err := st.Write(make([]byte, 64<<20))
				ended <- err
			}()
		}
		time.Sleep(time.Minute)
		if len(ended) != 0 || len(alpha.downs)+len(beta.downs) != 0 {
			t.Fatal("a write or a session ended")
		}
		st, remote := openPair(t, a, beta, protocol.StreamWrite)
		go echo(remote, 4096)
		if took := roundTrips(t, st, 4096, 10)[9]; took > 10*time.Millisecond {
			t.Errorf("round trip %v beside streams that stand still", took)
		}
		for _, st := range stuck {
			st.Abort()
			next(t, ended, "end of a write")
		}
	})
}

// TestEveryWindowFull: when not even a heartbeat can be sent either way, the
// session still lives, and goes on when somebody reads.
func TestEveryWindowFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := simPair(t)
		ended := make(chan error, 8)
		var stuck []*Stream
		for range 4 {
			st, remote := openPair(t, a, beta, protocol.StreamBulk)
			stuck = append(stuck, st)
			for _, end := range []*Stream{st, remote} {
				go func() {
					_, err := end.Write(make([]byte, 64<<20))
					ended <- err
				}()
			}
		}
		time.Sleep(time.Minute)
		if err := a.Send(&protocol.ConnectAsk{Volume: "crm"}); !errors.Is(err, ErrBusy) {
			t.Errorf("the windows are not full: %v", err)
		}
		if len(ended) != 0 || len(alpha.downs)+len(beta.downs) != 0 {
			t.Fatalf("%d writes and %d sessions ended", len(ended), len(alpha.downs)+len(beta.downs))
		}
		for _, st := range stuck {
			st.Abort()
			next(t, ended, "end of a write")
			next(t, ended, "end of a write")
		}
		time.Sleep(time.Second)
		if err := a.Send(&protocol.ConnectAsk{Volume: "crm"}); err != nil {
			t.Error(err)
		}
		next(t, beta.asks, "ask")
	})
}

// TestBackoff: attempts to reach an absent peer are spaced out up to the limit.
func TestBackoff(t *testing.T) {
	n := &Node{options: Options{Log: slog.Default()}, public: make([]byte, 32)}
	n.options.complete()
	p := newPeer(n, Peer{Name: "beta"})
	p.Keys = append(p.Keys, newIdentity(t).Public())
	want := defaultBackoffMin
	for range 8 {
		if d := p.nextDelay(); d > want || d < want*3/4 {
			t.Errorf("delay %v, want about %v", d, want)
		}
		want = min(2*want, defaultBackoffMax)
	}
	n.public = []byte{0: 0xff, 31: 0xff}
	if !p.dials() { // now the other one dials
		if d := p.nextDelay(); d < defaultPeerTimeout*3/4 {
			t.Errorf("the waiting side dials after %v", d)
		}
	}
}
