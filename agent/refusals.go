package agent

import (
	"context"
	"io"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// refuse answers a pair of streams with the reason, then ends them. REQUIRES:
// the caller owns c.
func (l *links) refuse(peer string, c volume.Conn, why error) {
	drop := func() {
		c.Write.Abort()
		c.Bulk.Abort()
	}
	if !l.mayRefuse(peer) {
		drop()
		return
	}
	l.a.spawnOr(func(ctx context.Context) {
		defer l.refused(peer)
		sendRefusal(ctx, c, why)
	}, func() {
		l.refused(peer)
		drop()
	})
}

// refuseAsk answers a ConnectAsk for a volume that cannot be connected: with a
// pair of streams, so that the reason reaches the volume that asked.
func (l *links) refuseAsk(s peerSession, name string, why error) {
	peer := s.Peer()
	if !l.mayRefuse(peer) {
		return
	}
	l.a.spawnOr(func(ctx context.Context) {
		defer l.refused(peer)
		c, err := l.openPair(ctx, s, name)
		if err != nil {
			l.a.log.Debug("refusing to connect", "volume", name, "peer", peer, "err", err)
			return
		}
		sendRefusal(ctx, c, why)
	}, func() { l.refused(peer) })
}

// mayRefuse counts a refusal that begins; false: too many are under way.
func (l *links) mayRefuse(peer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refusals[peer] >= refusalsMax {
		return false
	}
	l.refusals[peer]++
	return true
}

func (l *links) refused(peer string) {
	l.mu.Lock()
	if l.refusals[peer]--; l.refusals[peer] == 0 {
		delete(l.refusals, peer)
	}
	l.mu.Unlock()
}

// sendRefusal writes a Refuse frame, ends the sending direction, and waits until
// the peer has ended its own (so that the frame is not lost with the stream) or
// pairTimeout has passed. Only then it ends the bulk stream: its end would reach
// the peer before the frame and be all that it learns.
func sendRefusal(ctx context.Context, c volume.Conn, why error) {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	defer c.Bulk.Abort()
	defer c.Write.Abort()
	stop := context.AfterFunc(ctx, c.Write.Abort)
	defer stop()
	code, text := errorText(why)
	if _, err := c.Write.Write(protocol.AppendFrame(nil, &protocol.Refuse{Code: code, Text: text}, nil)); err != nil {
		return
	}
	if c.Write.Close() != nil {
		return
	}
	// What the peer said before it read the refusal is of no interest.
	_, _ = io.Copy(io.Discard, c.Write)
}
