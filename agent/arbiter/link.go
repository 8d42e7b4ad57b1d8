package arbiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/qrbd/qrbd/protocol"
)

// Stream is one end of a stream inside the process: what a volume takes for a peer's.
type Stream struct{ conn net.Conn }

// Read implements io.Reader.
func (s Stream) Read(p []byte) (int, error) { return s.conn.Read(p) }

// Write implements io.Writer.
func (s Stream) Write(p []byte) (int, error) { return s.conn.Write(p) }

// Close ends both directions: what was written has been read.
func (s Stream) Close() error { return s.conn.Close() }

// Abort ends both directions at once.
func (s Stream) Abort() { _ = s.conn.Close() } // never fails

// Link carries a volume's frames to a Voter and back.
type Link struct {
	// Write and Bulk are the volume's ends. Nothing is ever said on Bulk.
	Write, Bulk Stream

	voter *Voter
	lease time.Duration
	in    Stream
	quiet Stream
	msgs  chan protocol.Message
	seen  func(uint64)

	cancel context.CancelFunc
	ended  sync.WaitGroup
	once   sync.Once
	err    error // valid when ended
}

// queued bounds what the voter has not looked at yet. Claims beyond it are dropped: the
// volume makes the next one soon.
const queued = 32

// NewLink begins a link. seen is told which record there is, each time that it was looked at.
func NewLink(ctx context.Context, v *Voter, seen func(uint64)) *Link {
	l := &Link{voter: v, lease: v.o.Lease, msgs: make(chan protocol.Message, queued), seen: seen}
	a, b := net.Pipe()
	c, d := net.Pipe()
	l.Write, l.in, l.Bulk, l.quiet = Stream{a}, Stream{b}, Stream{c}, Stream{d}
	ctx, l.cancel = context.WithCancel(ctx)
	l.ended.Go(func() { l.read(ctx) })
	l.ended.Go(func() { l.vote(ctx) })
	return l
}

// Wait returns when the link has ended, with why.
func (l *Link) Wait() error {
	l.ended.Wait()
	return l.err
}

// Close ends the link.
func (l *Link) Close() error {
	l.end(errors.New("closed"))
	return l.Wait()
}

func (l *Link) end(err error) {
	l.once.Do(func() {
		l.err = err
		l.cancel()
		for _, s := range []Stream{l.in, l.quiet, l.Write, l.Bulk} {
			s.Abort()
		}
	})
}

// read takes the volume's frames, so that it never waits for etcd.
func (l *Link) read(ctx context.Context) {
	var dec protocol.Decoder
	head, body := make([]byte, protocol.HeaderLen), make([]byte, protocol.BodyMax)
	for {
		msg, err := next(l.in, &dec, head, body)
		if errors.Is(err, protocol.ErrIgnored) {
			continue
		}
		if err != nil {
			l.end(fmt.Errorf("the volume has ended the link: %w", err))
			return
		}
		if m := kept(msg); m != nil {
			if _, claim := m.(*protocol.Claim); claim && len(l.msgs) > queued/2 {
				continue
			}
			select {
			case l.msgs <- m:
			case <-ctx.Done():
				return
			}
		}
	}
}

func next(r io.Reader, dec *protocol.Decoder, head, body []byte) (protocol.Message, error) {
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	h, err := protocol.ParseHeader(head)
	if err != nil {
		return nil, err
	}
	if h.PayloadLen > 0 {
		return nil, fmt.Errorf("%v with data on a link that carries none", h.Type)
	}
	if _, err := io.ReadFull(r, body[:h.BodyLen]); err != nil {
		return nil, err
	}
	return dec.Decode(h, head, body[:h.BodyLen], nil)
}

// kept copies a message, which the decoder uses again, if a voter has a use for it.
func kept(msg protocol.Message) protocol.Message {
	switch m := msg.(type) {
	case *protocol.Ballot:
		c := *m
		return &c
	case *protocol.Hello:
		return &protocol.Hello{Volume: m.Volume, Size: m.Size, Role: m.Role}
	case *protocol.Claim:
		return &protocol.Claim{Term: m.Term, Stamp: m.Stamp, Current: m.Current, Overruled: m.Overruled, History: append([]protocol.Generation(nil), m.History...)}
	case *protocol.State:
		c := *m
		return &c
	case *protocol.PromoteAsk:
		c := *m
		return &c
	case *protocol.Leave:
		return &protocol.Leave{}
	case *protocol.Bye:
		c := *m
		return &c
	case *protocol.Refuse:
		c := *m
		return &c
	}
	return nil
}

// looksPerLease: how often a voter looks at a vote that it does not have.
const looksPerLease = 8

// vote lets the voter answer, one message after the other.
func (l *Link) vote(ctx context.Context) {
	tick := time.NewTicker(l.lease / looksPerLease)
	defer tick.Stop()
	for {
		var answers []protocol.Message
		var err error
		limit, done := context.WithTimeout(ctx, l.lease/2) // what took longer is of no use
		select {
		case m := <-l.msgs:
			answers, err = l.voter.Receive(limit, m)
		case <-tick.C:
			if l.voter.id != "" {
				answers, err = l.voter.Tick(limit)
			}
		case <-ctx.Done():
		}
		done()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.end(err)
			return
		}
		if l.voter.id != "" {
			l.seen(l.voter.Seen())
		}
		for _, a := range answers {
			if _, err := l.in.Write(protocol.AppendFrame(nil, a, nil)); err != nil {
				l.end(fmt.Errorf("the volume has ended the link: %w", err))
				return
			}
		}
	}
}
