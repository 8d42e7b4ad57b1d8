package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// failoverFile is what a volume's failover remembers across lives of the agent.
type failoverFile struct {
	Pause   failover.Pause `json:"pause"`
	Vote    uint64         `json:"vote,omitempty"`    // the record in etcd that is trusted; 0: none yet
	Started string         `json:"started,omitempty"` // the boot on which what is on top was started by commands; "": it was not
}

// service is a volume's failover on this node.
type service struct {
	a   *Agent
	s   *slot
	sup *failover.Supervisor

	fileMu sync.Mutex   // held while the file is written
	file   failoverFile // guarded by fileMu

	sending sync.Mutex // held while peers are told, so that they hear the newest last

	vote atomic.Uint64 // the record in etcd that was seen, as in protocol.Failover

	mu     sync.Mutex
	heard  map[string]protocol.Failover // guarded by mu; by connected peer
	relink context.CancelFunc           // guarded by mu; ends the link to etcd; nil: there is none
}

// newService reads what the last life of the agent knew. A file that is damaged counts
// as a pause: it may have said so.
func (a *Agent) newService(s *slot) *service {
	f := &service{a: a, s: s, heard: map[string]protocol.Failover{}}
	path := a.cfg.FailoverPath(s.cfg.Name)
	if err := attach.ReadJSON(path, &f.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Error("what failover remembers is not readable: it is paused; look at the volume, then run qrbd failover resume", "volume", s.cfg.Name, "file", path, "err", err)
		f.file = failoverFile{Pause: failover.Pause{Paused: true, By: a.cfg.Node.Name}}
	}
	f.sup = failover.New(failover.Options{Node: f, Settings: func() *failover.Settings { return s.live().Failover }, Stack: f.stack,
		Pause: f.file.Pause, Log: a.log.With("volume", s.cfg.Name)})
	return f
}

// View implements failover.Node.
func (f *service) View() failover.View {
	v := failover.View{Self: f.a.cfg.Node.Name}
	vol, err := f.s.opened()
	if err != nil || f.a.isStopping() {
		return v
	}
	st := vol.Status()
	v.Open = true
	v.Primary = st.Role == protocol.Primary.String()
	v.Serving = v.Primary && !st.Suspended && st.Frozen == "" && (st.Quorum == nil || st.Quorum.Serving)
	if st.Primary != v.Self {
		v.Leader = st.Primary
	}
	v.Resuming = f.s.inService(attach.Resuming)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range st.Peers {
		if p.Role == protocol.Primary.String() {
			v.Leader = p.Name
		}
		if p.Witness {
			continue
		}
		v.Peers = append(v.Peers, failover.Candidate{
			Name:      p.Name,
			Connected: p.Connection == protocol.Connected.String(),
			InSync:    p.Replication == protocol.Established.String() && p.Disk == protocol.UpToDate.String() && p.OutOfSync == 0,
			Standing:  f.heard[p.Name].Standing,
		})
	}
	if !v.Primary && !st.MayPromote {
		v.MayPromote = vol.Explain().Promote
	}
	return v
}

// promoteMax bounds a promotion: voters wait for the end of a lease.
const promoteMax = 30 * time.Second

// Promote implements failover.Node.
func (f *service) Promote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, promoteMax)
	defer cancel()
	return f.a.Promote(ctx, f.s.cfg.Name, control.PromoteRequest{})
}

// switchoverMax bounds a hand-over, which drains and flushes.
const switchoverMax = time.Minute

// Switchover implements failover.Node.
func (f *service) Switchover(ctx context.Context, to string) error {
	ctx, cancel := context.WithTimeout(ctx, switchoverMax)
	defer cancel()
	return f.a.leaveRole(ctx, f.s.cfg.Name, false, func(vol running) error { return vol.Switchover(ctx, to) })
}

// AskMove implements failover.Node.
func (f *service) AskMove(from string) error {
	s := f.a.links.session(from)
	if s == nil || !takesFailover(s) {
		return fmt.Errorf("there is no session with %s", from)
	}
	m := f.message()
	m.Move = true
	return s.Send(m)
}

// SavePause implements failover.Node.
func (f *service) SavePause(p failover.Pause) error {
	return f.save(func(file *failoverFile) { file.Pause = p })
}

func (f *service) save(change func(*failoverFile)) error {
	f.fileMu.Lock()
	defer f.fileMu.Unlock()
	next := f.file
	change(&next)
	if next == f.file {
		return nil
	}
	if err := attach.WriteJSON(f.a.cfg.FailoverPath(f.s.cfg.Name), next); err != nil {
		return err
	}
	f.file = next
	return nil
}

// Changed implements failover.Node: it tells people and the other nodes.
func (f *service) Changed(was, is failover.Status) {
	add := func(field, old, now, why string) {
		e := volume.Event{Time: time.Now(), Volume: f.s.cfg.Name, Field: field, Old: old, New: now, Reason: why}
		f.a.events.Add(e)
		if f.a.opt.OnEvent != nil {
			f.a.opt.OnEvent(e)
		}
	}
	if was.Standing != is.Standing {
		add("failover", was.Standing.String(), is.Standing.String(), is.Why)
	}
	if was.Pause.Paused != is.Pause.Paused {
		add("failover-pause", pauseWord(was.Pause), pauseWord(is.Pause), "said on "+is.Pause.By)
	}
	if was.Standing != is.Standing || was.Pause != is.Pause || was.Why != is.Why {
		f.tellPeers("")
	}
}

func pauseWord(p failover.Pause) string {
	if p.Paused {
		return "paused"
	}
	return "running"
}

// message is what peers are told now.
func (f *service) message() *protocol.Failover {
	st := f.sup.Status()
	return &protocol.Failover{Volume: f.s.cfg.Name, Standing: st.Standing, Paused: st.Pause.Paused, Change: st.Pause.Change, By: st.Pause.By, Reason: st.Why, Vote: f.vote.Load()}
}

// tellPeers tells one peer, or all for "", how it stands here.
func (f *service) tellPeers(only string) {
	f.a.spawn(func(context.Context) {
		f.sending.Lock()
		defer f.sending.Unlock()
		for _, p := range f.s.live().Peers {
			s := f.a.links.session(p.Name)
			if s == nil || only != "" && p.Name != only || !takesFailover(s) {
				continue
			}
			if err := s.Send(f.message()); err != nil {
				f.a.log.Debug("telling how failover stands", "volume", f.s.cfg.Name, "peer", p.Name, "err", err)
			}
		}
	})
}

func takesFailover(s peerSession) bool {
	f, ok := s.(featured)
	return ok && f.Features()&protocol.FeatureFailover != 0
}

// failoverHeard takes what a peer says.
func (a *Agent) failoverHeard(peer string, m protocol.Failover) {
	s := a.slot(m.Volume)
	if s == nil || !s.hasPeer(peer) {
		return // it is configured there only
	}
	f := s.failover
	f.mu.Lock()
	f.heard[peer] = m
	f.mu.Unlock()
	f.voteHeard(m)
	f.sup.Poke(false)
	a.spawn(func(ctx context.Context) {
		if err := f.sup.Hear(failover.Pause{Paused: m.Paused, Change: m.Change, By: m.By}); err != nil {
			a.log.Error("a peer's word on failover", "volume", m.Volume, "peer", peer, "err", err)
		}
		if !m.Move {
			return
		}
		a.log.Info("a peer asks for the role", "volume", m.Volume, "peer", peer)
		if err := f.sup.Move(ctx, peer); err != nil {
			a.log.Warn("the role is not handed over to the peer that asked for it", "volume", m.Volume, "peer", peer, "err", err)
		}
	})
}

// failoverSession tells a peer whose session is new how everything stands; one that is
// lost is not known any more.
func (a *Agent) failoverSession(peer string, up bool) {
	for _, s := range a.slots() {
		if !s.hasPeer(peer) {
			continue
		}
		if up {
			s.failover.tellPeers(peer)
			continue
		}
		s.failover.mu.Lock()
		delete(s.failover.heard, peer)
		s.failover.mu.Unlock()
		s.failover.sup.Poke(false)
	}
}

// stack is what belongs on top of the volume on this host.
func (f *service) stack(settings *failover.Settings) failover.Stack {
	cfg, name := f.a.cfg, f.s.cfg.Name
	program, err := os.Executable()
	if err != nil {
		program = "/usr/bin/qrbd" // where the package has it
	}
	return failover.NewStack(&failover.Host{
		Volume: name, Node: cfg.Node.Name, Config: cfg.File, Export: f.s.cfg.Export.String(), Link: cfg.Node.Devices + "/" + name,
		Log: cfg.FailoverLog(name), Qrbd: program, Device: f.device,
		Started: func() bool {
			f.fileMu.Lock()
			defer f.fileMu.Unlock()
			return f.file.Started != "" && f.file.Started == attach.BootID()
		},
		SaveStarted: func(on bool) error {
			return f.save(func(file *failoverFile) {
				file.Started = ""
				if on {
					file.Started = attach.BootID()
				}
			})
		},
	}, settings)
}

// device is what an attached device of the volume is good for.
func (f *service) device() failover.Device {
	r, err := attach.Load(f.a.cfg.Node.State, f.s.cfg.Name)
	switch {
	case errors.Is(err, attach.ErrNotAttached), err == nil && r.Boot != attach.BootID():
		return failover.DeviceNone
	case err != nil, !r.Live(), r.Device == "":
		return failover.DeviceDead
	}
	if sv := f.s.served(); sv.Token == r.Token && sv.State == attach.Revoked {
		return failover.DeviceDead
	}
	return failover.DeviceLive
}

// failoverStatus is the volume's, nil where none is configured.
func (f *service) status() *volume.FailoverStatus {
	settings := f.s.live().Failover
	if settings == nil {
		return nil
	}
	st := f.sup.Status()
	out := &volume.FailoverStatus{Enabled: settings.Enabled, Arbiter: settings.Arbiter.String(), Standing: st.Standing.String(), Doing: st.Doing.String(), Reason: st.Why,
		Trouble: st.Trouble, Top: st.Top.String(), GivenUpUntil: st.Barred, Paused: st.Pause.Paused, PausedBy: st.Pause.By, PausedSince: st.Pause.Since, Preferred: settings.Preferred}
	if !st.Pause.Paused {
		out.PausedBy, out.PausedSince = "", time.Time{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.s.live().Peers {
		if m, ok := f.heard[p.Name]; ok && !p.Witness {
			out.Peers = append(out.Peers, volume.FailoverPeer{Name: p.Name, Standing: m.Standing.String(), Reason: m.Reason})
		}
	}
	return out
}

// supervised returns a volume's service where failover is configured.
func (a *Agent) supervised(name string) (*service, error) {
	s, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if f := s.live().Failover; f == nil || !f.Enabled {
		return nil, &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("volume %s has no failover on this node: write a [volume.failover] section (docs/FAILOVER.md)", name)}
	}
	return s.failover, nil
}

// FailoverPause implements control.Node.
func (a *Agent) FailoverPause(_ context.Context, name string, r control.FailoverPauseRequest) error {
	f, err := a.supervised(name)
	if err != nil {
		return err
	}
	_, err = f.sup.SetPause(r.Paused, a.cfg.Node.Name)
	return err
}

// testMax bounds a rehearsal beside the time-outs of what it starts and stops.
const testMax = 4 * time.Minute

// FailoverTest implements control.Node.
func (a *Agent) FailoverTest(ctx context.Context, name string, r control.FailoverTestRequest, told func(string)) (failover.Rehearsal, error) {
	f, err := a.supervised(name)
	if err != nil {
		return failover.Rehearsal{}, err
	}
	settings := f.s.live().Failover
	to := r.To
	if to == "" {
		to = f.sup.Successor()
	}
	if to == "" {
		return failover.Rehearsal{}, &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("no other node would take volume %s now, or this one is not primary: look at qrbd failover status %s", name, name)}
	}
	ctx, cancel := context.WithTimeout(ctx, testMax+2*(settings.StartTimeout+settings.StopTimeout))
	defer cancel()
	report, err := f.sup.Test(ctx, to, told)
	return report, refusedMove(name, err)
}

// refusedMove gives an error of a move the form of an operation's.
func refusedMove(name string, err error) error {
	var ve *volume.Error
	switch {
	case err == nil, errors.As(err, &ve), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	}
	return &volume.Error{Code: protocol.CodeNotAllowed, Text: fmt.Sprintf("volume %s is not moved: %v", name, err)}
}

// byFailover reports whether failover decides over the volume's role now.
func (a *Agent) byFailover(name string) (*service, bool) {
	f, err := a.supervised(name)
	return f, err == nil && f.sup.Active()
}
