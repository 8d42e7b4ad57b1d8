package agent

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/attach"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// running is an open volume; *volume.Volume is one.
type running interface {
	volume.Control
	blockdev.Submitter
	// Linked reports whether there is a connection to the peer, settled or not.
	Linked(peer string) bool
}

// slot is a configured volume.
type slot struct {
	// cfg is what the agent was started with, or what the volume was added with. Only
	// what no reload changes is read there: name, backing and export. For the rest see
	// live.
	cfg    config.Volume
	verify *verifier
	meter  *volume.Meter // outlives vol

	effective atomic.Pointer[config.Volume]
	retimed   chan struct{} // the schedule of verifies has changed; capacity 1

	// operation serialises what changes the role or the files. A second
	// operation is refused, not queued: its operator decided on an older state.
	operation sync.Mutex

	failover *service

	base base // of the archives: the store in use

	serviceMu sync.Mutex     // held while the file is written; taken alone
	service   attach.Service // Guarded by serviceMu: of the attached device

	mu sync.Mutex
	// Guarded by mu.
	vol    running // nil: not open
	reason string  // why it is not open
	code   protocol.Code
	leave  int // > 0: the role is being given up, no client may enter
}

func newSlot(v config.Volume, verify *verifier) *slot {
	s := &slot{cfg: v, verify: verify, meter: volume.NewMeter(), retimed: make(chan struct{}, 1)}
	s.effective.Store(&v)
	return s
}

// live returns the configuration that holds now. It is not changed, but replaced.
func (s *slot) live() *config.Volume { return s.effective.Load() }

// errNotCreated: the volume has neither metadata nor, maybe, a backing store.
var errNotCreated = errors.New("not created")

// opened returns the volume, or why there is none.
func (s *slot) opened() (running, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vol == nil {
		return nil, &volume.Error{Code: s.code, Text: fmt.Sprintf("volume %s is not running here: %s", s.cfg.Name, s.reason)}
	}
	return s.vol, nil
}

// set makes vol the slot's volume, or err the reason that there is none.
func (s *slot) set(vol running, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vol, s.reason, s.code = vol, "", protocol.CodeNone
	switch {
	case errors.Is(err, errNotCreated):
		s.reason, s.code = fmt.Sprintf("not created: run qrbd create %s", s.cfg.Name), protocol.CodeNotCreated
	case err != nil:
		s.reason, s.code = err.Error(), protocol.CodeDiskFailed
	}
}

// hasPeer says whether the volume is configured with that peer.
func (s *slot) hasPeer(name string) bool {
	for _, p := range s.live().Peers {
		if p.Name == name {
			return true
		}
	}
	return false
}

// status is the volume's own, or that of a diskless one.
func (s *slot) status() volume.Status {
	s.mu.Lock()
	vol, reason := s.vol, s.reason
	s.mu.Unlock()
	if vol != nil {
		st := vol.Status()
		st.Export = s.cfg.Export.String()
		if s.cfg.Witness { // it has no store that would tell
			st.Size = s.live().Size
		}
		s.verify.status(&st)
		if s.failover != nil {
			st.Failover = s.failover.status()
		}
		return st
	}
	st := volume.Status{
		Name:       s.cfg.Name,
		Size:       s.live().Size,
		Role:       protocol.Secondary.String(),
		Disk:       protocol.Diskless.String(),
		Export:     s.cfg.Export.String(),
		Generation: protocol.Generation(0).String(),
		Reason:     reason,
		Peers:      []volume.PeerStatus{},
	}
	for _, p := range s.live().Peers {
		st.Peers = append(st.Peers, volume.PeerStatus{
			Name:        p.Name,
			Connection:  protocol.Standalone.String(),
			Replication: protocol.ReplOff.String(),
			Role:        protocol.RoleUnknown.String(),
			Disk:        protocol.DiskUnknown.String(),
			Protocol:    p.Mode.String(),
		})
	}
	return st
}

// statusIO is status with what was counted.
func (s *slot) statusIO() volume.Status {
	st := s.status()
	if s.meter != nil {
		io := s.meter.Snapshot()
		st.IO = &io
	}
	return st
}

// closeDoor keeps new clients out until openDoor. Calls nest.
func (s *slot) closeDoor() {
	s.mu.Lock()
	s.leave++
	s.mu.Unlock()
}

func (s *slot) openDoor() {
	s.mu.Lock()
	s.leave--
	s.mu.Unlock()
}
