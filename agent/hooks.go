package agent

import (
	"context"

	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// fireHooks has the commands run that are configured for what e says. It does not
// block.
func (a *Agent) fireHooks(s *slot, e volume.Event) {
	if len(s.live().Hooks.Commands) == 0 {
		return
	}
	st := s.status()
	for _, n := range hooksFor(e, st) {
		a.hooks.Fire(s.live().Hooks, a.hookEvent(n, e, st))
	}
}

// hookEvent is what a command is told of e.
func (a *Agent) hookEvent(n hook.Name, e volume.Event, st volume.Status) hook.Event {
	return hook.Event{Name: n, Volume: e.Volume, Node: a.cfg.Node.Name, Peer: e.Peer, Role: st.Role, Disk: st.Disk, Generation: st.Generation,
		Old: e.Old, New: e.New, Reason: e.Reason, Config: a.cfg.File}
}

// hooksFor returns the hooks that a state change is for.
func hooksFor(e volume.Event, st volume.Status) []hook.Name {
	connected := protocol.Connected.String()
	switch e.Field {
	case "handshake":
		if e.New == protocol.SplitBrain.String() {
			return []hook.Name{hook.SplitBrain}
		}
	case "split-brain":
		switch e.New {
		case "detected":
			return []hook.Name{hook.InitialSplitBrain}
		case "primary-lost":
			return []hook.Name{hook.PriLostAfterSB}
		}
	case "disk":
		if e.New != protocol.Failed.String() {
			return nil
		}
		if st.Role == protocol.Primary.String() && !goodPeer(st) {
			return []hook.Name{hook.LocalIOError, hook.PriOnInconDegr}
		}
		return []hook.Name{hook.LocalIOError}
	case "replication":
		if e.Old == protocol.SyncTarget.String() && e.New == protocol.Established.String() {
			return []hook.Name{hook.AfterResyncTarget}
		}
	case "fencing":
		if e.New == "unfenced" {
			return []hook.Name{hook.UnfencePeer}
		}
	case "verify":
		if e.New == "differs" {
			return []hook.Name{hook.OutOfSync}
		}
	case "connection":
		switch connected {
		case e.Old:
			if st.Disk == protocol.Failed.String() && st.Role == protocol.Primary.String() && !goodPeer(st) {
				return []hook.Name{hook.PeerLost, hook.PriOnInconDegr}
			}
			return []hook.Name{hook.PeerLost}
		case e.New:
			return []hook.Name{hook.PeerConnected}
		}
	}
	return nil
}

// goodPeer reports whether a connected peer has all of the data.
func goodPeer(st volume.Status) bool {
	for _, p := range st.Peers {
		if p.Connection == protocol.Connected.String() && p.Disk == protocol.UpToDate.String() {
			return true
		}
	}
	return false
}

// mayResync runs the volume's before-resync-target: an error refuses.
func (a *Agent) mayResync(ctx context.Context, s *slot, peer, why string) error {
	e := volume.Event{Volume: s.cfg.Name, Peer: peer, Field: "replication", New: protocol.SyncTarget.String(), Reason: why}
	return a.hooks.Ask(ctx, s.live().Hooks, a.hookEvent(hook.BeforeResyncTarget, e, s.status()))
}
