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
	c.Bulk.Abort()
	if !l.mayRefuse(peer) {
		c.Write.Abort()
		return
	}
	l.a.spawnOr(func(ctx context.Context) {
		defer l.refused(peer)
		sendRefusal(ctx, c.Write, why)
	}, func() {
		l.refused(peer)
		c.Write.Abort()
	})
}

// refuseAsk answers a ConnectAsk for a volume that cannot be connected: with a
// pair of streams, so that the reason reaches the volume that asked.
func (l *links) refuseAsk(s session, name string, why error) {
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
		sendRefusal(ctx, c.Write, why)
		c.Bulk.Abort()
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
// pairTimeout has passed.
func sendRefusal(ctx context.Context, w volume.Stream, why error) {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, w.Abort)
	defer stop()
	defer w.Abort()
	code, text := errorText(why)
	if _, err := w.Write(protocol.AppendFrame(nil, &protocol.Refuse{Code: code, Text: text}, nil)); err != nil {
		return
	}
	if w.Close() != nil {
		return
	}
	// What the peer said before it read the refusal is of no interest.
	_, _ = io.Copy(io.Discard, w)
}
