package session

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// guest is an accepted connection that is not a session yet.
type guest struct {
	conn Conn
	// known: it comes from the address of a configured peer, or has proved a peer's key. Guarded by guests.mu.
	known bool
}

// guests bounds the accepted connections that are not sessions yet: one too many ends the one that has been there longest, of
// those of strangers if there are any. So who begins connections and goes no further keeps nobody out, and whoever
// shares no address with such a one is not even disturbed. (To refuse the newest instead would keep peers out as long as
// strangers hold what there is.)
type guests struct {
	mu  sync.Mutex
	all []*guest // guarded by mu; the oldest first
}

// enter adds g and returns the one that has to go for it, or nil.
func (l *guests) enter(g *guest) (out *guest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, g)
	if len(l.all) <= handshakesMax {
		return nil
	}
	i := max(0, slices.IndexFunc(l.all, func(g *guest) bool { return !g.known }))
	out = l.all[i]
	l.all = slices.Delete(l.all, i, i+1)
	return out
}

// prove notes that g has proved a configured key.
func (l *guests) prove(g *guest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g.known = true
}

// leave takes g out; false: it had to go before.
func (l *guests) leave(g *guest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.all, g)
	if i < 0 {
		return false
	}
	l.all = slices.Delete(l.all, i, i+1)
	return true
}

// peerOn reports whether a configured peer has an address on that host: one that is written in its configuration, or that its last
// session came from.
func (n *Node) peerOn(host netip.Addr) bool {
	if host = host.Unmap(); !host.IsValid() {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if p.seen == host || p.configuredOn(host) {
			return true
		}
	}
	return false
}

// configuredOn reports whether the peer's address is on that host. REQUIRES node.mu.
func (p *peer) configuredOn(host netip.Addr) bool {
	at, err := netip.ParseAddrPort(p.Address)
	return err == nil && at.Addr().Unmap() == host
}

// HostOf returns the host of a transport's address; the zero Addr if it has none.
func HostOf(addr net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
