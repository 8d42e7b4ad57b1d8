package agent

import (
	"context"
	"sync"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/reach"
	"github.com/qrbd/qrbd/protocol"
)

// reachTimeout is how long a peer may take to answer whether it reaches this node:
// reach.Patient's longest, and some.
const reachTimeout = 10 * time.Second

// reaches are the questions to peers whether they reach this node, and theirs.
type reaches struct {
	mu sync.Mutex
	// Guarded by mu.
	waiting map[uint64]chan protocol.ReachAnswer // by ID; capacity 1
	busy    map[string]bool                      // peers whose question is being answered
}

// Reach implements control.Node: it asks every peer at the same time.
func (a *Agent) Reach(ctx context.Context) []control.PeerReach {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	peers := a.config.Load().Peers
	out := make([]control.PeerReach, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { out[i] = a.reachFrom(ctx, p.Name) })
	}
	wg.Wait()
	return out
}

// featured is a session that knows what its peer can do.
type featured interface{ Features() uint64 }

// reachFrom asks one peer.
func (a *Agent) reachFrom(ctx context.Context, peer string) control.PeerReach {
	r := control.PeerReach{Peer: peer}
	s := a.links.session(peer)
	if s == nil {
		r.Unasked = "there is no session with it"
		return r
	}
	if f, ok := s.(featured); !ok || f.Features()&protocol.FeatureReach == 0 {
		r.Unasked = "its version does not answer that"
		return r
	}
	id, answer := random(), make(chan protocol.ReachAnswer, 1)
	a.reaches.mu.Lock()
	a.reaches.waiting[id] = answer
	a.reaches.mu.Unlock()
	defer func() {
		a.reaches.mu.Lock()
		delete(a.reaches.waiting, id)
		a.reaches.mu.Unlock()
	}()
	if err := s.Send(&protocol.ReachAsk{ID: id}); err != nil {
		r.Unasked = err.Error()
		return r
	}
	select {
	case m := <-answer:
		r.Address, r.Build, r.Reason = m.Address, m.Build, m.Reason
		r.RTTMicros, r.Largest = max(time.Duration(m.RTT).Microseconds(), 0), int(m.Largest)
	case <-ctx.Done():
		r.Unasked = "it has not answered in time"
	}
	return r
}

// reachAsked answers a peer's question, one at a time.
func (a *Agent) reachAsked(s peerSession, id uint64) {
	q := &a.reaches
	q.mu.Lock()
	busy := q.busy[s.Peer()]
	q.busy[s.Peer()] = true
	q.mu.Unlock()
	if busy {
		return // the answer to the first is on its way; this one is not waited for for ever
	}
	a.spawnOr(func(ctx context.Context) {
		m := a.reachPeer(ctx, s.Peer())
		m.ID = id
		q.mu.Lock()
		delete(q.busy, s.Peer())
		q.mu.Unlock()
		if err := s.Send(&m); err != nil {
			a.log.Debug("answering whether a peer is reached", "peer", s.Peer(), "err", err)
		}
	}, func() {})
}

// reachPeer finds out whether a peer is reached at its configured address.
func (a *Agent) reachPeer(ctx context.Context, name string) protocol.ReachAnswer {
	m := protocol.ReachAnswer{Build: a.opt.Version}
	for _, p := range a.config.Load().Peers {
		if p.Name != name {
			continue
		}
		m.Address = p.Address
		r, err := reach.Patient.Ask(ctx, p.Transport, p.Address)
		if err != nil {
			m.Reason = err.Error()
			return m
		}
		m.RTT, m.Largest = max(int64(r.RTT), 1), uint32(r.Largest)
		return m
	}
	m.Reason = "it is not configured as a peer any more"
	return m
}

// reachAnswered hands an answer to who waits for it.
func (a *Agent) reachAnswered(m *protocol.ReachAnswer) {
	a.reaches.mu.Lock()
	answer := a.reaches.waiting[m.ID]
	a.reaches.mu.Unlock()
	if answer == nil {
		return // too late
	}
	select {
	case answer <- *m:
	default: // a second answer
	}
}
