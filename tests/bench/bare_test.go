package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
)

func TestBareEnds(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		for _, stores := range [][2]string{{}, {echoItem, echoItem}} {
			if figure, err := measureBare(t.Context(), t.TempDir(), transport, 1000, stores); err != nil || figure <= 0 {
				t.Errorf("%s %q: %v, %v", transport, stores, figure, err)
			}
		}
	}
}

// TestBareEndFails: an end that cannot do its work is told with its reason, long before the limit.
func TestBareEndFails(t *testing.T) {
	for i, name := range bareNames {
		p, kept := testPair(t)
		taken, err := net.ListenPacket("udp", p.addresses[i])
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		_, err = p.run(t.Context(), 1000, [2]string{}, time.Hour)
		if err == nil || !strings.Contains(err.Error(), name+": bench: bare-end: replication network: listening on "+p.addresses[i]) {
			t.Errorf("%s cannot listen: %v", name, err)
		}
		if other := bareNames[1-i]; !bytes.Contains(kept(), []byte("SIGQUIT")) {
			t.Errorf("%s cannot listen: the stacks of %s are not kept: %s", name, other, kept())
		}
	}
}

// TestBareEndsHang: ends that never meet say at the limit what they waited for, and where.
func TestBareEndsHang(t *testing.T) {
	p, kept := testPair(t)
	p.keys[0] = hex.EncodeToString(newTestIdentity(t).Public()) // which alpha does not have
	_, err := p.run(t.Context(), 1000, [2]string{}, time.Second)
	const want = "bench: bare-end: waited for a session and its stream: context deadline exceeded"
	if err == nil || strings.Count(err.Error(), want) == 0 {
		t.Errorf("error %v", err)
	}
	if !bytes.Contains(kept(), []byte("goroutine 1 ")) {
		t.Errorf("the stacks are not kept: %s", kept())
	}
}

// testPair returns a pair and what reads the files that it keeps.
func testPair(t *testing.T) (p *barePair, kept func() []byte) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	p, err := newBarePair(t.TempDir(), "quic")
	if err != nil {
		t.Fatal(err)
	}
	return p, func() []byte {
		files, err := filepath.Glob(filepath.Join(temp, "bench-bare-*.log"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		out, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// TestBareEndsBeginAnew: a session that ends under way, as one does that another replaces, leaves both ends to begin anew.
func TestBareEndsBeginAnew(t *testing.T) {
	ids := [2]*session.Identity{newTestIdentity(t), newTestIdentity(t)}
	if string(ids[0].Public()) > string(ids[1].Public()) {
		ids[0], ids[1] = ids[1], ids[0] // alpha dials
	}
	ends := [2]*bareEnd{newBareEnd("alpha"), newBareEnd("beta")}
	beta, err := ends[1].listen(ids[1], "127.0.0.1:0", session.Peer{Name: "alpha", Address: "127.0.0.1:9", Keys: []ed25519.PublicKey{ids[0].Public()}})
	if err != nil {
		t.Fatal(err)
	}
	defer beta.Close(context.WithoutCancel(t.Context()))
	alpha, err := ends[0].listen(ids[0], "127.0.0.1:0", session.Peer{Name: "beta", Address: beta.Addr().String(), Keys: []ed25519.PublicKey{ids[1].Public()}})
	if err != nil {
		t.Fatal(err)
	}
	defer alpha.Close(context.WithoutCancel(t.Context()))

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		ends[0].once(ctx, func(s *session.Stream) error { return send(s, 64<<20, "") })
		ends[0].live.Close(protocol.CodeDuplicate, "another one goes on") // before beta has read it all
		ends[0].work(ctx, 128<<20, "")
	}()
	if rate, err := ends[1].work(ctx, 128<<20, ""); err != nil || rate <= 0 {
		t.Errorf("rate %v, %v", rate, err)
	}
}

func newTestIdentity(t *testing.T) *session.Identity {
	id, err := session.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
