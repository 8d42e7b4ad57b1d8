package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/volume"
)

// Reload implements control.Node: it reads the configuration anew and applies what can
// be applied while the node runs. When the file has a fault nothing is changed.
// Volumes that run go on; a reload that is under way is waited for.
func (a *Agent) Reload(context.Context) (control.ReloadReport, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if a.isStopping() {
		return control.ReloadReport{}, &volume.Error{Code: protocol.CodeShutdown, Text: "the agent is stopping"}
	}
	Notify(daemon.SdNotifyReloading+"\n"+strings.TrimSpace(daemon.SdNotifyMonotonicUsec()), a.Status())
	defer func() { Notify(daemon.SdNotifyReady, a.Status()) }()
	next, err := a.loadConfig()
	if err != nil {
		a.log.Error("the configuration has faults: nothing is changed", "file", a.cfg.File, "err", err)
		return control.ReloadReport{}, &volume.Error{Code: protocol.CodeNotAllowed, Text: err.Error()}
	}
	r := &reload{a: a, next: next, now: *a.config.Load(), report: control.ReloadReport{File: a.cfg.File}}
	r.now.Peers, r.now.Volumes = slices.Clone(r.now.Peers), slices.Clone(r.now.Volumes)
	r.apply(a.config.Load().Compare(next))
	a.config.Store(&r.now)
	limitMemory(&r.now)
	a.log.Info("configuration reloaded", "file", a.cfg.File, "applied", r.report.Applied, "restart", r.report.Restart, "failed", r.report.Failed)
	return r.report, nil
}

// loadConfig reads the file and checks it as a start of the agent would.
func (a *Agent) loadConfig() (*config.Config, error) {
	next, err := config.Load(a.cfg.File)
	if err != nil {
		return nil, err
	}
	if id, err := session.LoadIdentity(a.cfg.Node.State); err == nil {
		if err := next.CheckIdentity(id.PublicKey()); err != nil {
			return nil, err
		}
	}
	if err := next.CheckHooks(); err != nil {
		return nil, err
	}
	return next, nil
}

// reload is one under way. Owner: Reload.
type reload struct {
	a      *Agent
	next   *config.Config
	now    config.Config // what holds, as far as applied
	report control.ReloadReport
}

func (r *reload) applied(format string, args ...any) {
	r.report.Applied = append(r.report.Applied, fmt.Sprintf(format, args...))
}

func (r *reload) restart(format string, args ...any) {
	r.report.Restart = append(r.report.Restart, fmt.Sprintf(format, args...))
}

func (r *reload) failed(what string, err error) {
	r.report.Failed = append(r.report.Failed, what+": "+err.Error())
}

// apply does what d asks for, peers first: a volume may have a new one.
func (r *reload) apply(d config.Difference) {
	for _, key := range d.Restart {
		r.restart("%s", key)
	}
	for _, p := range d.PeersAdded {
		what := "peer " + p.Name + " added"
		if err := r.a.net.AddPeer(p); err != nil {
			r.failed(what, err)
			continue
		}
		r.now.Peers = append(r.now.Peers, p)
		r.applied("%s", what)
	}
	for _, p := range d.PeersChanged {
		what := "peer " + p.Name + ": address, keys, transport or compression"
		if err := r.a.net.UpdatePeer(p); err != nil {
			r.failed(what, err)
			continue
		}
		i := slices.IndexFunc(r.now.Peers, func(q config.Peer) bool { return q.Name == p.Name })
		r.now.Peers[i] = p
		r.applied("%s", what)
	}
	for _, name := range d.PeersRemoved {
		r.restart("peer %s is no longer in the file: it stays connected until then", name)
	}
	if d.Hooks {
		r.now.Hooks = r.next.Hooks // each volume's own are compared with the volumes
	}
	for i := range d.VolumesChanged {
		r.change(&d.VolumesChanged[i])
	}
	for _, v := range d.VolumesAdded {
		r.add(v)
	}
	for _, name := range d.VolumesRemoved {
		r.restart("volume %s is no longer in the file: it goes on until then", name)
	}
}

// change applies what may change of a volume that is there.
func (r *reload) change(d *config.VolumeDifference) {
	s := r.a.slot(d.Name)
	for _, key := range d.Restart {
		r.restart("volume %s: %s", d.Name, key)
	}
	for _, name := range d.PeersRemoved {
		r.restart("volume %s: peer %s is no longer in the file: it stays connected until then", d.Name, name)
	}
	if d.Size {
		r.report.Resize = append(r.report.Resize, fmt.Sprintf("volume %s has %d bytes: run qrbd resize %s, a restart would not open it", d.Name, s.live().Size, d.Name))
	}
	if len(d.Tuned) == 0 && len(d.PeersAdded) == 0 {
		return
	}
	end, err := s.begin() // a volume that is being created or closed is not touched
	if err != nil {
		r.failed("volume "+d.Name, err)
		return
	}
	defer end()
	vol, closed := s.opened()
	effective := d.Effective
	for _, p := range d.PeersAdded {
		what := fmt.Sprintf("volume %s: peer %s added", d.Name, p.Name)
		err := r.knows(p.Name)
		if err == nil && closed == nil {
			err = vol.AddPeer(volumePeer(p))
		}
		if err != nil {
			r.failed(what, err)
			effective.Peers = slices.DeleteFunc(slices.Clone(effective.Peers), func(q config.VolumePeer) bool { return q.Name == p.Name })
			continue
		}
		r.applied("%s", what)
	}
	s.effective.Store(&effective)
	*r.now.Volume(d.Name) = effective
	if len(d.Tuned) > 0 {
		if closed == nil {
			vol.Tune(r.a.tuning(s))
		}
		r.a.expelUnlisted(s)
		select {
		case s.retimed <- struct{}{}:
		default:
		}
		s.failover.sup.Poke(false)
		r.applied("volume %s: %s", d.Name, strings.Join(d.Tuned, ", "))
	}
	if len(d.PeersAdded) > 0 {
		r.a.tellStates(s)
	}
	r.a.links.volumeOpened(s)
}

// knows refuses a peer that could not be added to the node.
func (r *reload) knows(peer string) error {
	if !slices.ContainsFunc(r.now.Peers, func(p config.Peer) bool { return p.Name == peer }) {
		return errors.New("the node does not have this peer")
	}
	return nil
}

// add makes a new volume known, and runs it if its files are there.
func (r *reload) add(v config.Volume) {
	what := "volume " + v.Name + " added"
	for _, p := range v.Peers {
		if err := r.knows(p.Name); err != nil {
			r.failed(what, fmt.Errorf("peer %s: %w", p.Name, err))
			return
		}
	}
	s := r.a.newSlot(v)
	s.set(nil, errors.New("it is being opened"))
	if err := r.a.addDoor(s); err != nil {
		r.failed(what, err)
		return
	}
	slots := append(slices.Clone(r.a.slots()), s)
	r.a.slotList.Store(&slots)
	r.now.Volumes = append(r.now.Volumes, v)
	r.a.open(s)
	if _, err := s.opened(); err != nil {
		what += " (" + err.Error() + ")"
	} else {
		r.a.links.volumeOpened(s)
	}
	r.a.spawn(func(ctx context.Context) { r.a.runSchedule(ctx, s) })
	r.a.spawn(s.failover.sup.Run)
	r.a.spawn(s.failover.arbitrate)
	r.applied("%s", what)
}

// tuning is what may change of a volume while it runs, as configured now.
func (a *Agent) tuning(s *slot) volume.Tuning {
	o := a.volumeOptions(s, nil, nil, nil)
	o.ArchiveMode = archiveMode(s.live().Archive)
	return o.Tuning()
}
