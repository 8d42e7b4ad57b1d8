package session

import (
	"net"
	"net/netip"
	"testing"
)

// TestGuests: who makes room when there are too many.
func TestGuests(t *testing.T) {
	var l guests
	enter := func(known bool) (g, out *guest) {
		g = &guest{known: known}
		return g, l.enter(g)
	}
	var strangers []*guest
	peer, _ := enter(true)
	for len(l.all) < handshakesMax {
		g, out := enter(false)
		strangers = append(strangers, g)
		if out != nil {
			t.Fatalf("one of %d had to go", len(l.all)+1)
		}
	}
	if _, out := enter(false); out != strangers[0] {
		t.Error("not the oldest stranger had to go for another")
	}
	if l.leave(strangers[0]) || !l.leave(strangers[1]) || l.leave(strangers[1]) {
		t.Error("who had to go is there, or who was there is not")
	}
	l.prove(strangers[2])
	enter(true)
	if _, out := enter(true); out != strangers[3] {
		t.Error("not the oldest without a key had to go for a peer")
	}
	for range handshakesMax - 4 {
		enter(true)
	}
	enter(true)
	if _, out := enter(true); out == nil || len(l.all) != handshakesMax || l.leave(peer) {
		t.Errorf("among peers not the oldest had to go: %d are left", len(l.all))
	}
}

// TestPeerOn: a peer is where it is configured, and where its last session came from.
func TestPeerOn(t *testing.T) {
	n := &Node{peers: map[string]*peer{
		"a": {Peer: Peer{Address: "192.0.2.1:7790"}},
		"b": {Peer: Peer{Address: "[2001:db8::1]:7790"}},
		"c": {Peer: Peer{Address: "c.example:7790"}, seen: HostOf(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 3), Port: 1})},
		"d": {Peer: Peer{Address: "d.example:7790"}},
	}}
	for host, want := range map[string]bool{"192.0.2.1": true, "::ffff:192.0.2.1": true, "2001:db8::1": true, "192.0.2.3": true, "192.0.2.4": false} {
		if got := n.peerOn(netip.MustParseAddr(host)); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
	if n.peerOn(netip.Addr{}) {
		t.Error("a peer without an address")
	}
}
