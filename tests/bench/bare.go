package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
)

// bareEnd is one end of a bare session: what the transport does by itself.
type bareEnd struct {
	up     chan *quicnet.Session
	stream chan *quicnet.Stream
}

func newBareEnd() *bareEnd {
	return &bareEnd{up: make(chan *quicnet.Session, 1), stream: make(chan *quicnet.Stream, 1)}
}

func (b *bareEnd) SessionUp(s *quicnet.Session) {
	select {
	case b.up <- s:
	default:
	}
}
func (b *bareEnd) SessionDown(*quicnet.Session, error) {}
func (b *bareEnd) StreamOpened(_ *quicnet.Session, _ protocol.StreamOpen, st *quicnet.Stream) {
	select {
	case b.stream <- st:
	default:
		st.Abort()
	}
}
func (b *bareEnd) ConnectFailed(string, error)                {}
func (b *bareEnd) Message(*quicnet.Session, protocol.Message) {}

// measureBare sends sizeBytes over one bulk stream between two nodes in this process
// and returns bytes per second: a resync's bound on an idle link.
func measureBare(ctx context.Context, dir string, sizeBytes int64) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	names := [2]string{"alpha", "beta"}
	var ids [2]*quicnet.Identity
	var ports [2]int
	for i, name := range names {
		at := filepath.Join(dir, name)
		err := os.MkdirAll(at, 0o700)
		if err == nil {
			ids[i], err = quicnet.LoadOrCreateIdentity(at)
		}
		if err == nil {
			ports[i], err = freePort("udp")
		}
		if err != nil {
			return 0, fmt.Errorf("bare transport: %w", err)
		}
	}
	ends := [2]*bareEnd{newBareEnd(), newBareEnd()}
	for i, name := range names {
		other := 1 - i
		n, err := quicnet.Start(quicnet.Options{Identity: ids[i], Name: name, Listen: fmt.Sprintf("127.0.0.1:%d", ports[i]), Handler: ends[i],
			Log: slog.New(slog.DiscardHandler), Instance: uint64(i + 1), Heartbeat: 500 * time.Millisecond, PeerTimeout: 3 * time.Second,
			Peers: []quicnet.Peer{{Name: names[other], Address: fmt.Sprintf("127.0.0.1:%d", ports[other]), Keys: []ed25519.PublicKey{ids[other].Public()}}}})
		if err != nil {
			return 0, fmt.Errorf("bare transport: %w", err)
		}
		defer n.Close(context.WithoutCancel(ctx))
	}
	return ends[0].pump(ctx, ends[1], sizeBytes)
}

// pump sends from b to to and times it, from the first byte until the last is read.
func (b *bareEnd) pump(ctx context.Context, to *bareEnd, sizeBytes int64) (float64, error) {
	var s *quicnet.Session
	select {
	case s = <-b.up:
	case <-ctx.Done():
		return 0, fmt.Errorf("bare transport: no session: %w", ctx.Err())
	}
	out, err := s.Open(ctx, protocol.StreamOpen{Kind: protocol.StreamBulk, Volume: volumeName, Attempt: 1})
	if err != nil {
		return 0, fmt.Errorf("bare transport: %w", err)
	}
	defer out.Abort()
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		chunk := make([]byte, 1<<20)
		var err error
		for left := sizeBytes; left > 0 && err == nil; left -= int64(len(chunk)) {
			_, err = out.Write(chunk[:min(left, int64(len(chunk)))])
		}
		sent <- err
	}()
	var in *quicnet.Stream
	select {
	case in = <-to.stream:
	case <-ctx.Done():
		return 0, errors.Join(fmt.Errorf("bare transport: no stream: %w", ctx.Err()))
	}
	defer in.Abort()
	if _, err := io.CopyBuffer(io.Discard, io.LimitReader(in, sizeBytes), make([]byte, 256<<10)); err != nil {
		return 0, fmt.Errorf("bare transport: %w", err)
	}
	took := time.Since(begin)
	return float64(sizeBytes) / took.Seconds(), <-sent
}
