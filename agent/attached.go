package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// A file system on an attached device has data of its own: what it read, and what it is
// about to write. Served with anything but the data that it was attached to, or that it
// has itself made of them, it would mix two histories. So each attached device has a
// token, and the agent keeps beside it whether it can vouch for that:
//
//	          helper's first connection
//	(nothing) ─────────────────────────► serving ◄──────────┐
//	                                      │  │              │ promoted, and the data are
//	             the role is given up, or │  │ agent starts │ those of before
//	             taken away               │  ▼              │
//	                                      │ resuming ───────┘
//	                                      ▼  │ a peer was primary meanwhile, or the
//	                                   revoked ◄┘ data are of another generation
//
// Invariants: it is durable before what it allows or forbids can happen; revoked lasts;
// only a helper whose token is in state serving is let in, and only while the volume is
// primary.

// setService makes what is known durable, then valid. REQUIRES s.serviceMu.
func (a *Agent) setService(s *slot, sv attach.Service) error {
	if err := attach.WriteJSON(attach.ServicePath(a.cfg.Node.State, s.cfg.Name), sv); err != nil {
		return err
	}
	s.service = sv
	return nil
}

// revoke ends a device's right to be served, if there is one.
func (a *Agent) revoke(s *slot, why string) error {
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	if s.service.Token == "" || s.service.State == attach.Revoked {
		return nil
	}
	if r, err := attach.Load(a.cfg.Node.State, s.cfg.Name); errors.Is(err, attach.ErrNotAttached) || err == nil && r.Token != s.service.Token {
		s.service = attach.Service{} // it was detached
		return nil
	}
	a.log.Warn("the attached device is not served any more: unmount and detach it", "volume", s.cfg.Name, "reason", why)
	sv := attach.Service{Token: s.service.Token, State: attach.Revoked, Reason: why}
	s.service = sv // also if the disk is full
	a.spawn(func(context.Context) { a.cut(s, sv.Token) })
	return a.setService(s, sv)
}

// cut ends a device of the kernel's client: it does not come and ask.
func (a *Agent) cut(s *slot, token string) {
	r, err := attach.Load(a.cfg.Node.State, s.cfg.Name)
	if err != nil || r.Token != token {
		return
	}
	if err := r.Cut(); err != nil {
		a.log.Error("the attached device cannot be cut off: its requests wait until attach_timeout is over", "volume", s.cfg.Name, "err", err)
	}
}

// attachDoor serves attached devices, each by its token; nobody else.
type attachDoor struct {
	a      *Agent
	server *nbd.Server
	ended  chan struct{}
}

// openAttachDoor listens for helpers. A node on which it cannot has no attached devices,
// and works otherwise.
func (a *Agent) openAttachDoor(pool *blockdev.Pool) {
	l, err := nbd.Listen("unix:" + a.cfg.AttachSocket())
	if err != nil {
		a.log.Warn("volumes cannot be attached", "err", err)
		return
	}
	d := &attachDoor{a: a, ended: make(chan struct{})}
	d.server = nbd.NewServer(nbd.Options{Exports: d, Log: a.log, Pool: pool, LeaveUnanswered: true})
	a.attachDoor = d
	go func() {
		defer close(d.ended)
		if err := d.server.Serve(l); err != nil {
			a.log.Error("serving attached volumes ended", "err", err)
		}
	}()
}

func (d *attachDoor) close(ctx context.Context) error {
	if d == nil {
		return nil
	}
	err := d.server.Shutdown(ctx)
	<-d.ended
	return err
}

// List implements nbd.Exports.
func (d *attachDoor) List(nbd.Caller) []string { return nil }

// Open implements nbd.Exports. ErrUnknownExport turns a helper away for good; a policy
// error lets it try again.
func (d *attachDoor) Open(name string, _ nbd.Caller) (*nbd.Export, error) {
	volumeName, token, ok := strings.Cut(name, "#")
	s := d.a.slot(volumeName)
	if s == nil || !ok || token == "" {
		return nil, nbd.ErrUnknownExport
	}
	e, err := openExport(s)
	if err != nil {
		if s.inService(attach.Revoked) {
			return nil, nbd.ErrUnknownExport
		}
		return nil, err
	}
	if err := d.a.admitHelper(s, token); err != nil {
		return nil, err
	}
	return e, nil
}

func (s *slot) served() attach.Service {
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	return s.service
}

func (s *slot) inService(state string) bool { return s.served().State == state }

// admitHelper lets the helper with that token in, or says why not.
func (a *Agent) admitHelper(s *slot, token string) error {
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	if s.service.Token != token {
		// A new device has its helper before it has a name.
		r, err := attach.Load(a.cfg.Node.State, s.cfg.Name)
		if err != nil || r.Token != token || r.Device != "" {
			return nbd.ErrUnknownExport
		}
		if err := a.setService(s, attach.Service{Token: token, State: attach.Serving}); err != nil {
			return err
		}
	}
	switch s.service.State {
	case attach.Serving:
		a.lockMemory()
		return nil
	case attach.Resuming:
		return &nbd.PolicyError{Text: fmt.Sprintf("volume %s is being made primary again", s.cfg.Name)}
	}
	return nbd.ErrUnknownExport
}

// lockMemory keeps this process in memory as soon as a file system of this host depends
// on it.
func (a *Agent) lockMemory() {
	a.locked.Do(func() {
		if err := attach.LockMemory(); err != nil {
			a.log.Warn("under memory pressure an attached file system may be in trouble", "err", err)
		}
	})
}

// recallServices finds, when the agent starts, the devices that the last one served, and
// goes on where it stopped. REQUIRES: no peer is connected yet.
func (a *Agent) recallServices() {
	for _, s := range a.slots() {
		if err := a.recall(s); err != nil {
			a.log.Error("the attached device is not served any more", "volume", s.cfg.Name, "err", err)
		}
	}
}

func (a *Agent) recall(s *slot) error {
	r, err := attach.Load(a.cfg.Node.State, s.cfg.Name)
	if errors.Is(err, attach.ErrNotAttached) {
		return nil
	}
	if err != nil {
		return err
	}
	var sv attach.Service
	if err := attach.ReadJSON(attach.ServicePath(a.cfg.Node.State, s.cfg.Name), &sv); err != nil {
		return err
	}
	if sv.Token != r.Token {
		return nil // it was never served
	}
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	s.service = sv
	if sv.State == attach.Serving {
		sv.State, sv.Generation = attach.Resuming, ""
		if vol, err := s.opened(); err == nil { // else no generation will ever be the right one
			sv.Generation = vol.Status().Generation
		}
		if err := a.setService(s, sv); err != nil {
			return err
		}
	}
	if sv.State != attach.Resuming {
		return nil
	}
	if !r.Live() {
		return fmt.Errorf("%s is gone: its helper was killed, or the host has restarted", r.Device)
	}
	a.log.Info("the volume is attached: it is to be primary again", "volume", s.cfg.Name, "device", r.Device, "generation", sv.Generation)
	a.spawn(func(ctx context.Context) { a.resume(ctx, s) })
	return nil
}

// interruptService keeps an attached device waiting while its volume is closed and
// opened.
func (a *Agent) interruptService(s *slot, vol running) error {
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	if s.service.State != attach.Serving {
		return nil
	}
	return a.setService(s, attach.Service{Token: s.service.Token, State: attach.Resuming, Generation: vol.Status().Generation})
}

// resumeService serves it again, now or as soon as the volume is primary.
func (a *Agent) resumeService(s *slot, vol running) {
	if vol.Status().Role == protocol.Primary.String() {
		a.promoted(s, vol, false)
	}
	if s.inService(attach.Resuming) {
		a.spawn(func(ctx context.Context) { a.resume(ctx, s) })
	}
}

const (
	// Attempts to become primary again begin resumeFirst apart: a file system waits.
	resumeFirst = 10 * time.Millisecond
	resumeLast  = 50 * time.Millisecond
	// resumeTold is how often the log says why it is not primary yet.
	resumeTold = 10 * time.Second
)

// resume makes a volume primary again whose device was attached when the last agent
// ended. It is an ordinary promotion, to which every peer has to agree: with a peer that
// cannot be asked it goes on trying, until the device has given up waiting, and an
// operator may vouch for the peer meanwhile.
func (a *Agent) resume(ctx context.Context, s *slot) {
	began := time.Now()
	told := began
	for pause := resumeFirst; ; pause = min(2*pause, resumeLast) {
		done, why := a.tryResume(ctx, s)
		if done {
			a.log.Info("the attached volume", "volume", s.cfg.Name, "outcome", why, "took", time.Since(began))
			return
		}
		if time.Since(told) >= resumeTold {
			told = time.Now()
			a.log.Warn("the attached volume is not primary again yet", "volume", s.cfg.Name, "reason", why, "since", time.Since(began))
		}
		if time.Since(began) > s.live().AttachTimeout {
			a.log.Error("the attached volume is not made primary again: its device has given up waiting", "volume", s.cfg.Name, "reason", why)
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// tryResume tries once. done: there is nothing more to try.
func (a *Agent) tryResume(ctx context.Context, s *slot) (done bool, why string) {
	if !s.inService(attach.Resuming) {
		return true, "is not to be resumed any more"
	}
	vol, err := s.opened()
	if err != nil {
		return false, err.Error()
	}
	// What would be refused is not asked for: an operator's command would find the
	// volume busy.
	st := vol.Status()
	if st.Disk != protocol.UpToDate.String() && st.Disk != protocol.Consistent.String() {
		return false, "its disk is " + st.Disk
	}
	for _, p := range st.Peers {
		if p.Connection != protocol.Connected.String() {
			return false, fmt.Sprintf("%s is not connected (%s) and may be primary. If you are certain that it is dead or cut off from its clients, run: qrbd promote %s --peer-fenced",
				p.Name, p.Connection, s.cfg.Name)
		}
	}
	if want := s.served().Generation; st.Generation != want {
		err := a.revoke(s, fmt.Sprintf("a peer was primary meanwhile: the data are of generation %s, the device's of %s", st.Generation, want))
		if err != nil {
			return false, err.Error()
		}
		return true, "is not to be resumed any more"
	}
	err = a.Promote(ctx, s.cfg.Name, control.PromoteRequest{})
	if err != nil {
		return false, err.Error()
	}
	return true, "is primary again"
}

// promoted decides, after a promotion, whether an attached device that waits for it may
// go on.
//
// The data are those of before when no peer was primary since the agent started (that
// would have been seen: event) and the generation is the one that the last agent had.
// After a crash a peer may have given its copy of what was under way: the generation is
// the same, and the requests are sent again by the helper.
func (a *Agent) promoted(s *slot, vol running, force bool) {
	st := vol.Status()
	s.serviceMu.Lock()
	sv := s.service
	if sv.State != attach.Resuming {
		s.serviceMu.Unlock()
		return
	}
	var err error
	same := !force && st.Generation == sv.Generation
	if same {
		err = a.setService(s, attach.Service{Token: sv.Token, State: attach.Serving})
	}
	s.serviceMu.Unlock()
	if !same {
		err = a.revoke(s, fmt.Sprintf("the data are of generation %s, the device's of %s (by force: %t)", st.Generation, sv.Generation, force))
	}
	if err != nil {
		a.log.Error("what became of the attached device is not recorded", "volume", s.cfg.Name, "err", err)
	}
}

// attachedEvent draws the consequences of a state change for an attached device.
func (a *Agent) attachedEvent(s *slot, e volume.Event) {
	why := ""
	switch {
	case e.Peer == "" && e.Field == "role" && e.New != protocol.Primary.String() && s.inService(attach.Serving) && !a.isStopping():
		why = "the volume is not primary here any more: " + e.Reason
	case e.Peer != "" && e.Field == "peer-role" && e.New == protocol.Primary.String() && s.inService(attach.Resuming):
		why = e.Peer + " is primary"
	default:
		return
	}
	if err := a.revoke(s, why); err != nil {
		a.log.Error("what became of the attached device is not recorded", "volume", s.cfg.Name, "err", err)
	}
}

// mayLeave refuses to give the role up under an attached device. With force the device
// is cut off, durably, before anything else happens.
func (a *Agent) mayLeave(s *slot, force bool) error {
	r, err := attach.Load(a.cfg.Node.State, s.cfg.Name)
	if err != nil || !r.Live() {
		return nil // nothing there that could be in use; its connections are seen by clear
	}
	if r.Device == "" {
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf("volume %s is being attached: try again in a moment", s.cfg.Name)}
	}
	use, err := attach.InUse(r.Device)
	if err != nil {
		return &volume.Error{Code: protocol.CodeInternal, Text: err.Error()}
	}
	name := s.cfg.Name
	switch {
	case force:
		return a.revoke(s, fmt.Sprintf("the role was given up by force while %s was %v", r.Device, use))
	case use.Any():
		return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf(
			"volume %s is attached as %s and %v: unmount or stop that, then run qrbd detach %s (--force cuts it off, and loses what is not written yet)", name, r.Device, use, name)}
	}
	return &volume.Error{Code: protocol.CodeBusy, Text: fmt.Sprintf("volume %s is attached as %s: run qrbd detach %s first", name, r.Device, name)}
}
