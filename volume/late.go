package volume

import (
	"context"
	"io"

	"github.com/qrbd/qrbd/protocol"
)

// What a peer sent may hang in the store when its connection is lost. When it comes
// back it lands on whatever is there by then. So a link enters the store for every
// operation that changes it or says what it holds, and while one of a lost link is in
// there
//
//   - no other link enters, and no new one is listened to (the next primary's writes
//     wait; it drops us in time),
//   - no sync is sent from here (a block must not be copied and change after that),
//   - this node does not become primary (replica.DoSettle).

// enter waits until nothing late is in the store, and takes note that something of
// this link is, for the operation seq of the write stream (0: of another). An error:
// the link was lost, nothing was noted.
func (l *link) enter(seq uint64) error {
	v := l.v
	v.mu.Lock()
	for {
		if v.links[l.id] != l {
			v.mu.Unlock()
			return io.ErrClosedPipe
		}
		if v.late() == nil {
			l.entered(seq)
			v.mu.Unlock()
			return nil
		}
		done := v.lateDone
		v.mu.Unlock()
		select {
		case <-done:
		case <-l.dead:
			return io.ErrClosedPipe
		}
		v.mu.Lock()
	}
}

// entered takes note that an operation of this link is in the store. REQUIRES v.mu, and
// that nothing is late.
func (l *link) entered(seq uint64) {
	l.storing++
	l.disk = l.v.disk.Load()
	l.v.m.PeerTaken(l.id, seq)
}

// leave ends what enter began. REQUIRES v.mu.
func (l *link) leave() {
	l.storing--
	if l.storing == 0 && l.v.links[l.id] != l {
		close(l.v.lateDone)
		l.v.lateDone = make(chan struct{})
		l.v.settled()
	}
}

// left is leave for a caller that has nothing else to do under the lock.
func (l *link) left() {
	l.v.mu.Lock()
	l.leave()
	l.v.unlockAndRun()
}

// late returns a lost link of which something is in the store, nil if there is none.
// What hangs in a disk that was replaced harms nobody. Only a link that had its turn can
// have entered. REQUIRES v.mu.
func (v *Volume) late() *link {
	for i, l := range v.applying {
		if l != nil && l.storing > 0 && v.links[i] != l && l.disk == v.disk.Load() {
			return l
		}
	}
	return nil
}

// settled tells the machine, if it has asked, that nothing late is in the store.
// REQUIRES v.mu.
func (v *Volume) settled() {
	if v.settling && v.late() == nil {
		v.settling = false
		v.m.StoreSettled(v.now())
	}
}

// awaitSettled waits until nothing late is in the store, at most writeTimeout.
func (v *Volume) awaitSettled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.tuned.Load().WriteTimeout)
	defer cancel()
	for {
		v.mu.Lock()
		l, done := v.late(), v.lateDone
		v.mu.Unlock()
		if l == nil {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return refuse(protocol.CodeDiskFailed, "the disk of %s on %s has not finished a write from %s: is it stuck? Try again", v.opt.Name, v.opt.Self, l.name)
		}
	}
}
