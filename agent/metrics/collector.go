package metrics

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qrbd/qrbd/agent/control"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// The values that each state can have. "unknown" is what is not known of a peer.
var (
	roles       = words(protocol.RoleUnknown, protocol.Primary, protocol.Secondary)
	disks       = words(protocol.DiskUnknown, protocol.Diskless, protocol.Failed, protocol.Inconsistent, protocol.Outdated, protocol.Consistent, protocol.UpToDate)
	conns       = words(protocol.Standalone, protocol.Connecting, protocol.Connected)
	repls       = words(protocol.ReplOff, protocol.Established, protocol.SyncSource, protocol.SyncTarget, protocol.VerifySource, protocol.VerifyTarget, protocol.Ahead, protocol.Behind)
	standings   = words(protocol.StandingOff, protocol.StandingReady, protocol.StandingUnable, protocol.StandingStarting, protocol.StandingRunning, protocol.StandingStopping, protocol.StandingStopped)
	remoteKinds = []string{"write", "zero", "trim", "flush"}
)

func words[T interface{ String() string }](states ...T) []string {
	out := make([]string, len(states))
	for i, s := range states {
		out[i] = s.String()
	}
	return out
}

// collector turns a status into samples.
type collector struct{ src Source }

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	st := c.src.StatusIO()
	s := samples{out}
	s.gauge(buildInfo, 1, st.Version, runtime.Version())
	s.gauge(healthy, boolean(st.Health().Healthy))
	s.gauge(resources, float64(len(st.Volumes)))
	if !st.IdentitySince.IsZero() {
		s.gauge(identitySince, float64(st.IdentitySince.Unix()))
	}
	for _, c := range st.Certificates {
		s.gauge(certificateEnds, float64(c.Ends.Unix()), c.Use)
	}
	for i := range st.Volumes {
		s.volume(&st.Volumes[i])
	}
	for i := range st.Links {
		s.link(&st.Links[i])
	}
}

// samples sends metrics.
type samples struct{ out chan<- prometheus.Metric }

func (s samples) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s samples) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// state sends a gauge for each value; the last label is the value.
func (s samples) state(d *prometheus.Desc, values []string, now string, labels ...string) {
	for _, v := range values {
		s.gauge(d, boolean(v == now), append(labels[:len(labels):len(labels)], v)...)
	}
}

func (s samples) histogram(d *prometheus.Desc, h volume.Histogram, labels ...string) {
	buckets := make(map[float64]uint64, len(bounds))
	below := uint64(0)
	for i, bound := range bounds {
		if i < len(h.Buckets) {
			below += h.Buckets[i]
		}
		buckets[bound] = below
	}
	s.out <- prometheus.MustNewConstHistogram(d, h.Count, h.Seconds, buckets, labels...)
}

var bounds = volume.LatencyBounds()

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s samples) volume(v *volume.Status) {
	s.state(resourceRole, roles[1:], v.Role, v.Name)
	s.gauge(mayPromote, boolean(v.MayPromote), v.Name)
	s.gauge(suspended, boolean(v.Suspended), v.Name)
	s.gauge(frozen, boolean(v.Frozen != ""), v.Name)
	s.state(deviceState, disks[1:], v.Disk, v.Name)
	s.gauge(deviceSize, float64(v.Size), v.Name)
	s.gauge(deviceLacks, float64(v.DiskLacks), v.Name)
	s.gauge(lowerPending, float64(v.LocalQueue), v.Name)
	s.gauge(inFlight, float64(v.InFlight), v.Name)
	s.gauge(waiting, float64(v.Waiting), v.Name)
	s.gauge(congested, boolean(v.Congested), v.Name)
	s.gauge(activeExtents, float64(v.ActiveExt), v.Name)
	s.gauge(clients, float64(v.Clients), v.Name)
	f := v.Failover
	if f == nil {
		f = &volume.FailoverStatus{Standing: protocol.StandingOff.String()}
	}
	s.state(failover, standings, f.Standing, v.Name)
	s.gauge(failoverPaused, boolean(f.Paused), v.Name)
	s.gauge(failoverTrouble, boolean(f.Trouble && !f.Paused), v.Name)
	s.gauge(failoverGivenUp, boolean(!f.GivenUpUntil.IsZero()), v.Name)
	for i := range v.Peers {
		s.peer(v, &v.Peers[i])
	}
	if v.IO != nil {
		s.io(v.Name, v.IO)
	}
}

func (s samples) peer(v *volume.Status, p *volume.PeerStatus) {
	s.state(connState, conns, p.Connection, v.Name, p.Name)
	s.state(peerRole, roles, p.Role, v.Name, p.Name)
	s.state(peerState, disks, p.Disk, v.Name, p.Name)
	s.state(replication, repls, p.Replication, v.Name, p.Name)
	s.gauge(outOfSync, float64(p.OutOfSync), v.Name, p.Name)
	s.gauge(behindBytes, float64(p.BehindBytes), v.Name, p.Name)
	if p.BehindSeconds != nil {
		s.gauge(behindSeconds, *p.BehindSeconds, v.Name, p.Name)
	}
	s.gauge(apInFlight, float64(p.Unacked), v.Name, p.Name)
	s.gauge(apInFlightOps, float64(p.UnackedOps), v.Name, p.Name)
	s.gauge(rsInFlight, float64(p.SyncInFlight), v.Name, p.Name)
	s.gauge(sendQueue, float64(p.SendQueue), v.Name, p.Name)
	s.gauge(syncPercent, p.SyncPercent/100, v.Name, p.Name)
	s.gauge(syncRate, float64(p.SyncRate), v.Name, p.Name)
	if p.SyncTotal > 0 && p.SyncRate > 0 {
		s.gauge(syncLeft, p.SyncETA, v.Name, p.Name)
	}
	if w := p.Verify; w != nil {
		s.gauge(verifyBad, float64(w.Bad), v.Name, p.Name)
		if !w.Ended.IsZero() {
			s.gauge(verifyEnded, float64(w.Ended.Unix()), v.Name, p.Name)
		}
	}
}

func (s samples) io(name string, io *volume.IO) {
	pending := uint64(0)
	for kind, o := range io.Ops {
		s.histogram(requestSeconds, o.Whole, name, kind, "whole")
		s.histogram(requestSeconds, o.Local, name, kind, "local")
		s.counter(requestErrors, o.Failed, name, kind)
		s.counter(diskErrors, o.DiskErrors, name, kind)
		pending += o.Begun - min(o.Begun, o.Whole.Count)
	}
	s.gauge(upperPending, float64(pending), name)
	s.counter(readBytes, io.Ops["read"].Bytes, name)
	s.counter(writtenBytes, io.Ops["write"].Bytes, name)
	s.histogram(commits, io.Commits, name)
	for peer, p := range io.Peers {
		for _, kind := range remoteKinds {
			s.histogram(peerSeconds, p.Wire[kind], name, peer, kind, "wire")
			s.histogram(peerSeconds, p.Remote[kind], name, peer, kind, "remote")
			s.histogram(peerSeconds, p.Apply[kind], name, peer, kind, "apply")
		}
		s.counter(sentBytes, p.Sent, name, peer)
		s.counter(receivedBytes, p.Received, name, peer)
		s.counter(sentSaved, p.SentSaved, name, peer)
		s.counter(receivedSaved, p.ReceivedSaved, name, peer)
		s.counter(appliedBytes, p.Applied, name, peer)
	}
}

func (s samples) link(l *control.LinkStatus) {
	s.gauge(linkUp, boolean(l.Up), l.Peer)
	if !l.Up {
		return
	}
	s.gauge(linkInfo, 1, l.Peer, l.Transport, l.Protocol, l.Compression)
	s.gauge(linkRTT, (time.Duration(l.RTTMicros) * time.Microsecond).Seconds(), l.Peer)
	s.counter(linkSentBytes, l.BytesSent, l.Peer)
	s.counter(linkReceivedBytes, l.BytesReceived, l.Peer)
	s.counter(linkSentPackets, l.PacketsSent, l.Peer)
	s.counter(linkLostPackets, l.PacketsLost, l.Peer)
	s.gauge(linkWindow, float64(l.CongestionWindow), l.Peer)
}
