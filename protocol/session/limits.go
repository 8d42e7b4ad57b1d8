package session

import "time"

const (
	// ALPN names the way that sessions are opened: TLS, then NodeHello. It
	// changes only when even that changes.
	ALPN = "qrbd/1"

	// handshakesMax bounds the accepted connections that are not sessions yet. Source: guests.go.
	handshakesMax = 32

	// StreamsMax bounds the streams that a peer may have open in a session:
	// control, and two for each of 127 volumes.
	StreamsMax = 255
	// openingMax bounds the streams of a session whose first frame is awaited.
	openingMax = 16
	// ControlBodyMax bounds a frame on the control stream and a StreamOpen.
	ControlBodyMax = 4 << 10

	// rttShare: a ping's round trip changes the average by one part in so many.
	rttShare = 8

	defaultHeartbeat   = 500 * time.Millisecond
	defaultPeerTimeout = 3 * time.Second
	defaultDialTimeout = 3 * time.Second
	defaultBackoffMin  = 100 * time.Millisecond
	defaultBackoffMax  = 2 * time.Second
)
