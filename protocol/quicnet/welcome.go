package quicnet

import (
	"context"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// accept takes connections whose TLS handshake has begun.
func (n *Node) accept() {
	for {
		conn, err := n.listener.Accept(n.ctx)
		if err != nil {
			return
		}
		select {
		case n.handshakes <- struct{}{}:
			n.wg.Go(func() {
				defer func() { <-n.handshakes }()
				n.welcome(conn)
			})
		default:
			conn.CloseWithError(quic.ApplicationErrorCode(protocol.CodeBusy), "")
		}
	}
}

// welcome brings an accepted connection to its peer, or ends it and reports.
func (n *Node) welcome(conn *quic.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, n.options.DialTimeout)
	defer cancel()
	addr := conn.RemoteAddr().String()
	p, err := n.authenticate(ctx, conn)
	if err != nil {
		refuse(conn, err)
		name := ""
		if reason, _ := classify(err); reason != Unreachable {
			name = n.peerAt(conn.RemoteAddr())
		}
		n.report(name, addr, false, err)
		return
	}
	c, err := n.hear(ctx, conn, p)
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
	n.report(p.Name, addr, false, err)
}

// authenticate waits for TLS to succeed and returns whose key was proved.
func (n *Node) authenticate(ctx context.Context, conn *quic.Conn) (*peer, error) {
	select {
	case <-conn.HandshakeComplete():
	case <-conn.Context().Done():
		return nil, context.Cause(conn.Context())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	key, err := presentedKey(conn.ConnectionState().TLS)
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
func (n *Node) hear(ctx context.Context, conn *quic.Conn, p *peer) (*candidate, error) {
	defer context.AfterFunc(ctx, func() { refuse(conn, ctx.Err()) })()
	if err := checkExpiry(conn.ConnectionState().TLS, p.Name, time.Now()); err != nil {
		return nil, err
	}
	ctl, err := conn.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	ctl.SetPriority(urgencyControl, false)
	c := &candidate{peer: p, conn: conn, ctl: ctl, frames: &frameReader{r: ctl}}
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

// peerAt returns the name of the peer configured with this very address; nodes
// dial from the socket that they listen on.
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
