package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/tcpnet"
)

const (
	// bareCommand is the first argument of a process that is one end of a bare session.
	bareCommand = "bare-end"
	// barePiece is what a resync of an idle pair sends at once.
	barePiece = 256 << 10
	// bareWindow is how far a sender that reads a store reads ahead of what it sends, and
	// a receiver that writes one takes in before it is written, in pieces.
	bareWindow = 12
	// anewMax is how often an end begins anew with another session: when both have dialed, one replaces the other.
	anewMax = 3
)

// bareEnd is one end of a bare session: what the transport does by itself.
type bareEnd struct {
	name    string
	log     *slog.Logger
	streams chan bareStream // the live session's, at most one

	mu   sync.Mutex
	live *session.Session // guarded by mu
}

// bareStream is a session's stream.
type bareStream struct {
	*session.Stream
	session *session.Session
}

func newBareEnd(name string) *bareEnd {
	return &bareEnd{name: name, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), streams: make(chan bareStream, 1)}
}

// listen begins to keep a session with the other end.
func (b *bareEnd) listen(id *session.Identity, address string, other session.Peer) (*session.Node, error) {
	return session.Start(session.Options{Identity: id, Name: b.name, Listen: address, Handler: b,
		Transports: map[session.Transport]session.Opener{session.QUIC: quicnet.Open, session.TCP: tcpnet.Open},
		Log:        b.log, Instance: uint64(len(b.name)), Heartbeat: 500 * time.Millisecond, PeerTimeout: 3 * time.Second, Peers: []session.Peer{other}})
}

// SessionUp implements session.Handler. Who has dialed opens the stream, for either direction.
func (b *bareEnd) SessionUp(s *session.Session) {
	b.mu.Lock()
	b.live = s
	b.mu.Unlock()
	if !s.Dialer() {
		return
	}
	go func() {
		st, err := s.Open(context.Background(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: volumeName, Attempt: 1})
		if err != nil {
			b.log.Error("no stream", "cause", err)
			s.Close(protocol.CodeTimeout, "no stream") // the next session's may come about
			return
		}
		b.StreamOpened(s, protocol.StreamOpen{}, st)
	}()
}

func (b *bareEnd) SessionDown(*session.Session, error) {}

// StreamOpened implements session.Handler. When both ends have dialed, one session replaces the other: the stream of the
// one that is left counts.
func (b *bareEnd) StreamOpened(s *session.Session, _ protocol.StreamOpen, st *session.Stream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s != b.live {
		st.Abort()
		return
	}
	select {
	case old := <-b.streams: // nobody has taken it
		old.Abort()
	default:
	}
	b.streams <- bareStream{st, s} // mu is held: there is room
}

func (b *bareEnd) ConnectFailed(string, error)                {}
func (b *bareEnd) Message(*session.Session, protocol.Message) {}

// runBareEnd is the main function of an end: alpha sends, beta receives and prints the
// rate. What happens to the session goes to stderr.
func runBareEnd(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 10 {
		return fmt.Errorf("%s: %d arguments: it is started by the bench itself", bareCommand, len(args))
	}
	dir, name, address, peer, peerAddress, store := args[0], args[1], args[2], args[3], args[4], args[7]
	key, err := hex.DecodeString(args[5])
	if err != nil {
		return fmt.Errorf("%s: key of %s: %w", bareCommand, peer, err)
	}
	size, err := strconv.ParseInt(args[6], 10, 64)
	if err != nil {
		return fmt.Errorf("%s: size: %w", bareCommand, err)
	}
	transport, err := session.ParseTransport(args[8])
	if err != nil {
		return fmt.Errorf("%s: %w", bareCommand, err)
	}
	limit, err := time.ParseDuration(args[9])
	if err != nil {
		return fmt.Errorf("%s: limit: %w", bareCommand, err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	id, err := session.LoadOrCreateIdentity(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", bareCommand, err)
	}
	b := newBareEnd(name)
	n, err := b.listen(id, address, session.Peer{Name: peer, Address: peerAddress, Keys: []ed25519.PublicKey{key}, Transport: transport})
	if err != nil {
		return fmt.Errorf("%s: %w", bareCommand, err)
	}
	figure, err := b.work(ctx, size, store)
	n.Close(context.WithoutCancel(ctx))
	if err == nil {
		_, err = fmt.Fprintln(stdout, figure) // the last line of this end's output
	}
	return err
}

// work does what the end is for with one stream after another, until one was good for all of it, and returns beta's figure. Alpha
// ends only by an error.
func (b *bareEnd) work(ctx context.Context, size int64, store string) (figure float64, err error) {
	do := func(st *session.Stream) (err error) {
		switch {
		case store == echoItem && b.name == bareNames[0]:
			err = answer(st)
		case store == echoItem:
			figure, err = ask(st, int(size))
		case b.name == bareNames[0]:
			err = send(st, size, store)
		default:
			figure, err = receive(st, size, store)
		}
		return err
	}
	for anew := 0; ; {
		err := b.once(ctx, do)
		switch {
		case err == nil && b.name != bareNames[0]:
			return figure, nil
		case err == nil: // beta has not read all of it yet, and may begin anew
		case ctx.Err() != nil || anew == anewMax:
			return 0, fmt.Errorf("%s: %w", bareCommand, err)
		default:
			anew++
			b.log.Warn("begins anew", "cause", err)
		}
	}
}

// once waits for a stream and does something with it. What fails ends the session, so that both ends begin anew with the next.
// At the limit, when ctx ends, all goroutines show their stacks.
func (b *bareEnd) once(ctx context.Context, do func(*session.Stream) error) error {
	var st bareStream
	select {
	case st = <-b.streams:
	case <-ctx.Done():
		showStacks()
		return fmt.Errorf("waited for a session and its stream: %w", ctx.Err())
	}
	defer context.AfterFunc(ctx, func() {
		showStacks()
		st.Abort()
	})()
	err := do(st.Stream)
	if err == nil {
		return nil // the peer may still be reading
	}
	st.session.Close(protocol.CodeNone, err.Error())
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

func showStacks() { _ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2) }

// send sends size bytes, of the store if there is one.
func send(out *session.Stream, size int64, store string) error {
	var src *os.File
	if store != "" {
		var err error
		if src, err = os.Open(store); err != nil {
			return err
		}
		defer src.Close()
	}
	return besides(size, func(p []byte, off int64) error {
		if src == nil {
			return nil
		}
		_, err := src.ReadAt(p, off)
		return err
	}, func(p []byte, off int64) error {
		if _, err := out.Write(p); err != nil {
			return fmt.Errorf("sending at %d of %d: %w", off, size, err)
		}
		return nil
	})
}

// receive takes size bytes, writes them to the store if there is one, and returns bytes
// per second, from the first byte until the last is there.
func receive(in *session.Stream, size int64, store string) (float64, error) {
	var dst *os.File
	if store != "" {
		var err error
		if dst, err = os.OpenFile(store, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return 0, err
		}
		defer dst.Close()
	}
	begin := time.Now()
	err := besides(size, func(p []byte, off int64) error {
		if n, err := io.ReadFull(in, p); err != nil {
			return fmt.Errorf("receiving at %d of %d: %w", off+int64(n), size, err)
		}
		return nil
	}, func(p []byte, off int64) error {
		if dst == nil {
			return nil
		}
		_, err := dst.WriteAt(p, off)
		return err
	})
	return float64(size) / time.Since(begin).Seconds(), err
}

// besides moves size bytes in pieces of a frame's payload from get to put, which run
// beside each other.
func besides(size int64, get, put func(p []byte, off int64) error) error {
	type piece struct {
		p   []byte
		off int64
		err error
	}
	free, full := make(chan []byte, bareWindow), make(chan piece, bareWindow)
	for range bareWindow {
		free <- make([]byte, barePiece)
	}
	go func() { // ends with the process, at the latest
		defer close(full)
		for off := int64(0); off < size; off += barePiece {
			p := (<-free)[:min(barePiece, size-off)]
			err := get(p, off)
			full <- piece{p, off, err}
			if err != nil {
				return
			}
		}
	}()
	for c := range full {
		if c.err != nil {
			return c.err
		}
		if err := put(c.p, c.off); err != nil {
			return err
		}
		free <- c.p[:cap(c.p)]
	}
	return nil
}
