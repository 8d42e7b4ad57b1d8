package session

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Handler is told what happens. Its methods must return soon and must not call
// Node.Close or Node.RemovePeer; they may call any method of the session.
type Handler interface {
	// SessionUp and SessionDown alternate for a peer, from one goroutine. The
	// cause is a *CloseError or wraps one of this package's errors.
	SessionUp(s *Session)
	SessionDown(s *Session, cause error)
	// StreamOpened hands over a stream that the peer opened, between SessionUp
	// and SessionDown; the handler owns it. Streams of a session may be handed
	// over concurrently.
	StreamOpened(s *Session, open protocol.StreamOpen, st *Stream)
	// ConnectFailed tells why there is no session: err is a *ConnectError. It was
	// logged. The same reason is told again once a minute. peer is "" when the
	// other side did not prove a configured key. Concurrent calls are possible.
	ConnectFailed(peer string, err error)
	// Message delivers a message of the control stream, in order, between
	// SessionUp and SessionDown. m is valid during the call.
	Message(s *Session, m protocol.Message)
}

// Options configure a Node.
type Options struct {
	Identity *Identity // required
	Name     string    // this node's; required
	Listen   string    // host:port of every transport; port 0: any. Required
	Peers    []Peer
	// Transports opens the ports. QUIC's is always opened, and so is the only one; another
	// when a peer has it.
	Transports map[Transport]Opener
	Handler    Handler      // required
	Log        *slog.Logger // required
	Instance   uint64       // random, new each time the agent starts

	// Heartbeat: time between pings. Zero: 500 ms.
	Heartbeat time.Duration
	// PeerTimeout: a peer that nothing was heard of for so long is given up, at
	// the next heartbeat. Zero: 3 s.
	PeerTimeout time.Duration
	// DialTimeout bounds an attempt to connect, the hello of an accepted
	// connection, and the opening of a stream. Zero: 3 s.
	DialTimeout time.Duration
	// BackoffMin, BackoffMax: time between attempts to connect, doubling. Zero:
	// 100 ms, 2 s.
	BackoffMin, BackoffMax time.Duration

	// Calm reports whether the process has nothing to wait for but its peers: see Port.Calm.
	// nil: never.
	Calm func() bool

	// Major, Minor, Features: what this node says it speaks. Major zero:
	// protocol's own, all three. Others are for tests.
	Major, Minor uint16
	Features     uint64

	// WithoutCertificate presents none, as a stranger would. For tests.
	WithoutCertificate bool
}

func (o *Options) hello() protocol.NodeHello {
	return protocol.NodeHello{Major: o.Major, Minor: o.Minor, Features: o.Features, Name: o.Name, Instance: o.Instance}
}

// complete fills in defaults and returns all faults together.
func (o *Options) complete() error {
	setDefault(&o.Heartbeat, defaultHeartbeat)
	setDefault(&o.PeerTimeout, defaultPeerTimeout)
	setDefault(&o.DialTimeout, defaultDialTimeout)
	setDefault(&o.BackoffMin, defaultBackoffMin)
	setDefault(&o.BackoffMax, defaultBackoffMax)
	if o.Major == 0 {
		o.Major, o.Minor, o.Features = protocol.Major, protocol.Minor, protocol.Features
	}
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(o.Identity != nil, "no identity")
	check(o.Name != "" && len(o.Name) <= protocol.NameMax, "node name %q: want 1 to %d bytes", o.Name, protocol.NameMax)
	check(o.Handler != nil, "no handler")
	check(o.Log != nil, "no logger")
	check(len(o.Transports) > 0, "no transport")
	for what, d := range map[string]time.Duration{"heartbeat": o.Heartbeat, "peer timeout": o.PeerTimeout,
		"dial timeout": o.DialTimeout, "back-off": o.BackoffMin} {
		check(d > 0, "%s %v: want more than zero", what, d)
	}
	check(o.BackoffMax >= o.BackoffMin, "back-off from %v to %v", o.BackoffMin, o.BackoffMax)
	check(o.PeerTimeout >= 2*o.Heartbeat, "peer timeout %v: want at least two heartbeats of %v", o.PeerTimeout, o.Heartbeat)
	return errors.Join(faults...)
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}
