package e2e

import (
	"context"
	"crypto/ed25519"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/protocol/quicnet"
	"github.com/qrbd/qrbd/protocol/session"
	"github.com/qrbd/qrbd/protocol/tcpnet"
	"github.com/qrbd/qrbd/tests/cluster"
)

// impostor speaks the replication protocol in the test's own process, with the
// key of a node that does not run.
type impostor struct {
	failed chan error            // why there is no session
	up     chan *session.Session // sessions
}

func (i *impostor) SessionUp(s *session.Session)        { offer(i.up, s) }
func (i *impostor) SessionDown(*session.Session, error) {}
func (i *impostor) StreamOpened(_ *session.Session, _ protocol.StreamOpen, st *session.Stream) {
	st.Abort()
}
func (i *impostor) ConnectFailed(_ string, err error)          { offer(i.failed, err) }
func (i *impostor) Message(*session.Session, protocol.Message) {}

// offer sends v unless nobody takes what is there already.
func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// impersonate starts an impostor of node, which knows peer.
func impersonate(t *testing.T, node, peer *cluster.Node, change func(*session.Options)) *impostor {
	t.Helper()
	id, err := session.LoadIdentity(node.Config.State)
	check(t, err)
	key, err := session.ParseKey(peer.Key)
	check(t, err)
	i := &impostor{failed: make(chan error, 1), up: make(chan *session.Session, 1)}
	transport := session.QUIC
	if node.Config.Peers[0].Transport == session.TCP.String() {
		transport = session.TCP
	}
	o := session.Options{
		Identity: id, Name: node.Name, Listen: node.Config.Listen, Handler: i, Instance: 4711,
		Transports: map[session.Transport]session.Opener{session.QUIC: quicnet.Open, session.TCP: tcpnet.Open},
		Log:        slog.New(slog.DiscardHandler),
		Peers:      []session.Peer{{Name: peer.Name, Address: peer.Config.Listen, Keys: []ed25519.PublicKey{key}, Transport: transport}},
	}
	if change != nil {
		change(&o)
	}
	n, err := session.Start(o)
	check(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = n.Close(ctx) // whatever state the agent left it in
	})
	return i
}

// TestIncompatibleVersion: a peer of another major version is refused on both
// sides, with both versions named.
func TestIncompatibleVersion(t *testing.T) {
	t.Parallel()
	_, alpha, beta, _ := trio(t)
	undisturbed(t, alpha, func() {
		i := impersonate(t, beta, alpha, func(o *session.Options) { o.Major, o.Minor = protocol.Major+1, 3 })
		for deadline, told := time.After(20*time.Second), false; !told; {
			select {
			case err := <-i.failed:
				told = mentions(err.Error(), "version") // gamma, a stranger to it, is refused for its key
			case <-deadline:
				t.Fatal("the newer side is not told of the version")
			}
		}
		refusing(t, alpha, "beta", "version")
	})
}

// TestRoguePeer: a peer with the right key sends nonsense on every kind of
// stream. The agent refuses it, and serves on.
func TestRoguePeer(t *testing.T) {
	t.Parallel()
	_, alpha, beta, _ := trio(t)
	before, _ := alpha.Resident()
	undisturbed(t, alpha, func() {
		i := impersonate(t, beta, alpha, nil)
		deadline := time.After(5 * time.Second)
		for attempt := uint64(1); ; attempt++ {
			var s *session.Session
			select {
			case s = <-i.up:
			case <-deadline:
				if attempt == 1 {
					t.Error("no session")
				}
				return
			}
			for n := range uint64(200) {
				if nonsense(s, attempt*1000+n) != nil {
					break // the agent closed the session
				}
			}
		}
	})
	if _, peak := alpha.Resident(); peak > before+100*mib {
		t.Errorf("memory grew from %d to %d MiB", before/mib, peak/mib)
	}
}

// nonsense opens a pair of streams and sends frames that are random, cut off, or
// well-formed and senseless.
func nonsense(s *session.Session, attempt uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, kind := range []protocol.StreamKind{protocol.StreamWrite, protocol.StreamBulk} {
		name := "crm"
		if rand.IntN(8) == 0 {
			name = "nonsense"
		}
		st, err := s.Open(ctx, protocol.StreamOpen{Kind: kind, Volume: name, Attempt: attempt})
		if err != nil {
			return err
		}
		var b []byte
		switch rand.IntN(4) {
		case 0:
			b = make([]byte, rand.IntN(5000))
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
		case 1:
			b = protocol.AppendFrame(nil, &protocol.SyncReady{}, nil)
		case 2:
			b = protocol.AppendFrame(nil, &protocol.Hello{Size: 1 << 60, Block: 4096, Attempt: attempt, Role: protocol.Primary,
				Disk: protocol.UpToDate, Mode: protocol.ModeC, Current: 77, Primary: "beta"}, nil)
		case 3:
			payload := make([]byte, 4096)
			b = protocol.AppendFrame(nil, &protocol.Data{Op: protocol.DataWrite, Seq: 1, Off: 1 << 50, Len: 4096}, payload)
			b = append(b, payload...)
			b = b[:len(b)-rand.IntN(2)*rand.IntN(len(b))]
		}
		_, err = st.Write(b)
		go func() { _, _ = io.Copy(io.Discard, st) }() // ends with the stream
		time.AfterFunc(time.Second, st.Abort)
		if err != nil {
			return err
		}
	}
	return nil
}

// TestGarbageOnTheWire: datagrams from nobody.
func TestGarbageOnTheWire(t *testing.T) {
	t.Parallel()
	_, alpha, _, _ := trio(t)
	before, _ := alpha.Resident()
	undisturbed(t, alpha, func() {
		conn, err := net.Dial("udp", alpha.Config.Listen)
		check(t, err)
		defer conn.Close()
		b := make([]byte, 1400)
		for i := range 20_000 {
			for j := range 40 {
				b[j] = byte(rand.Uint32())
			}
			if i%2 == 0 { // a QUIC version 1 Initial, as far as the first bytes go
				copy(b, []byte{0xc3, 0, 0, 0, 1, 8})
			}
			_, _ = conn.Write(b[:1+rand.IntN(len(b))]) // the socket may be full
		}
	})
	if _, peak := alpha.Resident(); peak > before+60*mib {
		t.Errorf("memory grew from %d to %d MiB", before/mib, peak/mib)
	}
}
