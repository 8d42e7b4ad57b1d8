package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Peer is a node that sessions are kept with.
type Peer struct {
	Name    string
	Address string // host:port
	// Keys are the public keys that the peer may prove: one, or two while it is
	// given a new one.
	Keys []ed25519.PublicKey
	// Transport is how its sessions travel; the peer has the same configured for this
	// node. Zero: QUIC.
	Transport Transport
	// Congestion names the congestion control of a transport that has a choice; "": the
	// host's.
	Congestion string
	// Compression is of what is sent to the peer, which is its own affair: what it expands is
	// said in the hello.
	Compression Compression
}

// peer keeps the session with one Peer. Owner of all fields below ctx: run.
type peer struct {
	Peer                // all but Name is guarded by node.mu: see target
	seen    netip.Addr  // the host of its last session; guarded by node.mu
	zstd    atomic.Bool // Compression is Zstd: asked for every payload
	node    *Node
	updated chan struct{}   // one of them has changed; capacity 1
	inbound chan *candidate // from welcome
	done    chan struct{}   // closed when run has ended
	ctx     context.Context // ends with stop
	stop    context.CancelCauseFunc

	live    *Session
	since   time.Time // when live started
	dialing bool
	dialed  chan dialResult
	timer   *time.Timer
	backoff time.Duration
}

// candidate is a connection of a peer whose key, name and version are right.
type candidate struct {
	peer   *peer
	conn   Conn
	how    Transport
	key    ed25519.PublicKey
	ctl    Carrier
	frames *frameReader
	hello  protocol.NodeHello
	dialed bool // by this node
}

type dialResult struct {
	c   *candidate
	err error
}

func newPeer(n *Node, p Peer) *peer {
	ctx, stop := context.WithCancelCause(context.Background())
	out := &peer{Peer: p, node: n, updated: make(chan struct{}, 1), inbound: make(chan *candidate), done: make(chan struct{}), ctx: ctx, stop: stop,
		dialed: make(chan dialResult, 1)}
	out.zstd.Store(p.Compression == Zstd)
	return out
}

// target returns where and how to reach the peer and which keys it may prove, as of now.
func (p *peer) target() (address string, keys []ed25519.PublicKey, transport Transport) {
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	return p.Address, p.Keys, p.Transport
}

// transport returns how the peer is to be reached, as of now.
func (p *peer) transport() Transport {
	_, _, t := p.target()
	return t
}

// accepts reports whether the peer may prove that key, as of now.
func (p *peer) accepts(key ed25519.PublicKey) bool {
	_, keys, _ := p.target()
	return slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(key) })
}

// run is the peer's goroutine: it dials, chooses between connections and calls
// SessionUp and SessionDown, until stop.
func (p *peer) run() {
	defer close(p.done)
	p.timer = time.NewTimer(p.firstDelay())
	defer p.timer.Stop()
	for {
		var ended <-chan struct{}
		if p.live != nil {
			ended = p.live.done
		}
		select {
		case <-p.ctx.Done():
			p.shutdown()
			return
		case <-ended:
			p.down()
			p.timer.Reset(p.nextDelay())
		case <-p.timer.C:
			if p.live == nil && !p.dialing {
				p.dialing = true
				go func() {
					c, err := p.dial()
					p.dialed <- dialResult{c, err}
				}()
			}
		case r := <-p.dialed:
			p.dialing = false
			if r.err != nil {
				address, _, _ := p.target()
				p.node.report(p.Name, address, true, r.err)
				p.timer.Reset(p.nextDelay())
			} else if p.offer(r.c); p.live == nil {
				p.timer.Reset(p.nextDelay()) // what it was set for may have come to nothing while this one was under way
			}
		case c := <-p.inbound:
			p.offer(c)
		case <-p.updated:
			p.backoff = 0
			if p.live == nil {
				p.timer.Reset(p.firstDelay())
			} else if !p.accepts(p.live.key) {
				p.live.end(protocol.CodeOperator, "the key that this connection began with is no longer accepted on "+p.node.options.Name, ErrClosed)
			} else if p.live.transport != p.transport() {
				p.live.end(protocol.CodeTransport, "the transport was changed on "+p.node.options.Name, ErrClosed)
			}
		}
	}
}

// shutdown ends session and dial.
func (p *peer) shutdown() {
	if p.live != nil {
		code, text := protocol.CodeShutdown, p.node.options.Name+" is stopping"
		if cause := context.Cause(p.ctx); errors.Is(cause, errRemoved) {
			code, text = protocol.CodeOperator, p.node.options.Name+" no longer has this peer configured"
		}
		p.live.end(code, text, ErrClosed)
		<-p.live.done
		p.down()
	}
	if p.dialing {
		if r := <-p.dialed; r.c != nil {
			r.c.conn.Close(protocol.CodeShutdown, "stopping")
		}
	}
}

// offer makes c the peer's session, unless the one it has is to stay.
func (p *peer) offer(c *candidate) {
	if !p.accepts(c.key) { // any more
		c.conn.Close(protocol.CodeNotAllowed, "the key is no longer accepted")
		return
	}
	if c.how != p.transport() {
		c.conn.Close(protocol.CodeTransport, "the transport was changed on "+p.node.options.Name)
		return
	}
	if !p.prefers(c) {
		c.conn.Close(protocol.CodeDuplicate, "another session goes on")
		return
	}
	if p.live != nil {
		p.live.end(protocol.CodeDuplicate, "another connection took over", ErrReplaced)
		<-p.live.done
		p.down()
	}
	p.up(newSession(c))
}

// prefers says whether c replaces the live session. Both sides come to the same
// answer from the two connections alone, in whatever order they see them.
func (p *peer) prefers(c *candidate) bool {
	switch {
	case p.live == nil:
		return true
	case c.hello.Instance != p.live.hello.Instance:
		return true // the peer has restarted: the old connection is dead
	case c.dialed == p.live.dialed:
		return true // who dials again knows that the old connection is dead
	default:
		smaller := bytes.Compare(p.node.public, c.key) < 0
		return c.dialed == smaller
	}
}

func (p *peer) up(s *Session) {
	p.live, p.since = s, time.Now()
	p.node.mu.Lock()
	p.seen = HostOf(s.conn.RemoteAddr())
	p.node.mu.Unlock()
	p.node.reports.clear(p.Name)
	p.node.log.Info("session up", "peer", p.Name, "transport", s.transport.String(), "compression", s.Compression().String(), "address", s.conn.RemoteAddr().String(),
		"dialed", s.dialed, "instance", s.hello.Instance, "version", fmt.Sprintf("%d.%d", s.hello.Major, s.hello.Minor),
		"gso", s.conn.Stats().GSO)
	if s.dialed {
		// The third step of the handshake: this side has judged the peer's hello
		// too. A failure ends the session.
		_ = s.Send(&protocol.Ping{})
	}
	p.node.options.Handler.SessionUp(s)
	s.start()
}

// down tells of the end of live. REQUIRES live.done closed.
func (p *peer) down() {
	s := p.live
	p.live = nil
	p.node.log.Info("session down", "peer", p.Name, "cause", s.cause.Error())
	p.node.options.Handler.SessionDown(s, s.cause)
	if time.Since(p.since) > p.node.options.BackoffMax {
		p.backoff = 0
	}
}

// dials says whether this node is the one to dial at once. While the peer's
// keys are being rotated both may be.
func (p *peer) dials() bool {
	_, keys, _ := p.target()
	for _, k := range keys {
		if bytes.Compare(p.node.public, k) < 0 {
			return true
		}
	}
	return false
}

func (p *peer) firstDelay() time.Duration {
	if p.dials() {
		return 0
	}
	return p.nextDelay()
}

// nextDelay returns how long to wait before the next dial: exponential for the
// one who dials, long for the other, and random by a quarter so that two nodes
// do not keep meeting half-way.
func (p *peer) nextDelay() time.Duration {
	o := &p.node.options
	d := max(o.PeerTimeout, o.BackoffMax)
	if p.dials() {
		p.backoff = min(max(2*p.backoff, o.BackoffMin), o.BackoffMax)
		d = p.backoff
	}
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

// dial opens a connection and says hello.
func (p *peer) dial() (*candidate, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.node.options.DialTimeout)
	defer cancel()
	address, keys, transport := p.target()
	conn, err := p.node.endpoint(transport).Dial(ctx, address, keys)
	if err != nil {
		return nil, err
	}
	c, err := p.introduce(ctx, conn, transport)
	if err != nil {
		refuse(conn, err)
		return nil, err
	}
	return c, nil
}

// introduce is the dialing side's part of the session handshake. It judges the
// peer only after the peer has answered: before that the peer may not have
// finished TLS, and could not read a reason.
func (p *peer) introduce(ctx context.Context, conn Conn, how Transport) (*candidate, error) {
	defer context.AfterFunc(ctx, func() { refuse(conn, ctx.Err()) })()
	ctl, err := conn.Control(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.node.sendHello(ctl); err != nil {
		return nil, err
	}
	c := &candidate{peer: p, conn: conn, how: how, ctl: ctl, frames: &frameReader{r: ctl}, dialed: true}
	if err := c.readHello(); err != nil {
		return nil, err
	}
	return c, nil
}

// readHello reads and judges the other side's hello.
func (c *candidate) readHello() error {
	m, err := c.frames.next()
	if err != nil {
		return err
	}
	hello, ok := m.(*protocol.NodeHello)
	if !ok {
		return unexpected(m, "instead of NodeHello")
	}
	c.hello = *hello
	tls := c.conn.TLS()
	if c.key, err = PresentedKey(tls); err != nil {
		return err
	}
	if err := checkExpiry(tls, c.peer.Name, time.Now()); err != nil {
		return err
	}
	return c.judge()
}

// judge returns the refusal that c's hello deserves, if any.
func (c *candidate) judge() error {
	o, name := &c.peer.node.options, c.peer.Name
	switch {
	case !protocol.Compatible(c.hello, o.hello()):
		return &refusal{protocol.CodeVersion, VersionDiffers,
			fmt.Sprintf("%s speaks protocol %d.%d, %s speaks %d.%d", o.Name, o.Major, o.Minor, c.hello.Name, c.hello.Major, c.hello.Minor)}
	case c.hello.Name != name:
		return &refusal{protocol.CodeName, NameDiffers,
			fmt.Sprintf("%s has this key configured as %q, but the node calls itself %q", o.Name, name, c.hello.Name)}
	}
	return nil
}

// refuse closes a connection that did not become a session and tells why.
func refuse(conn Conn, err error) {
	code, text := protocol.CodeInternal, ""
	var r *refusal
	switch {
	case errors.As(err, &r):
		code, text = r.code, r.text
	case isViolation(err):
		code, text = protocol.CodeProtocol, err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		code, text = protocol.CodeTimeout, "no hello in time"
	case errors.Is(err, context.Canceled):
		code, text = protocol.CodeShutdown, "stopping"
	}
	conn.Close(code, protocol.CleanText(text))
}
