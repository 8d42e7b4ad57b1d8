package sessiontest

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

// testCompression: each side compresses what it sends as it is configured, which may change
// while the session goes on; never toward a peer that has not said that it expands that.
func (w With) testCompression(t *testing.T) {
	alpha, beta, a, b := w.startPair(t, nil)
	if a.Compression() != session.NoCompression || b.Compression() != session.NoCompression {
		t.Errorf("by default %v and %v", a.Compression(), b.Compression())
	}
	for _, c := range []session.Compression{session.Zstd, session.NoCompression, session.Zstd} {
		peer := session.Peer{Transport: w.Transport, Name: "beta", Address: beta.Addr().String(), Keys: []ed25519.PublicKey{beta.id.Public()}, Compression: c}
		if err := alpha.UpdatePeer(peer); err != nil {
			t.Fatal(err)
		}
		if a.Compression() != c || b.Compression() != session.NoCompression {
			t.Errorf("%v at alpha: %v and %v", c, a.Compression(), b.Compression())
		}
	}
	select {
	case err := <-alpha.downs:
		t.Fatalf("another compression ended the session: %v", err)
	case <-time.After(200 * time.Millisecond):
	}

	gamma := w.startNode(t, "gamma", newIdentity(t), func(o *session.Options) { o.Major, o.Features = protocol.Major, protocol.FeatureReach })
	peer := session.Peer{Transport: w.Transport, Name: "gamma", Address: gamma.Addr().String(), Keys: []ed25519.PublicKey{gamma.id.Public()}, Compression: session.Zstd}
	gamma.knows(alpha)
	if err := alpha.AddPeer(peer); err != nil {
		t.Fatal(err)
	}
	if s := next(t, alpha.ups, "session with gamma"); s.Compression() != session.NoCompression {
		t.Errorf("toward a peer that does not expand: %v", s.Compression())
	}
}
