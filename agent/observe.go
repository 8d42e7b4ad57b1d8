package agent

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/agent/metrics"
	"github.com/qrbd/qrbd/volume"
)

// startMetrics serves metrics and health if the configuration says where.
func (a *Agent) startMetrics() (*metrics.Server, error) {
	address := a.cfg.Node.Metrics
	if address == "" {
		return nil, nil
	}
	s, err := metrics.Listen(address, a, a.log)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w: another program listens there: end it, or give node.metrics in %s another port", err, a.cfg.File)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w: this host does not have the address of node.metrics in %s", err, a.cfg.File)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w: give node.metrics in %s a port above 1023", err, a.cfg.File)
	case err != nil:
		return nil, err
	}
	a.log.Info("metrics and health are served", "address", s.Addr().String())
	if !metrics.Loopback(s.Addr()) {
		a.log.Warn("metrics are served without authentication to whoever can reach the address: prefer a loopback address, or a firewall", "address", s.Addr().String())
	}
	return s, nil
}

// certificates are those that the node shows to peers and clients.
func (a *Agent) certificates() []control.CertificateStatus {
	var out []control.CertificateStatus
	if !a.certificateEnds.IsZero() {
		out = append(out, control.CertificateStatus{Use: "peers", Ends: a.certificateEnds})
	}
	for _, d := range a.doors() {
		if d.tls != nil {
			out = append(out, control.CertificateStatus{Use: d.export.String(), Ends: d.tls.Expires()})
		}
	}
	return out
}

// put makes vol the slot's volume, or err the reason that there is none, and tells it.
func (a *Agent) put(s *slot, vol running, err error) {
	s.set(vol, err)
	a.tellStates(s)
}

// tellStates adds the states of a volume that was opened, or could not be, to the
// events, so that they say all of what is known.
func (a *Agent) tellStates(s *slot) {
	a.events.AddStates(func() []volume.Event {
		st, now := s.status(), time.Now()
		state := func(peer, field, value, reason string) volume.Event {
			return volume.Event{Time: now, Volume: st.Name, Peer: peer, Field: field, New: value, Reason: reason}
		}
		out := []volume.Event{state("", "role", st.Role, ""), state("", "disk", st.Disk, st.Reason), state("", "generation", st.Generation, "")}
		for _, p := range st.Peers {
			out = append(out, state(p.Name, "connection", p.Connection, p.Reason), state(p.Name, "replication", p.Replication, ""),
				state(p.Name, "peer-role", p.Role, ""), state(p.Name, "peer-disk", p.Disk, ""))
		}
		return out
	})
}

// tellAgent adds what becomes of the agent itself to the events.
func (a *Agent) tellAgent(old, state string) {
	a.events.Add(volume.Event{Time: time.Now(), Field: "agent", Old: old, New: state, Reason: "qrbd " + a.opt.Version})
}
