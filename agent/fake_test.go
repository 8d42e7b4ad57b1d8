package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeVolume is a volume that obeys and notes what it was told.
type fakeVolume struct {
	blockdev.Submitter
	name string

	mu       sync.Mutex
	role     string
	current  string // generation
	peers    []volume.PeerStatus
	calls    []string
	attached map[string][]volume.Conn
	linked   map[string]bool
	err      error
	verify   func(ctx context.Context, o volume.VerifyOptions, progress func(done, total int64)) (volume.VerifyReport, error)
	during   func() // called inside an operation
	changed  chan struct{}
}

func newFakeVolume(name string) *fakeVolume {
	dev := blockdev.NewMemory(1 << 20)
	return &fakeVolume{Submitter: blockdev.Async(dev, 1), name: name, role: "secondary",
		attached: map[string][]volume.Conn{}, linked: map[string]bool{}, changed: make(chan struct{}, 100)}
}

func (v *fakeVolume) note(format string, args ...any) error {
	v.mu.Lock()
	v.calls = append(v.calls, fmt.Sprintf(format, args...))
	during, err := v.during, v.err
	v.mu.Unlock()
	v.changed <- struct{}{}
	if during != nil {
		during()
	}
	return err
}

func (v *fakeVolume) Status() volume.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	return volume.Status{Name: v.name, Size: 1 << 20, Role: v.role, Disk: "up-to-date", Generation: v.current, Peers: v.peers}
}

func (v *fakeVolume) setRole(role string) {
	v.mu.Lock()
	v.role = role
	v.mu.Unlock()
}

func (v *fakeVolume) Linked(peer string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.linked[peer]
}

func (v *fakeVolume) Explain() volume.Explanation { return volume.Explanation{Volume: v.name} }
func (v *fakeVolume) Promote(_ context.Context, o volume.PromoteOptions) error {
	err := v.note("promote %+v", o)
	if err == nil {
		v.setRole("primary")
	}
	return err
}
func (v *fakeVolume) Demote(context.Context) error {
	err := v.note("demote")
	if err == nil {
		v.setRole("secondary")
	}
	return err
}
func (v *fakeVolume) Switchover(_ context.Context, p string) error { return v.note("switchover %s", p) }
func (v *fakeVolume) Connect(_ context.Context, p string, d bool) error {
	return v.note("connect %q %v", p, d)
}
func (v *fakeVolume) Disconnect(_ context.Context, p string) error { return v.note("disconnect %q", p) }
func (v *fakeVolume) ReplaceDisk(_ context.Context, fresh func() (volume.Disk, error)) error {
	return v.note("replace-disk")
}
func (v *fakeVolume) Tune(volume.Tuning)                { _ = v.note("tune") }
func (v *fakeVolume) AddPeer(p volume.PeerConfig) error { return v.note("add peer %s", p.Name) }
func (v *fakeVolume) Invalidate(context.Context) error  { return v.note("invalidate") }
func (v *fakeVolume) Outdate(context.Context) error     { return v.note("outdate") }
func (v *fakeVolume) Verify(ctx context.Context, o volume.VerifyOptions, progress func(done, total int64)) (volume.VerifyReport, error) {
	if v.verify != nil {
		return v.verify(ctx, o, progress)
	}
	return volume.VerifyReport{Peer: o.Peer}, v.note("verify %q", o.Peer)
}
func (v *fakeVolume) ListArchives() ([]volume.ArchiveInfo, error) {
	return []volume.ArchiveInfo{{ID: "20261122-165644-cdef", Volume: v.name}}, v.note("archives")
}
func (v *fakeVolume) ViewArchive(id string) (blockdev.Device, error) {
	if err := v.note("view %s", id); err != nil {
		return nil, err
	}
	dev := blockdev.NewMemory(1 << 20)
	return dev, dev.WriteAt([]byte("lost"), 0, 0)
}
func (v *fakeVolume) RestoreArchive(_ context.Context, id string, progress func(done, total int64)) error {
	progress(1, 2)
	return v.note("restore %s", id)
}
func (v *fakeVolume) RemoveArchive(id string) error { return v.note("remove %s", id) }
func (v *fakeVolume) AttachPeer(p string, c volume.Conn) error {
	v.mu.Lock()
	v.attached[p] = append(v.attached[p], c)
	v.mu.Unlock()
	return v.note("attach %s", p)
}
func (v *fakeVolume) PeerUnreachable(p string, err error) { v.note("unreachable %s: %v", p, err) }
func (v *fakeVolume) Close(context.Context) error {
	v.Submitter.(*blockdev.AsyncQueue).Close()
	return v.note("close")
}

// saw waits until the volume was told what begins with prefix, and returns it.
func (v *fakeVolume) saw(t *testing.T, prefix string) string {
	t.Helper()
	end := time.After(10 * time.Second)
	for {
		v.mu.Lock()
		for _, c := range v.calls {
			if strings.HasPrefix(c, prefix) {
				v.mu.Unlock()
				return c
			}
		}
		calls := strings.Join(v.calls, "; ")
		v.mu.Unlock()
		select {
		case <-v.changed:
		case <-end:
			t.Fatalf("the volume was not told %q, but: %s", prefix, calls)
		}
	}
}

func (v *fakeVolume) count(call string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, c := range v.calls {
		if strings.HasPrefix(c, call) {
			n++
		}
	}
	return n
}

// fakeStream keeps what is written to it; reads wait until the other side (the
// test) hangs up, or it is aborted.
type fakeStream struct {
	open protocol.StreamOpen

	mu      sync.Mutex
	written bytes.Buffer
	closed  bool
	gone    chan struct{} // aborted
	hangup  chan struct{}
	once    sync.Once
}

func newFakeStream(o protocol.StreamOpen) *fakeStream {
	return &fakeStream{open: o, gone: make(chan struct{}), hangup: make(chan struct{})}
}

func (s *fakeStream) Read([]byte) (int, error) {
	select {
	case <-s.gone:
		return 0, errors.New("aborted")
	case <-s.hangup:
		return 0, io.EOF
	}
}
func (s *fakeStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written.Write(p)
}
func (s *fakeStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.hangup) // a peer that reads to the end and leaves
	}
	return nil
}
func (s *fakeStream) Abort() { s.once.Do(func() { close(s.gone) }) }

func (s *fakeStream) aborted() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// refusal waits for the end of the stream and decodes the Refuse frame on it.
func (s *fakeStream) refusal(t *testing.T) protocol.Refuse {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream was not ended")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.written.Bytes()
	h, err := protocol.ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := new(protocol.Decoder).Decode(h, b[:protocol.HeaderLen], b[protocol.HeaderLen:][:h.BodyLen], nil)
	if err != nil {
		t.Fatal(err)
	}
	return *m.(*protocol.Refuse)
}

// fakeSession is a session whose streams are fake.
type fakeSession struct {
	peer   string
	dialer bool

	mu     sync.Mutex
	opened []*fakeStream
	sent   []protocol.Message
	fail   error
	hold   chan struct{} // not nil: Open waits for it
	news   chan struct{}
}

func newFakeSession(peer string, dialer bool) *fakeSession {
	return &fakeSession{peer: peer, dialer: dialer, news: make(chan struct{}, 100)}
}

func (s *fakeSession) Peer() string       { return s.peer }
func (s *fakeSession) Dialer() bool       { return s.dialer }
func (s *fakeSession) RTT() time.Duration { return time.Millisecond }
func (s *fakeSession) Compresses() bool   { return false }
func (s *fakeSession) Send(m protocol.Message) error {
	s.mu.Lock()
	s.sent = append(s.sent, m)
	s.mu.Unlock()
	s.news <- struct{}{}
	return nil
}
func (s *fakeSession) Open(ctx context.Context, o protocol.StreamOpen) (volume.Stream, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil && o.Kind == protocol.StreamBulk {
		return nil, s.fail
	}
	st := newFakeStream(o)
	s.opened = append(s.opened, st)
	s.news <- struct{}{}
	return st, nil
}

// noNetwork is a node without sessions but those that a test makes.
type noNetwork struct{}

func (noNetwork) AddPeer(config.Peer) error    { return nil }
func (noNetwork) UpdatePeer(config.Peer) error { return nil }
func (noNetwork) Close(context.Context) error  { return nil }

// testConfig is a node alpha with the volumes crm and web, peers beta and gamma;
// web has no gamma.
func testConfig(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	c := &config.Config{File: filepath.Join(dir, "qrbd.toml"), Node: config.Node{
		Name: "alpha", Listen: "127.0.0.1:1", State: filepath.Join(dir, "state"), Control: filepath.Join(dir, "c.sock"),
		Heartbeat: 50 * time.Millisecond, PeerTimeout: 2 * time.Second}}
	for _, name := range []string{"beta", "gamma"} {
		c.Peers = append(c.Peers, config.Peer{Name: name})
	}
	for _, name := range []string{"crm", "web"} {
		c.Volumes = append(c.Volumes, config.Volume{Name: name, Size: 1 << 20, Backing: filepath.Join(dir, name+".img"),
			Export: config.Export{Network: "unix", Address: filepath.Join(dir, name+".sock")},
			Peers:  []config.VolumePeer{{Name: "beta", Mode: protocol.ModeC}, {Name: "gamma", Mode: protocol.ModeA}}})
	}
	c.Volumes[1].Peers = c.Volumes[1].Peers[:1]
	return c
}

// start runs an agent of fake volumes; those named in without do not open.
func start(t *testing.T, without map[string]error, change ...func(*Options)) (*Agent, map[string]*fakeVolume) {
	t.Helper()
	return startOn(t, testConfig(t), without, nil, change...)
}

// startOn is start on a configuration; made, if set, is called for each volume before the
// agent has it.
func startOn(t *testing.T, c *config.Config, without map[string]error, made func(*fakeVolume), change ...func(*Options)) (*Agent, map[string]*fakeVolume) {
	t.Helper()
	vols := map[string]*fakeVolume{}
	var mu sync.Mutex
	o := Options{Config: c, Log: slog.New(slog.DiscardHandler), Version: "test"}
	o.network = func(*Agent) (network, error) { return noNetwork{}, nil }
	o.openVolume = func(_ *Agent, s *slot) (running, error) {
		if err := without[s.cfg.Name]; err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		v := newFakeVolume(s.cfg.Name)
		vols[s.cfg.Name] = v
		if made != nil {
			made(v)
		}
		return v, nil
	}
	for _, f := range change {
		f(&o)
	}
	a, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, a) })
	return a, vols
}

func stop(t *testing.T, a *Agent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Errorf("closing the agent: %v", err)
	}
}

// freePort returns a UDP address on loopback that nobody uses now.
func freePort(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// code is the code of a refusal.
func code(t *testing.T, err error) protocol.Code {
	t.Helper()
	var ve *volume.Error
	if !errors.As(err, &ve) {
		t.Fatalf("got %v, want a *volume.Error", err)
	}
	return ve.Code
}
