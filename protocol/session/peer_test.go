package session

import (
	"crypto/ed25519"
	"log/slog"
	"testing"

	"github.com/qrbd/qrbd/protocol"
)

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

// TestOfferOfThePast: a connection that came about while its key or its transport went is told so, and is no session.
func TestOfferOfThePast(t *testing.T) {
	key, gone := newIdentity(t).Public(), newIdentity(t).Public()
	for _, c := range []struct {
		how  Transport
		key  ed25519.PublicKey
		want protocol.Code
	}{{QUIC, key, protocol.CodeTransport}, {TCP, gone, protocol.CodeNotAllowed}} {
		p := newPeer(&Node{}, Peer{Name: "beta", Keys: []ed25519.PublicKey{key}, Transport: TCP})
		conn := &refusedConn{}
		p.offer(&candidate{peer: p, conn: conn, how: c.how, key: c.key})
		if conn.code != c.want || p.live != nil {
			t.Errorf("over %v: closed with %v, want %v; session %v", c.how, conn.code, c.want, p.live)
		}
	}
}

// refusedConn keeps what it was closed with.
type refusedConn struct {
	Conn
	code protocol.Code
}

func (c *refusedConn) Close(code protocol.Code, _ string) { c.code = code }

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
