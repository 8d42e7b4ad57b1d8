package volume

import (
	"context"

	"github.com/qrbd/qrbd/replica"
)

// The types and values of package replica, for owners that do not know it.
type (
	Fencing     = replica.Fencing
	FenceAnswer = replica.FenceAnswer
)

// Their values.
const (
	FencingOff      = replica.FencingOff
	FencingResource = replica.FencingResource
	FencingStonith  = replica.FencingStonith

	FenceFailed       = replica.FenceFailed
	FenceInconsistent = replica.FenceInconsistent
	FenceOutdated     = replica.FenceOutdated
	FenceUnreachable  = replica.FenceUnreachable
	FencePrimary      = replica.FencePrimary
	FenceStonithed    = replica.FenceStonithed
)

// fence has the owner see to it that a peer cannot take over. Nothing waits for the
// answer but what needs it; Close ends it.
func (v *Volume) fence(id replica.PeerID, token uint64) {
	peer := v.peers()[id].Name
	v.beside(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-v.fenceEnd:
				cancel()
			case <-ctx.Done():
			}
		}()
		answer, why := FenceFailed, "there is no hook fence-peer"
		if v.opt.FencePeer != nil {
			answer, why = v.opt.FencePeer(ctx, peer)
		}
		v.mu.Lock()
		v.m.FenceAnswered(v.now(), id, token, answer, why)
		v.unlockAndRun()
	})
}

// Outdate implements Control.
func (v *Volume) Outdate(ctx context.Context) error {
	return v.operate(ctx, func(done func(error)) { v.m.Outdate(v.now(), done) })
}
