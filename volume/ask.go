package volume

import (
	"context"

	"github.com/qrbd/qrbd/replica"
)

// askTarget has the owner asked whether a peer may overwrite this replica. The
// connection waits for the answer, nothing else does.
func (v *Volume) askTarget(id replica.PeerID, token uint64, d *replica.Discard) {
	v.mu.Lock()
	l := v.links[id]
	v.mu.Unlock()
	if l == nil {
		return
	}
	why := ""
	if d != nil {
		why = d.Reason
	}
	v.beside(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			var err error
			if ask := v.tuned.Load().MayResync; ask != nil { // else the owner wants to be asked no more
				err = ask(ctx, l.name, why)
			}
			v.mu.Lock()
			v.m.TargetAllowed(v.now(), id, token, err)
			v.unlockAndRun()
		}()
		select {
		case <-l.dead:
			cancel()
			<-answered
		case <-answered:
		}
	})
}
