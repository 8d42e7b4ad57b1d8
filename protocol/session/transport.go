package session

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Transport is how the bytes of a session travel.
type Transport uint8

// Transports. Both ends of a session have the same one configured.
const (
	QUIC Transport = iota + 1 // one QUIC connection with streams, on UDP
	TCP                       // one TLS connection for each stream, on TCP
)

// String returns the word of the configuration.
func (t Transport) String() string {
	switch t {
	case QUIC:
		return "quic"
	case TCP:
		return "tcp"
	}
	return fmt.Sprintf("invalid(%d)", uint8(t))
}

// ParseTransport is the inverse of String.
func ParseTransport(s string) (Transport, error) {
	for _, t := range []Transport{QUIC, TCP} {
		if t.String() == s {
			return t, nil
		}
	}
	return 0, fmt.Errorf("%q is not a transport: write \"quic\" or \"tcp\"", s)
}

// Opener opens a transport's port. The endpoint's errors and its connections' are
// this package's where it has one for the case.
type Opener func(Port) (Endpoint, error)

// Port is what a transport is told by its node.
type Port struct {
	Listen      string // host:port; port 0: any
	Identity    *Identity
	Certificate tls.Certificate // without a key: present none
	// Allowed says whether a key is one of a configured peer.
	Allowed func(ed25519.PublicKey) bool
	// Congestion returns the congestion control for the peer with that key; "": the host's.
	// nil: everybody's is.
	Congestion func(ed25519.PublicKey) string
	// Peers returns how many peers are configured.
	Peers func() int
	// PeerOn says whether a configured peer is on that host: its connections give way to no stranger's. nil: none is.
	PeerOn      func(netip.Addr) bool
	Heartbeat   time.Duration
	PeerTimeout time.Duration
	DialTimeout time.Duration
	// Calm reports whether this process waits for nothing but its peers of this transport: then a reader may wait awake for
	// them. It is asked often and takes no lock. nil: never.
	Calm func() bool
	// Failed takes the error of an accepted connection that ended before Accept could
	// return it. It does not block.
	Failed func(addr net.Addr, err error)
}

// Endpoint is an open port. Safe for concurrent use.
type Endpoint interface {
	// CheckCongestion says why there is no congestion control of that name, and what to
	// do.
	CheckCongestion(name string) error
	// Dial opens a connection to a node that has one of keys. It blocks until
	// ctx ends.
	Dial(ctx context.Context, address string, keys []ed25519.PublicKey) (Conn, error)
	// Accept returns the next connection, whose handshake may be under way. It
	// blocks until ctx or the endpoint ends.
	Accept(ctx context.Context) (Conn, error)
	// Addr returns the local address.
	Addr() net.Addr
	// Close ends what is left of the endpoint and returns when its goroutines have
	// ended.
	Close() error
}

// Conn is a connection with one peer. Safe for concurrent use. It ends by Close,
// by the peer's, or because it is lost; its errors are then the cause: a
// *CloseError (the peer's Close), ErrClosed, or another of this package's.
type Conn interface {
	// Handshake waits until both sides have proved their keys, or ctx ends.
	Handshake(ctx context.Context) error
	// TLS is valid after Handshake, or after Dial.
	TLS() tls.ConnectionState
	// Control opens (the dialing side) or accepts the control stream, once. It
	// blocks until ctx ends.
	Control(ctx context.Context) (Carrier, error)
	// Open opens a stream. REQUIRES the dialing side. The peer learns of it with the first bytes. It waits for
	// the peer's limit until ctx ends.
	Open(ctx context.Context, kind protocol.StreamKind) (Carrier, error)
	// Accept returns the next stream that the peer opened. It blocks until the
	// connection ends.
	Accept() (Carrier, error)
	// Close ends the connection and all its streams at once; the peer learns code and text.
	// Only the first call counts.
	Close(code protocol.Code, text string)
	// Done is closed when the connection has ended; then Cause says why.
	Done() <-chan struct{}
	Cause() error
	RemoteAddr() net.Addr
	// Heard counts what has come from the peer's process: it differs from an earlier
	// value if anything has.
	Heard() uint64
	Stats() Stats
}

// Carrier is one stream of a Conn: reliable and ordered. Read and Write may run
// concurrently with each other; Abort unblocks both. Errors: io.EOF after the
// peer's Close, ErrAborted after one side's Abort, os.ErrDeadlineExceeded, or the
// connection's.
type Carrier interface {
	io.Reader
	// Write writes all of p or returns an error. It waits for the peer to take
	// bytes. p is the caller's again on return.
	io.Writer
	// TryWrite takes all of p, or nothing when that would mean waiting. p is the
	// caller's again on return.
	TryWrite(p []byte) (ok bool, err error)
	// SetReadDeadline unblocks Read; SetWriteDeadline Write, after which the stream is
	// useless. The zero time: none.
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	// SetKind tells what the stream is for, which decides how urgent this side's
	// bytes are. REQUIRES no concurrent Read or Write.
	SetKind(kind protocol.StreamKind)
	// SetShare gives a bulk stream an equal share of the link beside the write
	// streams (true), or what they leave (false). It does not block.
	SetShare(on bool)
	// Close ends the sending direction after what was written is delivered.
	// REQUIRES no concurrent Write.
	Close() error
	// Abort ends both directions at once, on both sides; data under way may be lost.
	Abort(code protocol.Code)
}

// Stats are figures of a connection, as far as the transport has them.
type Stats struct {
	RTT              time.Duration // smoothed; zero when unknown
	BytesSent        uint64        // with what the transport adds and repeats
	BytesReceived    uint64
	PacketsSent      uint64
	PacketsLost      uint64 // a Session's never falls
	CongestionWindow uint64 // bytes
	// GSO: the kernel splits large buffers into packets. Off, sending costs a
	// system call per packet.
	GSO bool
}
