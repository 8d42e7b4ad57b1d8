package volume

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
)

// rawPeer is a peer without a volume behind it: it says what a test has it say,
// in frames that are sound.
type rawPeer struct {
	t      *testing.T
	c      *cluster
	to     string // the real node
	write  tcpStream
	bulk   tcpStream
	dead   chan struct{}
	in     *frameReader // of the write stream
	bulkIn *frameReader
	theirs protocol.Hello // what the node said
}

// rawTo links a raw peer of that name to a node whose real peer is not running.
func rawTo(t *testing.T, c *cluster, node, name string) *rawPeer {
	t.Helper()
	w1, w2 := socketPair(t)
	b1, b2 := socketPair(t)
	p := &rawPeer{t: t, c: c, to: node, write: w1, bulk: b1, dead: make(chan struct{})}
	pool := blockdev.NewPool(64 << 20)
	saved := new(atomic.Uint64)
	p.in, p.bulkIn = newFrameReader(w1, pool, testZstd, saved, p.dead), newFrameReader(b1, pool, testZstd, saved, p.dead)
	t.Cleanup(func() { p.write.Abort(); p.bulk.Abort() })
	if err := c.v(node).AttachPeer(name, Conn{Write: w2, Bulk: b2}); err != nil {
		t.Fatal(err)
	}
	return p
}

// send writes a frame on the write stream; the error is the node's to cause.
func (p *rawPeer) send(m protocol.Message, pay []byte) error {
	_, err := p.write.Write(append(protocol.AppendFrame(nil, m, pay), pay...))
	return err
}

func (p *rawPeer) sendBulk(m protocol.Message, pay []byte) error {
	_, err := p.bulk.Write(append(protocol.AppendFrame(nil, m, pay), pay...))
	return err
}

// next returns the next message on the write stream, its payload dropped.
func (p *rawPeer) next() (protocol.Message, error) {
	p.write.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, buf, err := p.in.next()
	if buf != nil {
		buf.Release()
	}
	return m, err
}

func (p *rawPeer) nextBulk() (protocol.Message, error) {
	p.bulk.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, buf, err := p.bulkIn.next()
	if buf != nil {
		buf.Release()
	}
	return m, err
}

// expect reads until a message of the type, or fails.
func expect[M protocol.Message](p *rawPeer) M {
	p.t.Helper()
	for {
		m, err := p.next()
		if err != nil {
			p.t.Fatalf("waited for %T: %v", *new(M), err)
		}
		if x, ok := m.(M); ok {
			return x
		}
		switch b := m.(type) {
		case *protocol.Bye:
			p.t.Fatalf("waited for %T: bye: %s", *new(M), b.Text)
		case *protocol.Refuse:
			p.t.Fatalf("waited for %T: refused: %s", *new(M), b.Text)
		}
	}
}

// ended reads until the node ends the connection, and returns its last word.
func (p *rawPeer) ended() string {
	p.t.Helper()
	last := ""
	for {
		m, err := p.next()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Fatal("the connection did not end")
			}
			return last
		}
		switch b := m.(type) {
		case *protocol.Bye:
			last = b.Text
		case *protocol.Refuse:
			last = b.Text
		}
	}
}

// drain reads and drops everything on both streams until they end.
func (p *rawPeer) drain() {
	go io.Copy(io.Discard, p.write)
	go io.Copy(io.Discard, p.bulk)
}

// hello exchanges hellos; change edits an answer that equals the node's own state.
func (p *rawPeer) hello(self string, change func(h *protocol.Hello)) {
	p.t.Helper()
	p.theirs = *expect[*protocol.Hello](p)
	h := p.theirs
	h.Attempt, h.Flags, h.Role = 77, 0, protocol.Secondary
	h.Slots = []protocol.PeerSlot{{Name: p.to}}
	h.Primary = ""
	if change != nil {
		change(&h)
	}
	if h.Role == protocol.Primary {
		h.Primary = self
	}
	if err := p.send(&h, nil); err != nil {
		p.t.Fatal(err)
	}
}

func (p *rawPeer) verdict(s protocol.Strategy, rule string) {
	p.t.Helper()
	if err := p.send(&protocol.Verdict{Attempt: p.theirs.Attempt, Strategy: s, Rule: rule}, nil); err != nil {
		p.t.Fatal(err)
	}
}

// asPrimary settles as an equal replica that is primary.
func (p *rawPeer) asPrimary(self string) {
	p.t.Helper()
	p.hello(self, func(h *protocol.Hello) { h.Role, h.Disk = protocol.Primary, protocol.UpToDate })
	p.verdict(protocol.NoSync, "equal")
	p.c.await(p.to, func(s Status) bool { return peerOf(s, self).Connection == "connected" })
}

// lonely returns a cluster in which only node is left, in sync with the others
// when they went.
func lonely(t *testing.T, mode protocol.Mode, node string) *cluster {
	c := twoInSync(t, mode)
	c.randomWrites("alpha", 1, 10)
	c.flush("alpha")
	c.await("alpha", func(s Status) bool { return peerOf(s, "beta").UnackedOps == 0 })
	for _, n := range c.names {
		if n != node {
			c.kill(n)
		}
	}
	return c
}

// serving checks that a node is alive: it can be asked, and it takes connections.
func serving(t *testing.T, c *cluster, node, peer string) {
	t.Helper()
	c.await(node, func(s Status) bool { return peerOf(s, peer).Connection != "connected" })
	if s := c.v(node).Status(); s.Disk == "failed" {
		t.Fatalf("the disk of %s: %s", node, s.Reason)
	}
}
