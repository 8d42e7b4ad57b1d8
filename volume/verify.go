package volume

import (
	"context"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

const (
	verifyPoll = 200 * time.Millisecond // how often a verify's progress is told
	repairPoll = 50 * time.Millisecond
)

// Verify implements Control.
func (v *Volume) Verify(ctx context.Context, o VerifyOptions, progress func(done, total int64)) (VerifyReport, error) {
	id, err := v.peerID(o.Peer)
	if err != nil {
		return VerifyReport{}, err
	}
	if o.From != "" && o.From != o.Peer && o.From != v.opt.Self {
		return VerifyReport{}, refuse(protocol.CodeNotAllowed, "%s is compared with %s: the data is taken from one of these two, not from %s", v.opt.Self, o.Peer, o.From)
	}
	if o.Repair {
		if err := v.mayRepair(&o); err != nil {
			return VerifyReport{}, err
		}
	}
	reply := make(chan error, 1)
	v.mu.Lock()
	started := v.m.Verify(v.now(), id, replica.VerifyOptions{Off: o.Off, Len: o.Len, Rate: o.Rate}, func(err error) { reply <- err })
	v.unlockAndRun()
	err = v.followVerify(ctx, id, reply, progress)
	if !started {
		return VerifyReport{}, publicError(err)
	}
	v.mu.Lock()
	res := v.m.LastVerify(id)
	v.mu.Unlock()
	r := VerifyReport{Peer: o.Peer, Off: res.Off, Len: res.Len, Next: res.Next, Checked: res.Compared, Bad: res.Differed}
	for _, b := range res.Bad {
		r.Ranges = append(r.Ranges, VerifyRange{Off: b.Off, Len: b.Len})
	}
	if err != nil || !o.Repair {
		return r, publicError(err)
	}
	r.Repaired, err = v.repair(ctx, id, o)
	return r, err
}

// followVerify tells how far a verify is until it has ended; when ctx ends, it ends
// the verify.
func (v *Volume) followVerify(ctx context.Context, id replica.PeerID, reply chan error, progress func(done, total int64)) error {
	t := time.NewTicker(verifyPoll)
	defer t.Stop()
	stop := ctx.Done()
	for {
		select {
		case err := <-reply:
			return err
		case <-stop:
			stop = nil
			v.mu.Lock()
			v.m.StopVerify(v.now(), id, context.Cause(ctx).Error())
			v.unlockAndRun()
		case <-t.C:
			v.mu.Lock()
			p := v.m.Plan(id)
			done, total := int64(0), int64(0)
			if p != nil {
				s := p.Stats()
				done, total = s.Done, s.Total
			}
			v.mu.Unlock()
			if p != nil && progress != nil {
				progress(done, total)
			}
		}
	}
}

// mayRepair refuses a repair before hours are spent on the comparison. Without a
// word on the side that is right it is the primary's, which is the only one to have
// been read by anybody.
func (v *Volume) mayRepair(o *VerifyOptions) error {
	v.mu.Lock()
	view := v.m.View()
	v.mu.Unlock()
	switch {
	case view.Role == protocol.Primary && o.From == o.Peer:
		return refuse(protocol.CodeNotAllowed, "%s is primary on %s, and its data is not overwritten under its clients. If that of %s is right: qrbd switchover %s --to %s, then verify with --repair there",
			v.opt.Name, v.opt.Self, o.Peer, v.opt.Name, o.Peer)
	case view.Role == protocol.Primary:
		o.From = v.opt.Self
	case o.From == "":
		return refuse(protocol.CodeNotAllowed, "%s is primary nowhere: say with --from which replica is right, %s or %s", v.opt.Name, v.opt.Self, o.Peer)
	}
	return nil
}

// repair has the marked blocks copied and waits for the end of it.
func (v *Volume) repair(ctx context.Context, id replica.PeerID, o VerifyOptions) (int64, error) {
	v.mu.Lock()
	before := v.m.View().Peers[id].DirtyBytes
	err := v.m.Repair(v.now(), id, o.From == o.Peer)
	v.unlockAndRun()
	if err != nil || before == 0 {
		return 0, publicError(err)
	}
	t := time.NewTicker(repairPoll)
	defer t.Stop()
	for {
		v.mu.Lock()
		p := v.m.View().Peers[id]
		v.mu.Unlock()
		switch {
		case p.Repl == protocol.Established && p.DirtyBytes == 0:
			return before, nil
		case p.Conn == protocol.Standalone:
			return 0, refuse(protocol.CodeNotAllowed, "the repair of %s did not come about: %s", o.Peer, p.Reason)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0, refuse(protocol.CodeTimeout, "%d bytes on %s are not repaired yet (%v): the copying goes on; look at qrbd status %s", p.DirtyBytes, o.Peer, context.Cause(ctx), v.opt.Name)
		}
	}
}
