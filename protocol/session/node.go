package session

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Node is a running end of the replication network. Safe for concurrent use.
type Node struct {
	options Options
	log     *slog.Logger
	public  ed25519.PublicKey
	cert    tls.Certificate
	reports reporter

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup // accepts, welcomes
	guests  guests
	several atomic.Bool // more than one endpoint

	mu sync.Mutex
	// Guarded by mu.
	endpoints map[Transport]Endpoint
	addr      net.Addr // of the first endpoint
	peers     map[string]*peer
	byKey     map[[ed25519.PublicKeySize]byte]*peer
	closed    bool
}

// Start opens the ports, accepts connections and dials the peers.
func Start(o Options) (*Node, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("replication network: %w", err)
	}
	cert, err := o.Identity.Certificate(time.Now())
	if err != nil {
		return nil, err
	}
	if o.WithoutCertificate {
		cert = tls.Certificate{}
	}
	n := &Node{
		options:   o,
		log:       o.Log,
		public:    o.Identity.Public(),
		cert:      cert,
		endpoints: map[Transport]Endpoint{},
		peers:     map[string]*peer{},
		byKey:     map[[ed25519.PublicKeySize]byte]*peer{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		n.cancel()
		n.wg.Wait()
		for _, e := range n.endpoints {
			err = errors.Join(err, e.Close())
		}
		return nil, fmt.Errorf("replication network: %w", err)
	}
	for _, p := range n.peers {
		go p.run()
	}
	return n, nil
}

func (n *Node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for t := range n.options.Transports {
		if t == QUIC || len(n.options.Transports) == 1 {
			if err := n.open(t); err != nil {
				return err
			}
		}
	}
	var faults []error
	for _, p := range n.options.Peers {
		if _, err := n.addPeer(p); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// open opens the port of t, unless it is open. All transports have the same address.
// REQUIRES n.mu.
func (n *Node) open(t Transport) error {
	if n.endpoints[t] != nil {
		return nil
	}
	opener := n.options.Transports[t]
	if opener == nil {
		return fmt.Errorf("transport %v is not available", t)
	}
	listen := n.options.Listen
	if n.addr != nil {
		listen = n.addr.String() // the same port when any was asked for
	}
	e, err := opener(Port{
		Listen:      listen,
		Identity:    n.options.Identity,
		Certificate: n.cert,
		Allowed:     n.allows,
		Congestion:  n.congestion,
		Peers:       n.peerCount,
		PeerOn:      n.peerOn,
		Heartbeat:   n.options.Heartbeat,
		PeerTimeout: n.options.PeerTimeout,
		DialTimeout: n.options.DialTimeout,
		Failed:      n.failed,
		Calm:        n.calm,
	})
	if err != nil {
		return fmt.Errorf("listening on %s for %v: %w", listen, t, err)
	}
	n.endpoints[t] = e
	n.several.Store(len(n.endpoints) > 1)
	if n.addr == nil {
		n.addr = e.Addr()
	}
	n.wg.Go(func() { n.accept(e, t) })
	return nil
}

// calm is Port.Calm: with a second transport open there are its sockets, too.
func (n *Node) calm() bool {
	return n.options.Calm != nil && !n.several.Load() && n.options.Calm()
}

func (n *Node) endpoint(t Transport) Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.endpoints[t]
}

func (n *Node) peerCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.peers)
}

// congestion returns the congestion control configured for the peer with that key.
func (n *Node) congestion(key ed25519.PublicKey) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.byKey[[ed25519.PublicKeySize]byte(key)]; p != nil {
		return p.Congestion
	}
	return ""
}

func (n *Node) allows(key ed25519.PublicKey) bool { return n.peerOf(key) != nil }

func (n *Node) peerOf(key ed25519.PublicKey) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byKey[[ed25519.PublicKeySize]byte(key)]
}

// Addr returns the address that the node listens on.
func (n *Node) Addr() net.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addr
}

// CertificateEnds returns until when the certificate is valid that this node shows
// its peers; zero when it shows none.
func (n *Node) CertificateEnds() time.Time {
	if len(n.cert.Certificate) == 0 {
		return time.Time{}
	}
	c, err := x509.ParseCertificate(n.cert.Certificate[0])
	if err != nil {
		return time.Time{} // Start has made it
	}
	return c.NotAfter
}

// AddPeer adds a peer and begins to connect to it.
func (n *Node) AddPeer(p Peer) error {
	n.mu.Lock()
	added, err := n.addPeer(p)
	n.mu.Unlock()
	if err == nil {
		go added.run()
	}
	return err
}

// addPeer adds a peer and opens the port that it needs. REQUIRES n.mu.
func (n *Node) addPeer(p Peer) (*peer, error) {
	switch {
	case n.closed:
		return nil, fmt.Errorf("peer %q: %w", p.Name, ErrClosed)
	case p.Name == "" || len(p.Name) > protocol.NameMax:
		return nil, fmt.Errorf("peer name %q: want 1 to %d bytes", p.Name, protocol.NameMax)
	case p.Name == n.options.Name:
		return nil, fmt.Errorf("peer %q has this node's own name", p.Name)
	case n.peers[p.Name] != nil:
		return nil, fmt.Errorf("peer %q is there already", p.Name)
	}
	if err := n.checkKeys(p); err != nil {
		return nil, err
	}
	if err := n.prepare(&p); err != nil {
		return nil, err
	}
	added := newPeer(n, p)
	n.peers[p.Name] = added
	for _, k := range p.Keys {
		n.byKey[[ed25519.PublicKeySize]byte(k)] = added
	}
	return added, nil
}

// checkKeys says what is wrong with a peer's keys. REQUIRES n.mu.
func (n *Node) checkKeys(p Peer) error {
	if len(p.Keys) < 1 || len(p.Keys) > 2 {
		return fmt.Errorf("peer %q has %d keys, want one or two", p.Name, len(p.Keys))
	}
	for _, k := range p.Keys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("peer %q: key of %d bytes", p.Name, len(k))
		}
		if k.Equal(n.public) {
			return fmt.Errorf("peer %q has this node's own key", p.Name)
		}
		if other := n.byKey[[ed25519.PublicKeySize]byte(k)]; other != nil && other.Name != p.Name {
			return fmt.Errorf("peers %q and %q have the same key", other.Name, p.Name)
		}
	}
	return nil
}

// prepare opens what a peer needs on this side. REQUIRES n.mu.
func (n *Node) prepare(p *Peer) error {
	if p.Transport == 0 {
		p.Transport = QUIC
	}
	if err := n.open(p.Transport); err != nil {
		return fmt.Errorf("peer %q: %w", p.Name, err)
	}
	if p.Congestion == "" {
		return nil
	}
	if err := n.endpoints[p.Transport].CheckCongestion(p.Congestion); err != nil {
		return fmt.Errorf("peer %q: %w", p.Name, err)
	}
	return nil
}

// UpdatePeer gives the peer of that name another address, other keys, another
// transport or compression. A session whose key and transport still hold goes on; another ends.
func (n *Node) UpdatePeer(p Peer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.peers[p.Name]
	if n.closed || old == nil {
		return fmt.Errorf("peer %q: %w", p.Name, ErrClosed)
	}
	if err := n.checkKeys(p); err != nil {
		return err
	}
	if err := n.prepare(&p); err != nil {
		return err
	}
	for _, k := range old.Keys {
		delete(n.byKey, [ed25519.PublicKeySize]byte(k))
	}
	for _, k := range p.Keys {
		n.byKey[[ed25519.PublicKeySize]byte(k)] = old
	}
	old.Address, old.Keys, old.Transport, old.Congestion = p.Address, slices.Clone(p.Keys), p.Transport, p.Congestion
	old.Compression = p.Compression
	old.zstd.Store(p.Compression == Zstd)
	select {
	case old.updated <- struct{}{}:
	default: // it has not looked yet
	}
	return nil
}

var errRemoved = errors.New("peer removed")

// RemovePeer ends the session with a peer and forgets its keys. It returns
// after SessionDown; false: there is no such peer.
func (n *Node) RemovePeer(name string) bool {
	n.mu.Lock()
	p := n.peers[name]
	if p != nil {
		delete(n.peers, name)
		for _, k := range p.Keys {
			delete(n.byKey, [ed25519.PublicKeySize]byte(k))
		}
	}
	n.mu.Unlock()
	if p == nil {
		return false
	}
	p.stop(errRemoved)
	<-p.done
	return true
}

// Close ends all sessions, telling the peers, and returns when every goroutine
// has ended; or when ctx ends, then with its error and the ports closed.
func (n *Node) Close(ctx context.Context) error {
	n.mu.Lock()
	n.closed = true
	peers := make([]*peer, 0, len(n.peers))
	for _, p := range n.peers {
		peers = append(peers, p)
	}
	endpoints := slices.Collect(maps.Values(n.endpoints))
	n.mu.Unlock()
	n.cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, p := range peers {
			p.stop(errStopped)
		}
		for _, p := range peers {
			<-p.done
		}
		n.wg.Wait()
	}()
	var err error
	select {
	case <-ended:
	case <-ctx.Done():
		err = fmt.Errorf("closing the replication network: %w", ctx.Err())
	}
	for _, e := range endpoints {
		err = errors.Join(err, e.Close())
	}
	return err
}

func (n *Node) sendHello(ctl Carrier) error {
	hello := n.options.hello()
	_, err := ctl.Write(protocol.AppendFrame(nil, &hello, nil))
	return err
}
