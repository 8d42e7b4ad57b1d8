package quicnet

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/qrbd/qrbd/protocol"
)

// Node is a running end of the replication network. Safe for concurrent use.
type Node struct {
	options    Options
	log        *slog.Logger
	public     ed25519.PublicKey
	cert       tls.Certificate
	quicConfig *quic.Config
	socket     net.PacketConn
	transport  *quic.Transport
	listener   *quic.EarlyListener
	reports    reporter

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept, welcomes
	// handshakes is a semaphore of accepted connections without a session.
	handshakes chan struct{}
	accepted   atomic.Int64 // connections accepted and not ended

	mu sync.Mutex
	// Guarded by mu.
	peers  map[string]*peer
	byKey  map[[ed25519.PublicKeySize]byte]*peer
	closed bool
}

// Start opens the socket, accepts connections and dials the peers.
func Start(o Options) (*Node, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("replication network: %w", err)
	}
	cert, err := o.Identity.certificate(time.Now())
	if err != nil {
		return nil, err
	}
	if o.withoutCertificate {
		cert = tls.Certificate{}
	}
	n := &Node{
		options:    o,
		log:        o.Log,
		public:     o.Identity.Public(),
		cert:       cert,
		socket:     o.socket,
		handshakes: make(chan struct{}, handshakesMax),
		peers:      map[string]*peer{},
		byKey:      map[[ed25519.PublicKeySize]byte]*peer{},
	}
	n.quicConfig = &quic.Config{
		HandshakeIdleTimeout:           o.DialTimeout,
		MaxIdleTimeout:                 max(idleMin, 2*o.PeerTimeout),
		InitialStreamReceiveWindow:     streamWindowInitial,
		MaxStreamReceiveWindow:         streamWindowMax,
		InitialConnectionReceiveWindow: connWindowInitial,
		MaxConnectionReceiveWindow:     connWindowMax,
		MaxIncomingStreams:             streamsMax,
		MaxIncomingUniStreams:          -1,
		// Pings of QUIC itself pass where flow control holds the heartbeat back.
		KeepAlivePeriod: o.Heartbeat,
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	var faults []error
	for _, p := range o.Peers {
		if _, err := n.addPeer(p); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		n.cancel()
		return nil, fmt.Errorf("replication network: %w", err)
	}
	if err := n.listen(); err != nil {
		n.cancel()
		return nil, fmt.Errorf("replication network: listening on %s: %w", o.Listen, err)
	}
	n.wg.Go(n.accept)
	for _, p := range n.peers {
		go p.run()
	}
	return n, nil
}

func (n *Node) listen() error {
	if n.socket == nil {
		socket, err := listenUDP(n.options.Listen)
		if err != nil {
			return err
		}
		n.socket = newGROSocket(socket)
	}
	resetKey := quic.StatelessResetKey(n.options.Identity.derive("quic stateless reset"))
	n.transport = &quic.Transport{
		Conn: n.socket,
		// A key that survives a restart lets a restarted node tell its peers at
		// once that their connections are gone.
		StatelessResetKey:   &resetKey,
		VerifySourceAddress: func(net.Addr) bool { return n.accepted.Load() >= retryAbove },
		ConnContext:         n.admit,
	}
	listener, err := n.transport.ListenEarly(serverTLS(n.cert, n.allows), n.quicConfig)
	if err != nil {
		n.socket.Close()
		return err
	}
	n.listener = listener
	return nil
}

func listenUDP(listen string) (*net.UDPConn, error) {
	addr, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return nil, err
	}
	// quic-go asks for buffers of 7 MiB itself, by force where it may.
	return net.ListenUDP("udp", addr)
}

// admit bounds the number of accepted connections by their first packet.
func (n *Node) admit(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	n.mu.Lock()
	most := int64(connsSpare + 2*len(n.peers))
	n.mu.Unlock()
	if n.accepted.Add(1) > most {
		n.accepted.Add(-1)
		return nil, errors.New("too many connections")
	}
	context.AfterFunc(ctx, func() { n.accepted.Add(-1) })
	return ctx, nil
}

func (n *Node) allows(key ed25519.PublicKey) bool { return n.peerOf(key) != nil }

func (n *Node) peerOf(key ed25519.PublicKey) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byKey[[ed25519.PublicKeySize]byte(key)]
}

// Addr returns the socket's address.
func (n *Node) Addr() net.Addr { return n.socket.LocalAddr() }

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
	added, err := n.addPeer(p)
	if err == nil {
		go added.run()
	}
	return err
}

func (n *Node) addPeer(p Peer) (*peer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
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

// UpdatePeer gives the peer of that name another address or other keys. A session
// whose key is still accepted goes on; one whose key is not ends.
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
	for _, k := range old.Keys {
		delete(n.byKey, [ed25519.PublicKeySize]byte(k))
	}
	for _, k := range p.Keys {
		n.byKey[[ed25519.PublicKeySize]byte(k)] = old
	}
	old.Address, old.Keys = p.Address, slices.Clone(p.Keys)
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
// has ended; or when ctx ends, then with its error and the socket closed.
func (n *Node) Close(ctx context.Context) error {
	n.mu.Lock()
	n.closed = true
	peers := make([]*peer, 0, len(n.peers))
	for _, p := range n.peers {
		peers = append(peers, p)
	}
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
	n.listener.Close()
	n.transport.Close()
	n.socket.Close()
	return err
}

func (n *Node) sendHello(ctl *quic.Stream) error {
	hello := n.options.hello()
	_, err := ctl.Write(protocol.AppendFrame(nil, &hello, nil))
	return err
}

// resolve looks an address up; a literal one needs no resolver.
func resolve(ctx context.Context, address string) (*net.UDPAddr, error) {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return net.UDPAddrFromAddrPort(ap), nil
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrs[0].Unmap(), uint16(port))), nil
}
