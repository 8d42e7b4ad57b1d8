package quicnet

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Handler that queues what it is told.
type recorder struct {
	t       testing.TB
	name    string
	ups     chan *Session
	downs   chan error
	streams chan opened
	fails   chan *ConnectError
	asks    chan string
}

type opened struct {
	open protocol.StreamOpen
	st   *Stream
}

func newRecorder(t testing.TB, name string) *recorder {
	return &recorder{t: t, name: name, ups: make(chan *Session, 100), downs: make(chan error, 100),
		streams: make(chan opened, 1000), fails: make(chan *ConnectError, 100), asks: make(chan string, 1000)}
}

func (r *recorder) SessionUp(s *Session)                   { r.ups <- s }
func (r *recorder) SessionDown(_ *Session, cause error)    { r.downs <- cause }
func (r *recorder) ConnectFailed(peer string, err error)   { r.fails <- asConnectError(err) }
func (r *recorder) Message(_ *Session, m protocol.Message) { r.asks <- m.(*protocol.ConnectAsk).Volume }
func (r *recorder) StreamOpened(_ *Session, open protocol.StreamOpen, st *Stream) {
	r.streams <- opened{open, st}
}

func asConnectError(err error) *ConnectError {
	var e *ConnectError
	if !errors.As(err, &e) {
		panic(err)
	}
	return e
}

// next waits for something from a channel.
func next[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// testNode is a Node with its Handler.
type testNode struct {
	*Node
	*recorder
	id *Identity
}

func newIdentity(t testing.TB) *Identity {
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// identities returns two identities, the one with the smaller key first.
func identities(t testing.TB) (dials, waits *Identity) {
	a, b := newIdentity(t), newIdentity(t)
	if string(a.Public()) > string(b.Public()) {
		a, b = b, a
	}
	return a, b
}

// startNode starts a node on a port of its own; change may alter the options.
func startNode(t testing.TB, name string, id *Identity, change func(*Options)) *testNode {
	t.Helper()
	r := newRecorder(t, name)
	o := Options{
		Identity: id, Name: name, Listen: "127.0.0.1:0", Handler: r, Instance: 1,
		Log: slog.New(slog.NewTextHandler(testWriter{t, name}, nil)),
	}
	if change != nil {
		change(&o)
	}
	n, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	tn := &testNode{n, r, id}
	t.Cleanup(tn.stop)
	return tn
}

func (n *testNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
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

func (n *testNode) knowsAs(name, addr string, ids ...*Identity) {
	n.recorder.t.Helper()
	p := Peer{Name: name, Address: addr}
	for _, id := range ids {
		p.Keys = append(p.Keys, id.Public())
	}
	if err := n.AddPeer(p); err != nil {
		n.recorder.t.Fatal(err)
	}
}

// startPair starts alpha, which dials, and beta, and waits for their session.
func startPair(t testing.TB, change func(*Options)) (alpha, beta *testNode, a, b *Session) {
	t.Helper()
	ida, idb := identities(t)
	alpha, beta = startNode(t, "alpha", ida, change), startNode(t, "beta", idb, change)
	beta.knows(alpha)
	alpha.knows(beta)
	return alpha, beta, next(t, alpha.ups, "session at alpha"), next(t, beta.ups, "session at beta")
}

// openPair opens a stream at a and returns both ends.
func openPair(t testing.TB, a *Session, beta *testNode, kind protocol.StreamKind) (*Stream, *Stream) {
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

var _ io.ReadWriteCloser = (*Stream)(nil)

func (n *testNode) peersKeys() []ed25519.PublicKey { return []ed25519.PublicKey{n.id.Public()} }
