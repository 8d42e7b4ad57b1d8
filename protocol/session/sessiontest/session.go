package sessiontest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

func (w With) testSession(t *testing.T) {
	alpha, beta, a, b := w.startPair(t, func(o *session.Options) { o.Instance = uint64(len(o.Name)) })
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
	if a.Stats().BytesSent < uint64(len(data)) {
		t.Errorf("stats %+v", a.Stats())
	}
	for deadline := time.Now().Add(Patience); a.RTT() <= 0 || b.RTT() <= 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("round trips %v and %v", a.RTT(), b.RTT())
		}
	}
	remote.Abort()
	if _, err := st.Read(ack[:]); !errors.Is(err, session.ErrAborted) {
		t.Errorf("read of an aborted stream: %v", err)
	}
}

func (w With) testAbortUnblocks(t *testing.T) {
	_, beta, a, _ := w.startPair(t, nil)
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
		if err := next(t, results, "return"); !errors.Is(err, session.ErrAborted) {
			t.Errorf("after Abort: %v", err)
		}
	}
}

func (w With) testCloseTellsThePeer(t *testing.T) {
	alpha, beta, a, _ := w.startPair(t, nil)
	st, remote := openPair(t, a, beta, protocol.StreamWrite)
	alpha.stop()
	if err := next(t, alpha.downs, "down at alpha"); !errors.Is(err, session.ErrClosed) {
		t.Errorf("alpha: %v", err)
	}
	err := next(t, beta.downs, "down at beta")
	var closed *session.CloseError
	if !errors.As(err, &closed) || closed.Code != protocol.CodeShutdown || closed.Text != "alpha is stopping" {
		t.Errorf("beta: %v", err)
	}
	if _, err := remote.Read(make([]byte, 1)); !errors.As(err, &closed) {
		t.Errorf("beta's stream: %v", err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, session.ErrClosed) {
		t.Errorf("alpha's stream: %v", err)
	}
	if err := a.Send(&protocol.ConnectAsk{Volume: "crm"}); !errors.Is(err, session.ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); !errors.Is(err, session.ErrClosed) {
		t.Errorf("open: %v", err)
	}
	if err := alpha.AddPeer(session.Peer{Name: "x", Keys: nil}); !errors.Is(err, session.ErrClosed) {
		t.Errorf("peer added to a closed node: %v", err)
	}
}

// testRestart: a node that comes back under the same address and key has a new
// session soon, whether it said good-bye or not.
func (w With) testRestart(t *testing.T) {
	for _, dialer := range []bool{true, false} {
		alpha, beta, _, _ := w.startPair(t, nil)
		stays, goes := alpha, beta
		if dialer {
			stays, goes = beta, alpha
		}
		addr := goes.Addr().String()
		goes.stop()
		next(t, stays.downs, "down")
		back := w.startNode(t, goes.recorder.name, goes.id, func(o *session.Options) { o.Listen, o.Instance = addr, 2 })
		back.knows(stays)
		if s := next(t, stays.ups, "session after the restart"); s.PeerInstance() != 2 {
			t.Errorf("instance %d", s.PeerInstance())
		}
		next(t, back.ups, "session after the restart")
	}
}

// testCrash: a node that dies without a word and comes back makes its peer give
// up the old session at once, not only after PeerTimeout.
func (w With) testCrash(t *testing.T) {
	alpha, beta, _, _ := w.startPair(t, func(o *session.Options) { o.PeerTimeout = 20 * time.Second })
	addr := beta.Addr().String()
	w.Crash(beta.endpoints[w.Transport])
	beta.stop()
	start := time.Now()
	back := w.startNode(t, "beta", beta.id, func(o *session.Options) { o.Listen, o.Instance = addr, 2 })
	back.knows(alpha)
	if err := next(t, alpha.downs, "down"); !errors.Is(err, w.CrashCause) {
		t.Errorf("cause %v", err)
	}
	next(t, alpha.ups, "session after the crash")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

func (w With) testRemovePeer(t *testing.T) {
	alpha, beta, _, _ := w.startPair(t, nil)
	if !beta.RemovePeer("alpha") || beta.RemovePeer("alpha") {
		t.Error("removed no time or twice")
	}
	next(t, beta.downs, "down at beta")
	var closed *session.CloseError
	if err := next(t, alpha.downs, "down at alpha"); !errors.As(err, &closed) || closed.Code != protocol.CodeOperator {
		t.Errorf("alpha: %v", err)
	}
	if e := next(t, alpha.fails, "failure at alpha"); e.Reason != session.KeyRefused {
		t.Errorf("alpha: %v", e)
	}
	beta.knows(alpha)
	next(t, alpha.ups, "session after adding the peer again")
}

// testUpdatePeer: a second key leaves the session alone; one that goes ends it, and
// the peer comes back when it proves the other.
func (w With) testUpdatePeer(t *testing.T) {
	alpha, beta, _, _ := w.startPair(t, nil)
	renewed := newIdentity(t)
	peer := session.Peer{Transport: w.Transport, Name: "alpha", Address: alpha.Addr().String(), Keys: []ed25519.PublicKey{alpha.id.Public(), renewed.Public()}}
	if err := beta.UpdatePeer(peer); err != nil {
		t.Fatal(err)
	}
	if err := beta.UpdatePeer(session.Peer{Name: "gamma", Keys: peer.Keys}); err == nil {
		t.Error("a peer that is not there was updated")
	}
	if err := beta.UpdatePeer(session.Peer{Name: "alpha", Keys: []ed25519.PublicKey{beta.id.Public()}}); err == nil {
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
	back := w.startNode(t, "alpha", renewed, func(o *session.Options) { o.Listen, o.Instance = addr, 2 })
	back.knows(beta)
	next(t, back.ups, "session with the new key")
}

// testBothDial: with keys that make both sides dial at once, exactly one
// session remains, the same on both sides.
func (w With) testBothDial(t *testing.T) {
	low, high := identities(t)
	top := newIdentity(t)
	for string(top.Public()) < string(high.Public()) {
		top = newIdentity(t)
	}
	alpha, beta := w.startNode(t, "alpha", low, nil), w.startNode(t, "beta", high, nil)
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

func (w With) testStreamLimit(t *testing.T) {
	_, beta, a, _ := w.startPair(t, func(o *session.Options) { o.DialTimeout = time.Second })
	var st *session.Stream
	for i := range session.StreamsMax - 1 { // the control stream is one
		var err error
		if st, err = a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stream beyond the limit: %v", err)
	}
	st.Abort()
	for range session.StreamsMax - 1 {
		next(t, beta.streams, "stream").st.Abort()
	}
	if _, err := a.Open(t.Context(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: "crm"}); err != nil {
		t.Errorf("stream after others ended: %v", err)
	}
}
