package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// verifier runs a volume's verifies, one at a time, and remembers the last one with
// each peer: also over a restart, so that a schedule keeps its time and an
// interrupted verify goes on where it was.
type verifier struct {
	name string
	size atomic.Int64 // of the volume, bytes
	path string       // of the records; "": they are not kept

	mu sync.Mutex
	// Guarded by mu.
	stop    context.CancelCauseFunc // of the one that runs, nil: none
	records map[string]*verifyRecord
	saved   time.Time
}

// verifyRecord is what is known of the last verify with a peer, and its form in the
// file of records.
type verifyRecord struct {
	Peer string `json:"peer"`
	volume.VerifyStatus
	Ranges []volume.VerifyRange `json:"ranges,omitempty"` // as in a report
	// Full is when the whole volume was last compared from end to end.
	Full time.Time `json:"full,omitzero"`
}

// whole says that the record is of a verify of the whole volume.
func (r *verifyRecord) whole(size int64) bool { return r.Off == 0 && r.Off+r.Len == size }

// complete says that it was not stopped early.
func (r *verifyRecord) complete() bool { return r.Next >= r.Off+r.Len }

// recordEvery is how often the position of a verify that runs is saved.
const recordEvery = 15 * time.Second

// Why verifies end early.
var (
	errVerifyStopped = errors.New("an operator stopped it")
	errVerifyLeft    = errors.New("the command that started it has ended")
	errVerifyWindow  = errors.New("the time of verify_window is over")
)

// begin takes the place of the one verify that may run.
func (v *verifier) begin(stop context.CancelCauseFunc) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stop != nil {
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf("a verify of volume %s is running: qrbd status %s shows how far it is, qrbd verify %s --stop ends it", v.name, v.name, v.name)}
	}
	v.stop = stop
	return nil
}

func (v *verifier) end() {
	v.mu.Lock()
	v.stop = nil
	v.mu.Unlock()
}

// halt ends the verify that runs, if one does.
func (v *verifier) halt(cause error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stop == nil {
		return false
	}
	v.stop(cause)
	return true
}

// record returns a copy of a peer's record, nil: there is none.
func (v *verifier) record(peer string) *verifyRecord {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.records[peer]
	if r == nil {
		return nil
	}
	c := *r
	return &c
}

// status adds to a volume's status what is known of its verifies.
func (v *verifier) status(st *volume.Status) {
	for i := range st.Peers {
		if r := v.record(st.Peers[i].Name); r != nil {
			st.Peers[i].Verify = &r.VerifyStatus
		}
	}
}

// verifyRun is one verify with one peer.
type verifyRun struct {
	volume.VerifyOptions
	resume    bool
	scheduled bool
}

// run compares with a peer and records it. A resumed one is reported together with
// what was compared before.
func (v *verifier) run(ctx context.Context, vol running, o verifyRun, progress func(done, total int64)) (volume.VerifyReport, error) {
	last := v.record(o.Peer)
	rec := &verifyRecord{Peer: o.Peer}
	switch {
	case o.resume && (last == nil || last.complete()):
		return volume.VerifyReport{}, &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("no verify of %s with %s was interrupted: leave --resume out to start one", v.name, o.Peer)}
	case o.resume:
		*rec = *last
		o.Off, o.Len = last.Next, last.Off+last.Len-last.Next
	case last != nil:
		rec.Full = last.Full
	}
	if !o.resume {
		rec.Started, rec.Off = time.Now(), o.Off
	}
	rec.Scheduled, rec.Repaired = o.scheduled, 0
	before := rec.Next - rec.Off // compared by the one that is resumed
	if !o.resume {
		before = 0
	}
	r, err := vol.Verify(ctx, o.VerifyOptions, func(done, total int64) {
		if progress != nil {
			progress(before+done, before+total)
		}
		at := *rec
		at.Len, at.Next, at.Stopped = before+total, rec.Off+before+done, "the agent ended"
		v.keep(&at, recordEvery)
	})
	if r.Peer == "" {
		return r, err // refused
	}
	if o.resume {
		r.Off, r.Len = rec.Off, rec.Len
		r.Checked += rec.Checked
		r.Bad += rec.Bad
		r.Ranges = append(append([]volume.VerifyRange(nil), rec.Ranges...), r.Ranges...)
		r.Ranges = r.Ranges[:min(len(r.Ranges), volume.VerifyRangesMax)]
	}
	rec.Ended, rec.Off, rec.Len, rec.Next, rec.Checked, rec.Bad, rec.Ranges = time.Now(), r.Off, r.Len, r.Next, r.Checked, r.Bad, r.Ranges
	rec.Repaired, rec.Stopped = r.Repaired, ""
	switch {
	case rec.complete() && rec.whole(v.size.Load()):
		rec.Full = rec.Ended
	case !rec.complete() && err != nil:
		rec.Stopped = err.Error()
	}
	v.keep(rec, 0)
	if err != nil && !rec.complete() {
		code, text := errorText(err)
		err = &volume.Error{Code: code, Text: fmt.Sprintf("%s (%d of %d bytes were compared; go on with: qrbd verify %s %s --resume)", text, rec.Next-rec.Off, rec.Len, v.name, o.Peer)}
	}
	return r, err
}

// Verify implements control.Node.
func (a *Agent) Verify(ctx context.Context, name string, r control.VerifyRequest, progress func(done, total int64)) ([]volume.VerifyReport, error) {
	if err := a.checkPeer(name, r.Peer, true); err != nil {
		return nil, err
	}
	s, vol, err := a.findOpen(name)
	if err != nil {
		return nil, err
	}
	if r.Stop {
		if !s.verify.halt(errVerifyStopped) {
			return nil, &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("no verify of volume %s is running on %s", name, a.cfg.Node.Name)}
		}
		return nil, nil
	}
	var peers []string
	for _, p := range s.live().Peers {
		if r.Peer == "" && !p.Witness || p.Name == r.Peer {
			peers = append(peers, p.Name)
		}
	}
	if len(peers) == 0 {
		return nil, &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("volume %s has no peers to compare with", name)}
	}
	caller := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(caller, func() { cancel(errVerifyLeft) })()
	defer context.AfterFunc(a.ctx, func() { cancel(errors.New("the agent is stopping")) })()
	if err := s.verify.begin(cancel); err != nil {
		return nil, err
	}
	defer s.verify.end()
	var reports []volume.VerifyReport
	for i, peer := range peers {
		run := verifyRun{VerifyOptions: volume.VerifyOptions{Peer: peer, Off: r.Off, Len: r.Len, Rate: r.Rate, Repair: r.Repair, From: r.From}, resume: r.Resume}
		if last := s.verify.record(peer); r.Resume && r.Peer == "" && (last == nil || last.complete()) {
			continue
		}
		rep, err := s.verify.run(ctx, vol, run, func(done, total int64) {
			progress(int64(i)*total+done, int64(len(peers))*total)
		})
		if rep.Peer != "" {
			reports = append(reports, rep)
		}
		if err != nil {
			return reports, err
		}
	}
	return reports, nil
}

// verifySchedule says when a volume is verified by itself.
type verifySchedule struct {
	every  time.Duration // 0: never
	window config.Window
	size   int64
}

// due says whether a verify with a peer is to run now, and whether it goes on with
// an interrupted one.
func (c verifySchedule) due(now time.Time, last *verifyRecord) (run, resume bool) {
	switch {
	case c.every == 0 || !c.window.Contains(now):
		return false, false
	case last == nil:
		return true, false
	case !last.complete() && last.Scheduled && last.whole(c.size):
		return true, true
	}
	return now.Sub(last.Full) >= c.every, false
}

// tick is how often the schedule is looked at.
func (c verifySchedule) tick() time.Duration {
	return min(max(c.every/8, 100*time.Millisecond), 30*time.Second)
}

// next is when the schedule is to be looked at; never if there is none.
func (c verifySchedule) next() <-chan time.Time {
	if c.every == 0 {
		return nil
	}
	return time.After(c.tick())
}

// runSchedule verifies a volume by its schedule while it is primary here, every peer
// that is in sync, one after the other. One that cannot run now is tried again.
func (a *Agent) runSchedule(ctx context.Context, s *slot) {
	told := ""
	for {
		v := s.live()
		c := verifySchedule{every: v.VerifyEvery, window: v.VerifyWindow, size: v.Size}
		select {
		case <-c.next():
		case <-s.retimed:
			continue
		case <-ctx.Done():
			return
		}
		for _, p := range s.live().Peers {
			if p.Witness {
				continue
			}
			err := a.verifyIfDue(ctx, s, c, p.Name)
			switch {
			case err == nil:
				continue
			case err.Error() != told:
				told = err.Error() // once: it may be so for days
				a.log.Info("scheduled verify did not end", "volume", s.cfg.Name, "peer", p.Name, "err", err)
			}
		}
	}
}

// verifyIfDue runs one scheduled verify if it is its time and nothing is in its way.
func (a *Agent) verifyIfDue(ctx context.Context, s *slot, c verifySchedule, peer string) error {
	run, resume := c.due(time.Now(), s.verify.record(peer))
	if !run {
		return nil
	}
	vol, err := s.opened()
	if err != nil {
		return nil // said elsewhere
	}
	st := vol.Status()
	if st.Role != protocol.Primary.String() {
		return nil
	}
	for _, p := range st.Peers {
		if p.Name == peer && (p.Replication != protocol.Established.String() || p.OutOfSync != 0) {
			return nil // under sync, or away: later
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if s.verify.begin(cancel) != nil {
		return nil // an operator's
	}
	defer s.verify.end()
	if left := c.window.Left(time.Now()); left > 0 {
		defer time.AfterFunc(left, func() { cancel(errVerifyWindow) }).Stop()
	}
	a.log.Info("scheduled verify begins", "volume", s.cfg.Name, "peer", peer, "resumed", resume)
	r, err := s.verify.run(ctx, vol, verifyRun{VerifyOptions: volume.VerifyOptions{Peer: peer}, resume: resume, scheduled: true}, nil)
	if err != nil {
		return err
	}
	a.log.Info("scheduled verify done", "volume", s.cfg.Name, "peer", peer, "bytes", r.Checked, "differ", r.Bad)
	return nil
}
