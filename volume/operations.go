package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/replica"
)

// operate starts an operation of the machine and waits for its reply or ctx.
func (v *Volume) operate(ctx context.Context, start func(done func(error))) error {
	reply := make(chan error, 1)
	v.mu.Lock()
	start(func(err error) { reply <- err })
	v.unlockAndRun()
	select {
	case err := <-reply:
		return publicError(err)
	case <-ctx.Done():
		return refuse(protocol.CodeTimeout, "no answer in time (%v); look at qrbd status %s", ctx.Err(), v.opt.Name)
	}
}

// publicError turns the machine's refusals into this package's.
func publicError(err error) error {
	var r *replica.Refusal
	if errors.As(err, &r) {
		return &Error{Code: r.Code, Text: r.Text}
	}
	return err
}

// Promote implements Control.
func (v *Volume) Promote(ctx context.Context, o PromoteOptions) error {
	if err := v.awaitSettled(ctx); err != nil { // before the peers' leave is asked for: it does not last
		return err
	}
	return v.operate(ctx, func(done func(error)) {
		v.m.Promote(v.now(), replica.PromoteOptions{Force: o.Force, PeerFenced: o.PeerFenced}, done)
	})
}

// Demote implements Control.
func (v *Volume) Demote(ctx context.Context) error {
	return v.operate(ctx, func(done func(error)) { v.m.Demote(v.now(), done) })
}

// Switchover implements Control.
func (v *Volume) Switchover(ctx context.Context, peer string) error {
	id, err := v.peerID(peer)
	if err != nil {
		return err
	}
	return v.operate(ctx, func(done func(error)) { v.m.Switchover(v.now(), id, done) })
}

// Invalidate implements Control.
func (v *Volume) Invalidate(ctx context.Context) error {
	return v.operate(ctx, func(done func(error)) { v.m.Invalidate(v.now(), done) })
}

// each calls fn, under the lock, for the named peer or for all.
func (v *Volume) each(peer string, fn func(id replica.PeerID) error) error {
	if peer != "" {
		id, err := v.peerID(peer)
		if err != nil {
			return err
		}
		v.mu.Lock()
		err = fn(id)
		v.unlockAndRun()
		return publicError(err)
	}
	var errs []error
	for i := range v.peers() {
		v.mu.Lock()
		err := fn(replica.PeerID(i))
		v.unlockAndRun()
		errs = append(errs, publicError(err))
	}
	for _, err := range errs {
		if err != nil {
			return err // an *Error keeps its code
		}
	}
	return nil
}

// Connect implements Control.
func (v *Volume) Connect(_ context.Context, peer string, discard bool) error {
	return v.each(peer, func(id replica.PeerID) error { return v.m.Connect(v.now(), id, discard) })
}

// Disconnect implements Control.
func (v *Volume) Disconnect(_ context.Context, peer string) error {
	return v.each(peer, func(id replica.PeerID) error {
		v.m.Disconnect(v.now(), id)
		return nil
	})
}

// Status implements Control.
func (v *Volume) Status() Status {
	now := v.now()
	v.mu.Lock()
	view := v.m.View()
	mayPromote := view.Role != protocol.Primary && v.m.MayPromote(now, replica.PromoteOptions{}) == nil
	applied := make([]int64, len(v.links))
	received := make([]int64, len(v.links))
	queued := make([]int, len(v.links))
	rtt := make([]func() time.Duration, len(v.links))
	for i, l := range v.links {
		if l != nil {
			applied[i], received[i], rtt[i] = l.bulk.applied, l.bulk.sent, l.conn.RTT
			queued[i] = len(l.queue)
		}
	}
	missing := ""
	if view.Quorum.Kind != replica.QuorumOff {
		missing = v.m.Missing()
	}
	v.mu.Unlock()
	s := Status{Name: v.opt.Name, Size: v.size, Role: view.Role.String(), Disk: view.Disk.String(), Generation: view.Current.String(),
		InFlight: view.InFlight, Waiting: view.Waiting, LocalQueue: v.work.len(), MayPromote: mayPromote, Congested: view.Congested,
		Suspended: view.NoData && v.opt.NoData == NoDataSuspend, ActiveExt: view.Active, Reason: view.DiskReason, Primary: view.Primary}
	if view.Volume != (protocol.VolumeID{}) {
		s.ID = fmt.Sprintf("%x", view.Volume[:])
	}
	if view.Disk == protocol.UpToDate {
		s.Reason = ""
	}
	s.DiskLacks = view.LacksBytes
	if s.Witness = v.opt.Witness; view.Quorum.Kind != replica.QuorumOff {
		s.Quorum = &QuorumState{Rule: view.Quorum.String(), Quorate: view.Quorate, Serving: view.Serving, Missing: missing}
	}
	if s.Frozen = view.Frozen; view.Fencing != FencingOff {
		s.Fencing = view.Fencing.String()
	}
	switch {
	case view.Bare && view.Carriers == "":
		s.Reason += ". No copy of the data can be reached"
	case view.Bare:
		s.Reason += ". Reads and writes go through " + view.Carriers
	}
	if view.Disk == protocol.Failed && !strings.Contains(s.Reason, "replace-disk") {
		s.Reason += ". Replace it and run: qrbd replace-disk " + v.opt.Name
	}
	for i := range view.Peers {
		p := peerStatus(now, v.size, &view.Peers[i], applied[i], received[i], rtt[i])
		p.SendQueue = queued[i]
		v.meter.peer(p.Name).fill(&p)
		s.Peers = append(s.Peers, p)
	}
	return s
}

func peerStatus(now replica.Time, size int64, p *replica.PeerView, applied, received int64, rtt func() time.Duration) PeerStatus {
	s := PeerStatus{Name: p.Name, Witness: p.Witness, Connection: p.Conn.String(), Replication: p.Repl.String(), Role: p.Role.String(), Disk: p.Disk.String(),
		Protocol: p.Mode.String(), OutOfSync: p.DirtyBytes, SyncPercent: 100, Unacked: p.Unacked, UnackedOps: p.UnackedOps, LastSync: string(p.Rule),
		SyncSent: p.Stats.Sent, SyncCompared: p.Stats.Compared, BehindBytes: p.DirtyBytes + p.Unacked}
	s.Fenced, s.Bonded, s.Fencing = p.Fenced, p.Bonded, p.Fencing
	if p.Lacking != replica.LackingUnknown {
		behind := 0.0
		if p.Lacking != 0 {
			behind = max(0, time.Duration(now-p.Lacking).Seconds())
		}
		s.BehindSeconds = &behind
	}
	if p.Heard != nil {
		s.Size = int64(p.Heard.Size)
	}
	if p.Conn != protocol.Connected || p.Repl == protocol.ReplOff {
		s.Reason = p.Reason
	}
	if size > 0 && p.DirtyBytes > 0 {
		s.SyncPercent = 100 * float64(size-p.DirtyBytes) / float64(size)
	}
	switch p.Repl {
	case protocol.SyncSource, protocol.VerifySource:
		s.SyncTotal, s.SyncDone, s.SyncInFlight = p.Stats.Total, p.Stats.Done, p.Stats.InFlight
		s.VerifyBad = p.Stats.Differed
		if p.Repl == protocol.SyncSource {
			s.VerifyBad = 0
		}
	case protocol.SyncTarget:
		s.SyncTotal, s.SyncDone, s.SyncSent = p.TotalBytes, min(applied, p.TotalBytes), received
		s.OutOfSync = max(s.OutOfSync, s.SyncTotal-s.SyncDone)
	case protocol.Ahead:
		s.Reason = "its buffer was full: writes go on without it until it has taken what was sent, and then it catches up"
	case protocol.Behind:
		s.Reason = "it goes on without this replica until what was sent has arrived, and then this one catches up"
	case protocol.ReplOff, protocol.Established, protocol.VerifyTarget:
	}
	if s.SyncTotal > 0 {
		s.SyncPercent = 100 * float64(s.SyncDone) / float64(s.SyncTotal)
		if took := time.Duration(now - p.Started).Seconds(); took > 0 && p.Started != 0 {
			s.SyncRate = int64(float64(s.SyncDone) / took)
		}
		if s.SyncRate > 0 {
			s.SyncETA = float64(s.SyncTotal-s.SyncDone) / float64(s.SyncRate)
		}
	}
	if rtt != nil {
		s.RTTMicros = rtt().Microseconds()
	}
	return s
}
