package quicnet

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

func TestSession(t *testing.T) {
	alpha, beta, a, b := startPair(t, func(o *Options) { o.Instance = uint64(len(o.Name)) })
	if !a.Dialer() || b.Dialer() {
		t.Error("the smaller key did not dial")
	}
	if a.Peer() != "beta" || b.Peer() != "alpha" || a.PeerInstance() != 4 || b.PeerInstance() != 5 {
		t.Errorf("peers %q %d and %q %d", a.Peer(), a.PeerInstance(), b.Peer(), b.PeerInstance())
	}
	if major, minor := a.PeerVersion(); major != protocol.Major || minor != protocol.Minor {
		t.Errorf("version %d.%d", major, minor)
	}
	if err := b.Send(&protocol.ConnectAsk{Volume: "crm"}); err != nil {
		t.Fatal(err)
	}
	if v := next(t, alpha.asks, "ask"); v != "crm" {
		t.Errorf("asked for %q", v)
	}
	st, remote := openPair(t, a, beta, protocol.StreamWrite)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		st.Write(data)
		st.Close()
	}()
	got, err := io.ReadAll(remote)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if _, err := remote.Write([]byte("ack")); err != nil {
		t.Fatal(err)
	}
	var ack [3]byte
	if _, err := io.ReadFull(st, ack[:]); err != nil || string(ack[:]) != "ack" {
		t.Fatalf("%q, %v", ack, err)
	}
	if a.RTT() <= 0 || a.Stats().BytesSent < uint64(len(data)) {
		t.Errorf("stats %+v", a.Stats())
	}
	remote.Abort()
	if _, err := st.Read(ack[:]); !errors.Is(err, ErrAborted) {
		t.Errorf("read of an aborted stream: %v", err)
	}
}

func TestAbortUnblocks(t *testing.T) {
	_, beta, a, _ := startPair(t, nil)
	st, _ := openPair(t, a, beta, protocol.StreamBulk)
	results := make(chan error, 2)
	go func() {
		_, err := st.Read(make([]byte, 1))
		results <- err
	}()
	go func() {
		_, err := st.Write(make([]byte, 100<<20)) // beyond every window
		results <- err
	}()
	st.Abort()
	for range 2 {
		if err := next(t, results, "return"); !errors.Is(err, ErrAborted) {
			t.Errorf("after Abort: %v", err)
		}
	}
}

func TestCloseTellsThePeer(t *testing.T) {
	alpha, beta, a, _ := startPair(t, nil)
	st, remote := openPair(t, a, beta, protocol.StreamWrite)
	alpha.stop()
	if err := next(t, alpha.downs, "down at alpha"); !errors.Is(err, ErrClosed) {
		t.Errorf("alpha: %v", err)
	}
	err := next(t, beta.downs, "down at beta")
	var closed *CloseError
	if !errors.As(err, &closed) || closed.Code != protocol.CodeShutdown || closed.Text != "alpha is stopping" {
		t.Errorf("beta: %v", err)
	}
	if _, err := remote.Read(make([]byte, 1)); !errors.As(err, &closed) {
		t.Errorf("beta's stream: %v", err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("alpha's stream: %v", err)
	}
	if err := a.Send(&protocol.ConnectAsk{Volume: "crm"}); !errors.Is(err, ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); !errors.Is(err, ErrClosed) {
		t.Errorf("open: %v", err)
	}
	if err := alpha.AddPeer(Peer{Name: "x", Keys: nil}); !errors.Is(err, ErrClosed) {
		t.Errorf("peer added to a closed node: %v", err)
	}
}

// TestRestart: a node that comes back under the same address and key has a new
// session soon, whether it said good-bye or not.
func TestRestart(t *testing.T) {
	for _, dialer := range []bool{true, false} {
		alpha, beta, _, _ := startPair(t, nil)
		stays, goes := alpha, beta
		if dialer {
			stays, goes = beta, alpha
		}
		addr := goes.Addr().String()
		goes.stop()
		next(t, stays.downs, "down")
		back := startNode(t, goes.recorder.name, goes.id, func(o *Options) { o.Listen, o.Instance = addr, 2 })
		back.knows(stays)
		if s := next(t, stays.ups, "session after the restart"); s.PeerInstance() != 2 {
			t.Errorf("instance %d", s.PeerInstance())
		}
		next(t, back.ups, "session after the restart")
	}
}

// TestCrash: a node that dies without a word and comes back makes its peer give
// up the old session at once, not only after PeerTimeout.
func TestCrash(t *testing.T) {
	alpha, beta, _, _ := startPair(t, func(o *Options) { o.PeerTimeout = 20 * time.Second })
	addr := beta.Addr().String()
	beta.socket.Close()
	beta.stop()
	start := time.Now()
	back := startNode(t, "beta", beta.id, func(o *Options) { o.Listen, o.Instance = addr, 2 })
	back.knows(alpha)
	if err := next(t, alpha.downs, "down"); !errors.Is(err, ErrRestarted) {
		t.Errorf("cause %v", err)
	}
	next(t, alpha.ups, "session after the crash")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

func TestRemovePeer(t *testing.T) {
	alpha, beta, _, _ := startPair(t, nil)
	if !beta.RemovePeer("alpha") || beta.RemovePeer("alpha") {
		t.Error("removed no time or twice")
	}
	next(t, beta.downs, "down at beta")
	var closed *CloseError
	if err := next(t, alpha.downs, "down at alpha"); !errors.As(err, &closed) || closed.Code != protocol.CodeOperator {
		t.Errorf("alpha: %v", err)
	}
	if e := next(t, alpha.fails, "failure at alpha"); e.Reason != KeyRefused {
		t.Errorf("alpha: %v", e)
	}
	beta.knows(alpha)
	next(t, alpha.ups, "session after adding the peer again")
}

// TestUpdatePeer: a second key leaves the session alone; one that goes ends it, and
// the peer comes back when it proves the other.
func TestUpdatePeer(t *testing.T) {
	alpha, beta, _, _ := startPair(t, nil)
	renewed := newIdentity(t)
	peer := Peer{Name: "alpha", Address: alpha.Addr().String(), Keys: []ed25519.PublicKey{alpha.id.Public(), renewed.Public()}}
	if err := beta.UpdatePeer(peer); err != nil {
		t.Fatal(err)
	}
	if err := beta.UpdatePeer(Peer{Name: "gamma", Keys: peer.Keys}); err == nil {
		t.Error("a peer that is not there was updated")
	}
	if err := beta.UpdatePeer(Peer{Name: "alpha", Keys: []ed25519.PublicKey{beta.id.Public()}}); err == nil {
		t.Error("a peer was given this node's own key")
	}
	select {
	case err := <-beta.downs:
		t.Fatalf("an added key ended the session: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	peer.Keys = peer.Keys[1:]
	if err := beta.UpdatePeer(peer); err != nil {
		t.Fatal(err)
	}
	next(t, beta.downs, "down at beta")
	next(t, alpha.downs, "down at alpha")
	addr := alpha.Addr().String()
	alpha.stop()
	back := startNode(t, "alpha", renewed, func(o *Options) { o.Listen, o.Instance = addr, 2 })
	back.knows(beta)
	next(t, back.ups, "session with the new key")
}

// TestBothDial: with keys that make both sides dial at once, exactly one
// session remains, the same on both sides.
func TestBothDial(t *testing.T) {
	low, high := identities(t)
	top := &Identity{key: newIdentity(t).key}
	for string(top.Public()) < string(high.Public()) {
		top = newIdentity(t)
	}
	alpha, beta := startNode(t, "alpha", low, nil), startNode(t, "beta", high, nil)
	// beta believes that alpha may also have a key above its own.
	beta.knowsAs("alpha", alpha.Addr().String(), low, top)
	alpha.knows(beta)
	a, b := next(t, alpha.ups, "session"), next(t, beta.ups, "session")
	for {
		probe := []byte("probe")
		st, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamWrite, Volume: "v"})
		if err == nil {
			if _, err = st.Write(probe); err == nil {
				_, err = io.ReadFull(next(t, beta.streams, "stream").st, probe)
			}
		}
		if err == nil {
			break
		}
		// The connection that was first lost against the other.
		next(t, alpha.downs, "down")
		a = next(t, alpha.ups, "session")
	}
	for len(beta.ups) > 0 {
		next(t, beta.downs, "down")
		b = next(t, beta.ups, "session")
	}
	if a.Dialer() == b.Dialer() {
		t.Error("the two sides hold different connections")
	}
}

// TestPrefers: every case of the choice between two connections, from both
// sides, who must come to the same answer.
func TestPrefers(t *testing.T) {
	small, large := []byte{1}, []byte{2}
	for _, c := range []struct {
		name             string
		live             bool // there is a session
		restarted        bool // the new connection has another instance
		oldBySmall       bool // who dialed the two connections
		newBySmall, want bool
	}{
		{"no session", false, false, true, false, true},
		{"restarted, the large dials", true, true, true, false, true},
		{"restarted, the small dials", true, true, false, true, true},
		{"the small dials again", true, false, true, true, true},
		{"the large dials again", true, false, false, false, true},
		{"the large dials where the small has", true, false, true, false, false},
		{"the small dials where the large has", true, false, false, true, true},
	} {
		for _, self := range []string{"small", "large"} {
			own, other := small, large
			if self == "large" {
				own, other = large, small
			}
			p := &peer{node: &Node{public: own}}
			if c.live {
				p.live = &Session{dialed: c.oldBySmall == (self == "small")}
			}
			n := &candidate{key: other, dialed: c.newBySmall == (self == "small")}
			if c.restarted {
				n.hello.Instance = 1
			}
			if got := p.prefers(n); got != c.want {
				t.Errorf("%s, seen by the %s: %v", c.name, self, got)
			}
		}
	}
}

func TestStreamLimit(t *testing.T) {
	_, beta, a, _ := startPair(t, func(o *Options) { o.DialTimeout = time.Second })
	var st *Stream
	for i := range streamsMax - 1 { // the control stream is one
		var err error
		if st, err = a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stream beyond the limit: %v", err)
	}
	st.Abort()
	for range streamsMax - 1 {
		next(t, beta.streams, "stream").st.Abort()
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); err != nil {
		t.Errorf("stream after others ended: %v", err)
	}
}
