package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/hook"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func fencing(f config.Fencing) volume.Fencing {
	switch f {
	case config.FencingResource:
		return volume.FencingResource
	case config.FencingWithStonith:
		return volume.FencingStonith
	case config.FencingDontCare:
	}
	return volume.FencingOff
}

// fencePeer runs the volume's fence-peer and returns its answer, also in words.
func (a *Agent) fencePeer(ctx context.Context, s *slot, peer string) (volume.FenceAnswer, string) {
	st := s.status()
	e := volume.Event{Volume: s.cfg.Name, Peer: peer, Field: "fencing", New: "asked", Reason: "to be promoted without it"}
	if st.Role == protocol.Primary.String() {
		e.Reason = "the connection to it is lost"
	}
	set := s.live().Hooks
	err := a.hooks.Ask(ctx, set, a.hookEvent(hook.FencePeer, e, st))
	answer := hook.AnswerOf(err)
	said := "fence-peer says " + answer.String()
	switch answer {
	case hook.PeerInconsistent:
		return volume.FenceInconsistent, said
	case hook.PeerOutdated:
		return volume.FenceOutdated, said
	case hook.PeerUnreachable:
		return volume.FenceUnreachable, said + ", and may be alive"
	case hook.PeerPrimary:
		return volume.FencePrimary, said
	case hook.PeerStonithed:
		return volume.FenceStonithed, said
	}
	if err == nil {
		return volume.FenceFailed, "fence-peer has exited with 0, which is no answer"
	}
	return volume.FenceFailed, err.Error()
}

// FenceCode returns what a fence-peer hook answers of this node when Outdate has returned
// err, and the disk is as given then; 0: it knows nothing.
func FenceCode(err error, disk string) int {
	var ve *volume.Error
	switch {
	case errors.As(err, &ve) && ve.Code == protocol.CodeTwoPrimaries:
		return int(hook.PeerPrimary)
	case err != nil:
		return 0
	case disk == protocol.Inconsistent.String():
		return int(hook.PeerInconsistent)
	}
	return int(hook.PeerOutdated)
}

// Outdate implements control.Node. It does not wait for other operations: a promotion may
// wait for the hook of a peer that waits for this. A peer that has just been lost still
// looks connected here: its silence is waited for.
func (a *Agent) Outdate(ctx context.Context, name string) error {
	_, vol, err := a.findOpen(name)
	if err != nil {
		return err
	}
	end := time.Now().Add(a.cfg.Node.PeerTimeout + fencedGrace)
	for {
		err := vol.Outdate(ctx)
		var ve *volume.Error
		if !errors.As(err, &ve) || ve.Code != protocol.CodeBusy {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not outdated: %w", err)
		}
		select {
		case <-time.After(fencedRetry):
		case <-ctx.Done():
			return err
		}
	}
}
