package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/tcpnet"
)

const (
	// bareCommand is the first argument of a process that is one end of a bare session.
	bareCommand = "bare-end"
	bareTimeout = 2 * time.Minute
	// barePiece is what a resync of an idle pair sends at once.
	barePiece = 256 << 10
	// bareWindow is how far a sender that reads a store reads ahead of what it sends, and
	// a receiver that writes one takes in before it is written, in pieces.
	bareWindow = 12
)

// bareEnd is one end of a bare session: what the transport does by itself.
type bareEnd struct {
	stream chan *session.Stream
}

// SessionUp implements session.Handler. Who has dialed opens the stream, for either direction.
func (b *bareEnd) SessionUp(s *session.Session) {
	if !s.Dialer() {
		return
	}
	go func() {
		st, err := s.Open(context.Background(), protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: volumeName, Attempt: 1})
		if err != nil {
			return // the other end says that no stream came
		}
		b.StreamOpened(s, protocol.StreamOpen{}, st)
	}()
}
func (b *bareEnd) SessionDown(*session.Session, error) {}
func (b *bareEnd) StreamOpened(_ *session.Session, _ protocol.StreamOpen, st *session.Stream) {
	select {
	case b.stream <- st:
	default:
		st.Abort()
	}
}
func (b *bareEnd) ConnectFailed(string, error)                {}
func (b *bareEnd) Message(*session.Session, protocol.Message) {}

// measureBare sends sizeBytes over one bulk stream between two processes, each with as
// many threads as an agent gives itself, in pieces of barePiece, and returns bytes per
// second as the receiver counts them. With stores, the sender reads the first and the
// receiver writes the second: what no resync can avoid. Without, it is the transport
// alone.
func measureBare(ctx context.Context, dir, transport string, sizeBytes int64, stores [2]string) (float64, error) {
	out, err := runBare(ctx, dir, transport, sizeBytes, stores)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// runBare runs both ends and returns what the receiver prints. Instead of stores there may be echoItem twice: then sizeBytes
// is how many questions beta asks alpha.
func runBare(ctx context.Context, dir, transport string, sizeBytes int64, stores [2]string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bareTimeout)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("bare transport: %w", err)
	}
	names := [2]string{"alpha", "beta"}
	var keys [2]string
	var addresses [2]string
	for i, name := range names {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return "", fmt.Errorf("bare transport: %w", err)
		}
		id, err := session.LoadOrCreateIdentity(at)
		if err != nil {
			return "", fmt.Errorf("bare transport: %w", err)
		}
		port, err := freePort("tcp+udp")
		if err != nil {
			return "", fmt.Errorf("bare transport: %w", err)
		}
		keys[i], addresses[i] = hex.EncodeToString(id.Public()), net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	var ends [2]*exec.Cmd
	var out [2]strings.Builder
	for i, name := range names {
		c := exec.CommandContext(ctx, self, bareCommand, filepath.Join(dir, name), name, addresses[i],
			names[1-i], addresses[1-i], keys[1-i], strconv.FormatInt(sizeBytes, 10), stores[i], transport)
		c.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.NumCPU()/2))) // agent.LimitThreads
		c.Stdout, c.Stderr = &out[i], &out[i]
		if err := c.Start(); err != nil {
			return "", fmt.Errorf("bare transport: %w", err)
		}
		ends[i] = c
	}
	if err := ends[1].Wait(); err != nil {
		_ = ends[0].Process.Kill()
		_ = ends[0].Wait()
		return "", fmt.Errorf("bare transport: %w: %s; the sender: %s", err, lastLine([]byte(out[1].String())), lastLine([]byte(out[0].String())))
	}
	_ = ends[0].Process.Kill() // it waits to be ended
	_ = ends[0].Wait()
	return out[1].String(), nil
}

// runBareEnd is the main function of an end: alpha sends, beta receives and prints the
// rate.
func runBareEnd(ctx context.Context, args []string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, bareTimeout)
	defer cancel()
	if len(args) != 9 {
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
	id, err := session.LoadOrCreateIdentity(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", bareCommand, err)
	}
	b := &bareEnd{stream: make(chan *session.Stream, 1)}
	n, err := session.Start(session.Options{Identity: id, Name: name, Listen: address, Handler: b,
		Transports: map[session.Transport]session.Opener{session.QUIC: quicnet.Open, session.TCP: tcpnet.Open},
		Log:        slog.New(slog.DiscardHandler), Instance: uint64(len(name)), Heartbeat: 500 * time.Millisecond, PeerTimeout: 3 * time.Second,
		Peers: []session.Peer{{Name: peer, Address: peerAddress, Keys: []ed25519.PublicKey{key}, Transport: transport}}})
	if err != nil {
		return fmt.Errorf("%s: %w", bareCommand, err)
	}
	defer n.Close(context.WithoutCancel(ctx))
	switch {
	case store == echoItem && name == "alpha":
		return b.answer(ctx)
	case store == echoItem:
		p50, err := b.ask(ctx, int(size))
		if err == nil {
			_, err = fmt.Fprintln(stdout, p50)
		}
		return err
	case name == "alpha":
		return b.send(ctx, size, store)
	}
	rate, err := b.receive(ctx, size, store)
	if err == nil {
		_, err = fmt.Fprintln(stdout, rate)
	}
	return err
}

// send sends size bytes, of the store if there is one, and waits to be ended.
func (b *bareEnd) send(ctx context.Context, size int64, store string) error {
	var out *session.Stream
	var err error
	select {
	case out = <-b.stream:
	case <-ctx.Done():
		return fmt.Errorf("no stream: %w", ctx.Err())
	}
	defer out.Abort()
	var src *os.File
	if store != "" {
		if src, err = os.Open(store); err != nil {
			return err
		}
		defer src.Close()
	}
	err = besides(size, func(p []byte, off int64) error {
		if src == nil {
			return nil
		}
		_, err := src.ReadAt(p, off)
		return err
	}, func(p []byte, _ int64) error {
		_, err := out.Write(p)
		return err
	})
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// receive takes size bytes, writes them to the store if there is one, and returns bytes
// per second, from the first byte until the last is there.
func (b *bareEnd) receive(ctx context.Context, size int64, store string) (float64, error) {
	var in *session.Stream
	select {
	case in = <-b.stream:
	case <-ctx.Done():
		return 0, fmt.Errorf("no stream: %w", ctx.Err())
	}
	defer in.Abort()
	var dst *os.File
	if store != "" {
		var err error
		if dst, err = os.OpenFile(store, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return 0, err
		}
		defer dst.Close()
	}
	begin := time.Now()
	err := besides(size, func(p []byte, _ int64) error {
		_, err := io.ReadFull(in, p)
		return err
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
