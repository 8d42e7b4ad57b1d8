package sessiontest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// simPair runs alpha (place 1) and beta (place 2) on a simulated network, in simulated
// time.
func (w With) simPair(t *testing.T) (link Link, alpha, beta *testNode, a, b *session.Session) {
	link = w.Simulate(t)
	alpha, beta, a, b = w.simPairOver(t, link)
	return link, alpha, beta, a, b
}

func (w With) simPairOver(t *testing.T, link Link) (alpha, beta *testNode, a, b *session.Session) {
	var nodes [2]*testNode
	ida, idb := identities(t)
	for i, id := range []*session.Identity{ida, idb} {
		nodes[i] = w.startNode(t, []string{"alpha", "beta"}[i], id, func(o *session.Options) {
			o.Listen = fmt.Sprintf("10.0.0.%d:7790", i+1)
			o.Transports = map[session.Transport]session.Opener{w.Transport: link.Opener(i + 1)}
		})
	}
	nodes[1].knows(nodes[0])
	nodes[0].knows(nodes[1])
	return nodes[0], nodes[1], next(t, nodes[0].ups, "session"), next(t, nodes[1].ups, "session")
}

// testSilence: when nothing comes from a peer any more, both directions or
// one, the session ends within PeerTimeout and a heartbeat; and when the link is
// back, there is a new one soon.
func (w With) testSilence(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  []int
	}{{"both ways", []int{1, 2}}, {"toward the one who dialed", []int{1}}, {"toward the other", []int{2}}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link, alpha, beta, a, _ := w.simPair(t)
				st, remote := openPair(t, a, beta, protocol.StreamWrite)
				time.Sleep(10 * time.Second) // simulated; heartbeats keep it alive
				if len(alpha.downs)+len(beta.downs) != 0 {
					t.Fatal("the session ended on a sound link")
				}
				start := time.Now()
				for _, to := range c.cut {
					link.Cut(to, true)
				}
				deaf := alpha
				if c.cut[0] == 2 {
					deaf = beta
				}
				err := next(t, deaf.downs, "down")
				if took := time.Since(start); took > peerTimeout+heartbeat || took < peerTimeout-heartbeat {
					t.Errorf("noticed after %v", took)
				}
				if deaf == beta {
					st = remote
				}
				if _, readErr := st.Read(make([]byte, 1)); !errors.Is(err, session.ErrSilent) || !errors.Is(readErr, session.ErrSilent) {
					t.Errorf("cause %v, of a stream %v", err, readErr)
				}
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if len(alpha.ups)+len(beta.ups) != 0 {
					t.Error("a session over a cut link")
				}
				if e := next(t, alpha.fails, "failure"); e.Reason != session.Unreachable {
					t.Errorf("alpha: %v", e)
				}
				start = time.Now()
				for _, to := range c.cut {
					link.Cut(to, false)
				}
				next(t, alpha.ups, "session")
				next(t, beta.ups, "session")
				if took := time.Since(start); took > backoffMax+dialTimeout {
					t.Errorf("session again after %v", took)
				}
			})
		})
	}
}

// testUpdateWhileDialing: a key that goes while a connection with its owner comes about leaves no session, and the node dials on.
func (w With) testUpdateWhileDialing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link, gate := w.Simulate(t), make(chan struct{})
		ida, idb := identities(t)
		idc := newIdentity(t)
		for string(idc.Public()) < string(ida.Public()) { // alpha stays the one who dials
			idc = newIdentity(t)
		}
		alpha := w.startNode(t, "alpha", ida, func(o *session.Options) {
			o.Listen = "10.0.0.1:7790"
			o.Transports = map[session.Transport]session.Opener{w.Transport: func(p session.Port) (session.Endpoint, error) {
				e, err := link.Opener(1)(p)
				return gated{e, gate}, err
			}}
		})
		beta := w.startNode(t, "beta", idb, func(o *session.Options) {
			o.Listen = "10.0.0.2:7790"
			o.Transports = map[session.Transport]session.Opener{w.Transport: link.Opener(2)}
		})
		beta.knows(alpha)
		alpha.knows(beta)
		time.Sleep(dialTimeout / 3) // simulated: the connection is there, and held back
		renewed := session.Peer{Name: "beta", Address: beta.Addr().String(), Transport: w.Transport, Keys: []ed25519.PublicKey{idc.Public()}}
		if err := alpha.UpdatePeer(renewed); err != nil {
			t.Fatal(err)
		}
		time.Sleep(dialTimeout / 3)
		close(gate)
		for e := next(t, alpha.fails, "further attempt"); !e.Dialed || e.Reason != session.WrongKey; {
			e = next(t, alpha.fails, "further attempt")
		}
		if len(alpha.ups) != 0 {
			t.Error("a session with a key that has gone")
		}
	})
}

// gated holds back what Dial returns until gate is closed.
type gated struct {
	e    session.Endpoint
	gate chan struct{}
}

func (g gated) Dial(ctx context.Context, address string, keys []ed25519.PublicKey) (session.Conn, error) {
	c, err := g.e.Dial(ctx, address, keys)
	<-g.gate
	return c, err
}
func (g gated) CheckCongestion(name string) error                { return g.e.CheckCongestion(name) }
func (g gated) Accept(ctx context.Context) (session.Conn, error) { return g.e.Accept(ctx) }
func (g gated) Addr() net.Addr                                   { return g.e.Addr() }
func (g gated) Close() error                                     { return g.e.Close() }

// testIdleStreamsStayOpen: heartbeats are enough; silence on volumes' streams is
// no reason to end.
func (w With) testIdleStreamsStayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := w.simPair(t)
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

// testStandstill: a volume whose disk stands still reads none of its streams.
// The windows are full, the session lives, and other streams go on.
func (w With) testStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := w.simPair(t)
		ended := make(chan error, 2)
		var stuck []*session.Stream
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

// testEveryWindowFull: when not even a heartbeat can be sent either way, the
// session still lives, and goes on when somebody reads.
func (w With) testEveryWindowFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alpha, beta, a, _ := w.simPair(t)
		ended := make(chan error, 8)
		var stuck []*session.Stream
		for range 4 {
			st, remote := openPair(t, a, beta, protocol.StreamBulk)
			stuck = append(stuck, st)
			for _, end := range []*session.Stream{st, remote} {
				go func() {
					_, err := end.Write(make([]byte, 64<<20))
					ended <- err
				}()
			}
		}
		time.Sleep(time.Minute)
		if err := a.Send(&protocol.ConnectAsk{Volume: "crm"}); !w.ControlApart && !errors.Is(err, session.ErrBusy) {
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
