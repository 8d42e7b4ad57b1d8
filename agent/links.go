package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// peerSession is one authenticated connection to a peer's agent.
type peerSession interface {
	// Peer returns the peer's configured name.
	Peer() string
	// Dialer says that this side dialled, and therefore opens volumes' streams.
	Dialer() bool
	// Open opens a stream and sends o on it. It blocks for a bounded time, until
	// the peer's stream limit allows one.
	Open(ctx context.Context, o protocol.StreamOpen) (volume.Stream, error)
	// Send sends a message on the control stream. It blocks for a bounded time.
	Send(m protocol.Message) error
	// RTT returns the smoothed round trip; zero when unknown.
	RTT() time.Duration
	// Compresses says whether payloads are sent to the peer compressed, as of now.
	Compresses() bool
}

// figured is a session whose transport counts what it does. A session may do
// without.
type figured interface {
	// Figures returns the transport's part of the status: all but Peer, Address, Up,
	// Dialled and Reason. It does not block.
	Figures() control.LinkStatus
}

// network keeps sessions with the peers and tells links of them.
type network interface {
	// AddPeer begins to keep a session with one more peer; UpdatePeer gives one that is
	// there other settings. A session for which they still hold goes on.
	AddPeer(p config.Peer) error
	UpdatePeer(p config.Peer) error
	// Close ends every session and returns when the goroutines have ended, or ctx
	// has.
	Close(ctx context.Context) error
}

const (
	// pairTimeout: a stream whose twin does not come is dropped, and opening a
	// pair is given up.
	pairTimeout = 10 * time.Second
	// pairsMax bounds the streams of one peer that wait for their twins. A peer
	// that keeps to the protocol has at most one for each volume.
	pairsMax = 64
	// refusalsMax bounds the refusals under way to one peer.
	refusalsMax = 16
)

// links connects sessions and volumes.
type links struct {
	a *Agent

	mu sync.Mutex
	// Guarded by mu.
	sessions map[string]peerSession // by peer
	opening  map[link]bool          // pairs that are being opened
	waiting  map[pairKey]*half
	refusals map[string]int    // under way, by peer
	reasons  map[string]string // why there is no session, by peer
	closed   bool
}

// link is a (volume, peer).
type link struct{ volume, peer string }

// pairKey names the two streams of one attempt. The session is part of it: an
// attempt of an earlier session can never be completed by a later one.
type pairKey struct {
	s       peerSession
	volume  string
	attempt uint64
}

// half is a stream that waits for its twin.
type half struct {
	kind   protocol.StreamKind
	stream volume.Stream
	timer  *time.Timer
}

func newLinks(a *Agent) *links {
	return &links{
		a:        a,
		sessions: map[string]peerSession{},
		opening:  map[link]bool{},
		waiting:  map[pairKey]*half{},
		refusals: map[string]int{},
		reasons:  map[string]string{},
	}
}

// sessionUp makes s the session with its peer. The dialler connects every
// volume that they have in common; the other side waits to be connected.
func (l *links) sessionUp(s peerSession) {
	l.mu.Lock()
	l.sessions[s.Peer()] = s
	delete(l.reasons, s.Peer())
	l.mu.Unlock()
	l.a.failoverSession(s.Peer(), true)
	if !s.Dialer() {
		return
	}
	for _, sl := range l.a.slots() {
		if _, err := sl.opened(); err == nil && sl.hasPeer(s.Peer()) {
			l.connect(s, sl)
		}
	}
}

// sessionDown forgets s; what it carried has ended with it.
func (l *links) sessionDown(s peerSession) {
	var orphans []*half
	l.mu.Lock()
	last := l.sessions[s.Peer()] == s
	if last {
		delete(l.sessions, s.Peer())
	}
	for k, h := range l.waiting {
		if k.s == s {
			orphans = append(orphans, h)
			delete(l.waiting, k)
		}
	}
	l.mu.Unlock()
	for _, h := range orphans {
		h.drop()
	}
	if last {
		l.a.failoverSession(s.Peer(), false)
	}
}

// session returns the session with a peer, nil without one.
func (l *links) session(peer string) peerSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[peer]
}

// unreachable tells every volume with that peer why a session did not come up.
func (l *links) unreachable(peer string, cause error) {
	l.mu.Lock()
	l.reasons[peer] = cause.Error()
	l.mu.Unlock()
	for _, sl := range l.a.slots() {
		if vol, err := sl.opened(); err == nil && sl.hasPeer(peer) {
			vol.PeerUnreachable(peer, cause)
		}
	}
}

// status returns the session with each configured peer.
func (l *links) status() []control.LinkStatus {
	var out []control.LinkStatus
	for _, p := range l.a.config.Load().Peers {
		l.mu.Lock()
		s, reason := l.sessions[p.Name], l.reasons[p.Name]
		l.mu.Unlock()
		st := control.LinkStatus{}
		if s != nil {
			if f, ok := s.(figured); ok {
				st = f.Figures()
			}
			st.Up, st.Dialled = true, s.Dialer()
			if st.RTTMicros == 0 {
				st.RTTMicros = s.RTT().Microseconds()
			}
			reason = ""
		}
		if s == nil {
			st.Transport = p.Transport.String()
		}
		st.Peer, st.Address, st.Reason = p.Name, p.Address, reason
		out = append(out, st)
	}
	return out
}

// message handles what a peer's agent says on the control stream.
func (l *links) message(s peerSession, m protocol.Message) {
	switch m := m.(type) {
	case *protocol.ReachAsk:
		l.a.reachAsked(s, m.ID)
		return
	case *protocol.ReachAnswer:
		l.a.reachAnswered(m)
		return
	case *protocol.Failover:
		l.a.failoverHeard(s.Peer(), *m)
		return
	}
	ask, ok := m.(*protocol.ConnectAsk)
	if !ok {
		l.a.log.Warn("unexpected message on the control stream", "peer", s.Peer(), "type", m.Type())
		return
	}
	if !s.Dialer() {
		l.a.log.Warn("asked to connect by the side that opens the streams", "peer", s.Peer(), "volume", ask.Volume)
		return
	}
	sl, err := l.common(ask.Volume, s.Peer())
	if err != nil {
		l.refuseAsk(s, ask.Volume, err)
		return
	}
	// A link that lives here was opened while the peer asked: another would only
	// end it. One that the peer has dropped ends here too, and then this side
	// asks by itself.
	if vol, err := sl.opened(); err == nil && !vol.Linked(s.Peer()) {
		l.connect(s, sl)
	}
}

// ask is a volume's AskConnect: connect soon, if there is a session. Without one
// the next sessionUp does it.
func (l *links) ask(sl *slot, peer string) {
	s := l.session(peer)
	if s == nil {
		return
	}
	if s.Dialer() {
		l.connect(s, sl)
		return
	}
	l.a.spawn(func(context.Context) {
		if err := s.Send(&protocol.ConnectAsk{Volume: sl.cfg.Name}); err != nil {
			l.a.log.Debug("asking to be connected", "volume", sl.cfg.Name, "peer", peer, "err", err)
		}
	})
}

// volumeOpened connects a volume that was opened after its peers' sessions came
// up.
func (l *links) volumeOpened(sl *slot) {
	for _, p := range sl.live().Peers {
		l.ask(sl, p.Name)
	}
}

// common returns the volume of that name if it runs here and has that peer;
// otherwise the refusal to send.
func (l *links) common(name, peer string) (*slot, error) {
	self := l.a.cfg.Node.Name
	sl := l.a.slot(name)
	if sl == nil {
		return nil, &volume.Error{Code: protocol.CodeUnknownVolume, Text: fmt.Sprintf("volume %s is not configured on %s", name, self)}
	}
	if !sl.hasPeer(peer) {
		return nil, &volume.Error{Code: protocol.CodeUnknownVolume, Text: fmt.Sprintf("volume %s on %s does not have %s among its peers", name, self, peer)}
	}
	if _, err := sl.opened(); err != nil {
		code, _ := errorText(err)
		return nil, &volume.Error{Code: code, Text: fmt.Sprintf("on %s %v", self, err)}
	}
	return sl, nil
}

// connect opens a volume's pair of streams and hands it over. A pair that is
// being opened already serves this call too.
func (l *links) connect(s peerSession, sl *slot) {
	key := link{sl.cfg.Name, s.Peer()}
	l.mu.Lock()
	busy := l.opening[key]
	l.opening[key] = true
	l.mu.Unlock()
	if busy {
		return
	}
	l.a.spawn(func(ctx context.Context) {
		conn, err := l.openPair(ctx, s, sl.cfg.Name)
		l.mu.Lock()
		delete(l.opening, key)
		l.mu.Unlock()
		if err != nil {
			// The session ends soon, or the volume asks again.
			l.a.log.Debug("opening streams", "volume", key.volume, "peer", key.peer, "err", err)
			return
		}
		l.attach(sl, key.peer, conn)
	})
}

// openPair opens the write stream, then the bulk stream, of a new attempt.
func (l *links) openPair(ctx context.Context, s peerSession, name string) (volume.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	attempt := random()
	w, err := s.Open(ctx, protocol.StreamOpen{Kind: protocol.StreamWrite, Volume: name, Attempt: attempt})
	if err != nil {
		return volume.Conn{}, fmt.Errorf("write stream: %w", err)
	}
	b, err := s.Open(ctx, protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: name, Attempt: attempt})
	if err != nil {
		w.Abort()
		return volume.Conn{}, fmt.Errorf("bulk stream: %w", err)
	}
	return volume.Conn{Write: w, Bulk: b, RTT: s.RTT, Compress: s.Compresses}, nil
}

// attach gives a connection to a volume, which owns it from then on.
func (l *links) attach(sl *slot, peer string, c volume.Conn) {
	vol, err := sl.opened()
	if err != nil {
		c.Write.Abort()
		c.Bulk.Abort()
		return
	}
	if err := vol.AttachPeer(peer, c); err != nil {
		l.a.log.Debug("the volume did not take the connection", "volume", sl.cfg.Name, "peer", peer, "err", err)
	}
}

// streamOpened takes a stream that the peer opened.
func (l *links) streamOpened(s peerSession, o protocol.StreamOpen, st volume.Stream) {
	mine, twin, err := l.pair(s, o, st)
	switch {
	case err != nil:
		l.a.log.Warn("stream refused", "peer", s.Peer(), "volume", o.Volume, "err", err)
		st.Abort()
		return
	case twin == nil:
		return // waits
	}
	c := volume.Conn{Write: st, Bulk: twin.stream, RTT: s.RTT, Compress: s.Compresses}
	if mine.kind == protocol.StreamBulk {
		c.Write, c.Bulk = twin.stream, st
	}
	sl, err := l.common(o.Volume, s.Peer())
	if err != nil {
		l.refuse(s.Peer(), c, err)
		return
	}
	l.attach(sl, s.Peer(), c)
}

// pair finds the twin of a stream, or lets the stream wait for it.
func (l *links) pair(s peerSession, o protocol.StreamOpen, st volume.Stream) (mine, twin *half, err error) {
	switch o.Kind {
	case protocol.StreamWrite, protocol.StreamBulk:
	default:
		return nil, nil, fmt.Errorf("stream of kind %d", o.Kind)
	}
	key := pairKey{s, o.Volume, o.Attempt}
	mine = &half{kind: o.Kind, stream: st}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, errStopping
	}
	if twin = l.waiting[key]; twin != nil {
		if twin.kind == o.Kind {
			return nil, nil, fmt.Errorf("two %v streams of one attempt", o.Kind)
		}
		delete(l.waiting, key)
		twin.timer.Stop()
		return mine, twin, nil
	}
	n := 0
	for k := range l.waiting {
		if k.s == s {
			n++
		}
	}
	if n >= pairsMax {
		return nil, nil, fmt.Errorf("%d streams wait for their twins", n)
	}
	mine.timer = time.AfterFunc(pairTimeout, func() { l.lonely(key, mine) })
	l.waiting[key] = mine
	return mine, nil, nil
}

var errStopping = fmt.Errorf("the node is stopping")

// lonely drops a stream whose twin did not come.
func (l *links) lonely(key pairKey, h *half) {
	l.mu.Lock()
	mine := l.waiting[key] == h
	if mine {
		delete(l.waiting, key)
	}
	l.mu.Unlock()
	if mine {
		l.a.log.Warn("a volume's second stream did not come", "volume", key.volume, "peer", key.s.Peer())
		h.stream.Abort()
	}
}

// drop ends a half that nobody can find any more.
func (h *half) drop() {
	h.timer.Stop()
	h.stream.Abort()
}

// close drops what waits. REQUIRES: the network is closed, nothing comes any
// more.
func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	rest := l.waiting
	l.waiting = map[pairKey]*half{}
	l.mu.Unlock()
	for _, h := range rest {
		h.drop()
	}
}
