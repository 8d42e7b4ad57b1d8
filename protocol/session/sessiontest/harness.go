package sessiontest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// recorder is a Handler that queues what it is told.
type recorder struct {
	t       testing.TB
	name    string
	ups     chan *session.Session
	downs   chan error
	streams chan opened
	fails   chan *session.ConnectError
	asks    chan string
}

type opened struct {
	open protocol.StreamOpen
	st   *session.Stream
}

func newRecorder(t testing.TB, name string) *recorder {
	return &recorder{t: t, name: name, ups: make(chan *session.Session, 100), downs: make(chan error, 100),
		streams: make(chan opened, 1000), fails: make(chan *session.ConnectError, 100), asks: make(chan string, 1000)}
}

func (r *recorder) SessionUp(s *session.Session)                { r.ups <- s }
func (r *recorder) SessionDown(_ *session.Session, cause error) { r.downs <- cause }
func (r *recorder) ConnectFailed(peer string, err error)        { r.fails <- asConnectError(err) }
func (r *recorder) Message(_ *session.Session, m protocol.Message) {
	r.asks <- m.(*protocol.ConnectAsk).Volume
}
func (r *recorder) StreamOpened(_ *session.Session, open protocol.StreamOpen, st *session.Stream) {
	r.streams <- opened{open, st}
}

func asConnectError(err error) *session.ConnectError {
	var e *session.ConnectError
	if !errors.As(err, &e) {
		panic(err)
	}
	return e
}

// Patience is how long the tests wait for what has to come: long, as a host that is busy with other things lets each of their threads
// run a few times a second only.
const Patience = time.Minute

// next waits for something from a channel.
func next[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// testNode is a Node with its Handler.
type testNode struct {
	*session.Node
	*recorder
	id        *session.Identity
	transport session.Transport
	endpoints map[session.Transport]session.Endpoint
}

func newIdentity(t testing.TB) *session.Identity {
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// identities returns two identities, the one with the smaller key first.
func identities(t testing.TB) (dials, waits *session.Identity) {
	a, b := newIdentity(t), newIdentity(t)
	if string(a.Public()) > string(b.Public()) {
		a, b = b, a
	}
	return a, b
}

// startNode starts a node on a port of its own; change may alter the options.
func (w With) startNode(t testing.TB, name string, id *session.Identity, change func(*session.Options)) *testNode {
	t.Helper()
	r := newRecorder(t, name)
	tn := &testNode{recorder: r, id: id, transport: w.Transport, endpoints: map[session.Transport]session.Endpoint{}}
	o := session.Options{
		Identity: id, Name: name, Listen: "127.0.0.1:0", Handler: r, Instance: 1,
		Transports: w.Open, Heartbeat: heartbeat, PeerTimeout: peerTimeout, DialTimeout: dialTimeout, BackoffMax: backoffMax,
		Log: slog.New(slog.NewTextHandler(testWriter{t, name}, nil)),
	}
	if change != nil {
		change(&o)
	}
	o.Transports = tn.remember(o.Transports)
	n, err := session.Start(o)
	for try := 0; errors.Is(err, syscall.EADDRINUSE) && strings.HasSuffix(o.Listen, ":0") && try < 10; try++ {
		n, err = session.Start(o) // the port that UDP got is taken on TCP
	}
	if err != nil {
		t.Fatal(err)
	}
	tn.Node = n
	t.Cleanup(tn.stop)
	return tn
}

// remember wraps openers so that the node's endpoints can be reached. The port that is
// opened first is kept free on TCP until the node wants it.
func (n *testNode) remember(openers map[session.Transport]session.Opener) map[session.Transport]session.Opener {
	out := map[session.Transport]session.Opener{}
	free := func() {}
	n.recorder.t.Cleanup(func() { free() })
	for kind, open := range openers {
		out[kind] = func(p session.Port) (session.Endpoint, error) {
			free()
			free = func() {}
			e, err := open(p)
			if err == nil && kind == session.QUIC && strings.HasSuffix(p.Listen, ":0") {
				if free, err = keepFree(e.Addr()); err != nil {
					e.Close()
					return nil, err
				}
			}
			if err == nil {
				n.endpoints[kind] = e
			}
			return e, err
		}
	}
	return out
}

// keepFree binds a port on TCP, without listening, so that nothing else gets it.
func keepFree(addr net.Addr) (free func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return func() {}, err
	}
	free = func() { unix.Close(fd) }
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: addr.(*net.UDPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		free()
		return func() {}, err
	}
	return free, nil
}

func (n *testNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		n.recorder.t.Error(err)
	}
}

// knows makes n know other as its peer.
func (n *testNode) knows(other *testNode) {
	n.recorder.t.Helper()
	n.knowsAs(other.recorder.name, other.Addr().String(), other.id)
}

func (n *testNode) knowsAs(name, addr string, ids ...*session.Identity) {
	n.recorder.t.Helper()
	p := session.Peer{Name: name, Address: addr, Transport: n.transport}
	for _, id := range ids {
		p.Keys = append(p.Keys, id.Public())
	}
	if err := n.AddPeer(p); err != nil {
		n.recorder.t.Fatal(err)
	}
}

// startPair starts alpha, which dials, and beta, and waits for their session.
func (w With) startPair(t testing.TB, change func(*session.Options)) (alpha, beta *testNode, a, b *session.Session) {
	t.Helper()
	ida, idb := identities(t)
	alpha, beta = w.startNode(t, "alpha", ida, change), w.startNode(t, "beta", idb, change)
	beta.knows(alpha)
	alpha.knows(beta)
	return alpha, beta, next(t, alpha.ups, "session at alpha"), next(t, beta.ups, "session at beta")
}

// openPair opens a stream at a and returns both ends.
func openPair(t testing.TB, a *session.Session, beta *testNode, kind protocol.StreamKind) (*session.Stream, *session.Stream) {
	t.Helper()
	st, err := a.Open(t.Context(), protocol.StreamOpen{Kind: kind, Volume: "crm", Attempt: 7})
	if err != nil {
		t.Fatal(err)
	}
	o := next(t, beta.streams, "stream at beta")
	if o.open != (protocol.StreamOpen{Kind: kind, Volume: "crm", Attempt: 7}) || o.st.Kind() != kind {
		t.Fatalf("opened %+v", o.open)
	}
	return st, o.st
}

type testWriter struct {
	t    testing.TB
	name string
}

func (w testWriter) Write(p []byte) (int, error) {
	if !testing.Verbose() {
		return len(p), nil
	}
	w.t.Log(w.name, strings.TrimSpace(string(p)))
	return len(p), nil
}

var _ io.ReadWriteCloser = (*session.Stream)(nil)
