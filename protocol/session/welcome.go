package session

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// accept takes the connections of an endpoint; their TLS handshakes may be under
// way.
func (n *Node) accept(e Endpoint, t Transport) {
	for {
		conn, err := e.Accept(n.ctx)
		if err != nil {
			return
		}
		g := &guest{conn: conn, known: n.peerOn(HostOf(conn.RemoteAddr()))}
		if out := n.guests.enter(g); out != nil {
			out.conn.Close(protocol.CodeBusy, "")
		}
		n.wg.Go(func() { n.welcome(g, t) })
	}
}

// welcome brings an accepted connection to its peer, or ends it and reports.
func (n *Node) welcome(g *guest, t Transport) {
	ctx, cancel := context.WithTimeout(n.ctx, n.options.DialTimeout)
	defer cancel()
	conn := g.conn
	p, err := n.authenticate(ctx, conn)
	if err != nil {
		refuse(conn, err)
		if n.guests.leave(g) { // otherwise it had to make room
			n.failed(conn.RemoteAddr(), err)
		}
		return
	}
	n.guests.prove(g)
	defer n.guests.leave(g)
	c, err := n.hear(ctx, conn, p, t)
	if err == nil {
		select {
		case p.inbound <- c:
			return
		case <-p.done:
			err = &refusal{protocol.CodeShutdown, Refused, "stopping"}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	refuse(conn, err)
	n.report(p.Name, conn.RemoteAddr().String(), false, err)
}

// failed reports a connection that ended before it was known whose it was.
func (n *Node) failed(addr net.Addr, err error) {
	name := ""
	switch reason, _ := classify(err); reason {
	case Unreachable:
	case KeyRefused, WrongKey:
		// Who speaks TLS and has a key, or refuses this node's, is likely a peer whose
		// key was changed on one side.
		if name = n.peerAt(addr); name == "" {
			name = n.onlyPeerOn(addr)
		}
	default:
		name = n.peerAt(addr)
	}
	n.report(name, addr.String(), false, err)
}

// authenticate waits for TLS to succeed and returns whose key was proved.
func (n *Node) authenticate(ctx context.Context, conn Conn) (*peer, error) {
	if err := conn.Handshake(ctx); err != nil {
		return nil, err
	}
	key, err := PresentedKey(conn.TLS())
	if err != nil {
		return nil, err
	}
	if p := n.peerOf(key); p != nil {
		return p, nil
	}
	return nil, &refusal{protocol.CodeNotAllowed, WrongKey, "the peer was removed"}
}

// hear is the accepting side's part of the session handshake: hello, answer, and
// the first Ping, by which the dialing side says that it accepts the answer.
func (n *Node) hear(ctx context.Context, conn Conn, p *peer, t Transport) (*candidate, error) {
	defer context.AfterFunc(ctx, func() { refuse(conn, ctx.Err()) })()
	if err := checkExpiry(conn.TLS(), p.Name, time.Now()); err != nil {
		return nil, err
	}
	if want := p.transport(); t != want {
		return nil, &refusal{protocol.CodeTransport, TransportDiffers,
			fmt.Sprintf("%[1]s has transport = %[3]q for %[2]s, and %[2]s came over %[4]v: write the same transport in [[peer]] %[2]s on %[1]s and in [[peer]] %[1]s on %[2]s",
				n.options.Name, p.Name, want.String(), t)}
	}
	ctl, err := conn.Control(ctx)
	if err != nil {
		return nil, err
	}
	c := &candidate{peer: p, conn: conn, how: t, ctl: ctl, frames: &frameReader{r: ctl}}
	if err := c.readHello(); err != nil {
		return nil, err
	}
	if err := n.sendHello(ctl); err != nil {
		return nil, err
	}
	m, err := c.frames.next()
	if err != nil {
		return nil, err
	}
	if _, ok := m.(*protocol.Ping); !ok {
		return nil, unexpected(m, "instead of the first Ping")
	}
	return c, nil
}

// peerAt returns the name of the peer configured with this very address; over QUIC
// nodes dial from the socket that they listen on.
func (n *Node) peerAt(addr net.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if p.Address == addr.String() {
			return p.Name
		}
	}
	return ""
}

// onlyPeerOn returns the name of the peer on this address's host, if it is the only
// one there.
func (n *Node) onlyPeerOn(addr net.Addr) string {
	host := HostOf(addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	name, count := "", 0
	for _, p := range n.peers {
		if p.configuredOn(host) {
			name = p.Name
			count++
		}
	}
	if count != 1 {
		return ""
	}
	return name
}
