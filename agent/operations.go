package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Agent implements control.Node.
var _ control.Node = (*Agent)(nil)

// Status implements control.Node.
func (a *Agent) Status() control.NodeStatus {
	return a.statusWith((*slot).status)
}

// StatusIO implements control.Node.
func (a *Agent) StatusIO() control.NodeStatus { return a.statusWith((*slot).statusIO) }

func (a *Agent) statusWith(status func(*slot) volume.Status) control.NodeStatus {
	st := control.NodeStatus{Node: a.cfg.Node.Name, Version: a.opt.Version, Volumes: []volume.Status{}, Links: a.links.status(),
		IdentitySince: a.identitySince, Certificates: a.certificates()}
	for _, s := range a.slots() {
		v := status(s)
		v.Clients = a.clients(s)
		st.Volumes = append(st.Volumes, v)
	}
	return st
}

// find returns the slot of a name that a request gave.
func (a *Agent) find(name string) (*slot, error) {
	if a.isStopping() {
		return nil, &volume.Error{Code: protocol.CodeShutdown, Text: "the agent is stopping: try again when it runs"}
	}
	if s := a.slot(name); s != nil {
		return s, nil
	}
	return nil, unknownVolume(a.config.Load(), name)
}

// findOpen returns the slot and its volume.
func (a *Agent) findOpen(name string) (*slot, running, error) {
	s, err := a.find(name)
	if err != nil {
		return nil, nil, err
	}
	vol, err := s.opened()
	return s, vol, err
}

// begin starts an operation that changes a role or files; end is nil when it is
// refused.
func (s *slot) begin() (end func(), err error) {
	if !s.operation.TryLock() {
		return nil, &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf("another operation on volume %s is under way: look at qrbd status and try again", s.cfg.Name)}
	}
	return s.operation.Unlock, nil
}

// occupy returns the slot of a volume, open or not, with an operation begun; the caller
// calls end when it is over.
func (a *Agent) occupy(name string) (s *slot, end func(), err error) {
	if s, err = a.find(name); err != nil {
		return nil, nil, err
	}
	if end, err = s.begin(); err != nil {
		return nil, nil, err
	}
	return s, end, nil
}

// findIdle returns the slot and its volume, with an operation begun; the caller
// calls end when it is over.
func (a *Agent) findIdle(name string) (s *slot, vol running, end func(), err error) {
	if s, vol, err = a.findOpen(name); err != nil {
		return nil, nil, nil, err
	}
	if end, err = s.begin(); err != nil {
		return nil, nil, nil, err
	}
	return s, vol, end, nil
}

// Explain implements control.Node.
func (a *Agent) Explain(name string) (volume.Explanation, error) {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return volume.Explanation{}, err
	}
	return vol.Explain(), nil
}

// Create implements control.Node: the running agent makes the files, so that
// nobody else touches them, and opens the volume.
func (a *Agent) Create(ctx context.Context, name string, r control.CreateRequest) error {
	s, end, err := a.occupy(name)
	if err != nil {
		return err
	}
	defer end()
	if _, err := s.opened(); err == nil {
		if !r.Force {
			return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("volume %s is created already and running", name)}
		}
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf("volume %s is running: stop the agent, then run qrbd create %s --force", name, name)}
	}
	if err := createFiles(a.cfg, s.live(), r.Force); err != nil {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: err.Error()}
	}
	a.log.Info("volume created", "volume", name, "backing", s.cfg.Backing, "bytes", s.live().Size)
	return a.openLinked(s)
}

// Promote implements control.Node.
func (a *Agent) Promote(ctx context.Context, name string, r control.PromoteRequest) error {
	s, vol, end, err := a.findIdle(name)
	if err != nil {
		return err
	}
	defer end()
	err = a.promote(ctx, vol, volume.PromoteOptions{Force: r.Force, PeerFenced: r.PeerFenced})
	if err == nil {
		a.promoted(s, vol, r.Force)
	}
	return err
}

const (
	// fencedGrace is what a promotion waits beyond the time after which a silent
	// peer counts as lost.
	fencedGrace = time.Second
	fencedRetry = 100 * time.Millisecond
)

// promote promotes vol. A host that has just died still looks connected, and
// primary, until PeerTimeout has passed. Whoever vouches for its death is not told
// to ask it, but waits until its silence is noticed; if it goes on answering, the
// vouching was wrong and the refusal stands.
func (a *Agent) promote(ctx context.Context, vol running, o volume.PromoteOptions) error {
	end := time.Now().Add(a.cfg.Node.PeerTimeout + fencedGrace)
	for {
		err := vol.Promote(ctx, o)
		var ve *volume.Error
		if !o.PeerFenced || !errors.As(err, &ve) || ve.Code != protocol.CodeTwoPrimaries {
			return err
		}
		if time.Now().After(end) {
			return &volume.Error{Code: ve.Code, Text: ve.Text + " (it still answers: it is not fenced)"}
		}
		select {
		case <-time.After(fencedRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// Demote implements control.Node.
func (a *Agent) Demote(ctx context.Context, name string, r control.DemoteRequest) error {
	if _, on := a.byFailover(name); on {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("failover of volume %s would make a node primary again at once: move it with qrbd switchover %s --to PEER, or run qrbd failover pause %s first", name, name, name)}
	}
	return a.leaveRole(ctx, name, r.Force, func(vol running) error { return vol.Demote(ctx) })
}

// Switchover implements control.Node.
func (a *Agent) Switchover(ctx context.Context, name string, r control.SwitchoverRequest) error {
	if r.To == a.cfg.Node.Name {
		return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("%s is this node: run the switchover on the primary, or qrbd promote %s here while there is none", r.To, name)}
	}
	if err := a.checkPeer(name, r.To, false); err != nil {
		return err
	}
	if f, on := a.byFailover(name); on && !r.Force {
		return refusedMove(name, f.sup.Move(ctx, r.To))
	}
	return a.leaveRole(ctx, name, r.Force, func(vol running) error { return vol.Switchover(ctx, r.To) })
}

// leaveRole empties the volume of clients, keeps new ones out, and does what
// gives the primary role up.
func (a *Agent) leaveRole(ctx context.Context, name string, force bool, op func(running) error) error {
	s, vol, end, err := a.findIdle(name)
	if err != nil {
		return err
	}
	defer end()
	s.closeDoor()
	defer s.openDoor()
	if err := a.mayLeave(s, force); err != nil {
		return err
	}
	if err := a.clear(ctx, s, force); err != nil {
		return err
	}
	return op(vol)
}

// Connect implements control.Node.
func (a *Agent) Connect(ctx context.Context, name string, r control.ConnectRequest) error {
	if err := a.checkPeer(name, r.Peer, true); err != nil {
		return err
	}
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	return vol.Connect(ctx, r.Peer, r.DiscardMyData)
}

// Disconnect implements control.Node.
func (a *Agent) Disconnect(ctx context.Context, name string, r control.DisconnectRequest) error {
	if err := a.checkPeer(name, r.Peer, true); err != nil {
		return err
	}
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	return vol.Disconnect(ctx, r.Peer)
}

// Invalidate implements control.Node.
func (a *Agent) Invalidate(ctx context.Context, name string) error {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	return vol.Invalidate(ctx)
}

// checkPeer refuses a peer that the volume does not have. empty: "" means all.
func (a *Agent) checkPeer(name, peer string, empty bool) error {
	s, err := a.find(name)
	if err != nil {
		return err
	}
	if s.hasPeer(peer) || peer == "" && empty {
		return nil
	}
	peers := s.live().Peers
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.Name
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("volume %s has no peer %q; its peers: %s", name, peer, strings.Join(names, ", "))}
}

// errorText is the text of a refusal, for the other side.
func errorText(err error) (protocol.Code, string) {
	var ve *volume.Error
	if errors.As(err, &ve) {
		return ve.Code, ve.Text
	}
	return protocol.CodeInternal, err.Error()
}
