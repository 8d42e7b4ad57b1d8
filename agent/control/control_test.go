package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/agent/failover"
	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode records the calls it gets and answers with err.
type fakeNode struct {
	mu     sync.Mutex
	calls  []string
	status NodeStatus
	err    error

	verify func(ctx context.Context, progress func(done, total int64)) ([]volume.VerifyReport, error)
}

func (f *fakeNode) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeNode) Status() NodeStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

func (f *fakeNode) Reach(context.Context) []PeerReach { return []PeerReach{{Peer: "beta", Build: "1"}} }

func (f *fakeNode) StatusIO() NodeStatus { return f.Status() }

func (f *fakeNode) FailoverPause(_ context.Context, name string, r FailoverPauseRequest) error {
	return f.note("failover-pause %s %+v", name, r)
}
func (f *fakeNode) FailoverTest(_ context.Context, name string, r FailoverTestRequest, told func(string)) (failover.Rehearsal, error) {
	told("stopped here")
	return failover.Rehearsal{To: "beta", Steps: []failover.Step{{What: "stopped here", Took: 1}}}, f.note("failover-test %s %+v", name, r)
}

func (f *fakeNode) set(role, disk string, peers ...volume.PeerStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = NodeStatus{Node: "alpha", Version: "1", Volumes: []volume.Status{{Name: "crm", Role: role, Disk: disk, Peers: peers}}}
}

func (f *fakeNode) Explain(name string) (volume.Explanation, error) {
	return volume.Explanation{Volume: name, Promote: "would do"}, f.note("explain %s", name)
}
func (f *fakeNode) Create(_ context.Context, n string, r CreateRequest) error {
	return f.note("create %s %+v", n, r)
}
func (f *fakeNode) Promote(_ context.Context, n string, r PromoteRequest) error {
	return f.note("promote %s %+v", n, r)
}
func (f *fakeNode) Demote(_ context.Context, n string, r DemoteRequest) error {
	return f.note("demote %s %+v", n, r)
}
func (f *fakeNode) Switchover(_ context.Context, n string, r SwitchoverRequest) error {
	return f.note("switchover %s %+v", n, r)
}
func (f *fakeNode) Connect(_ context.Context, n string, r ConnectRequest) error {
	return f.note("connect %s %+v", n, r)
}
func (f *fakeNode) Disconnect(_ context.Context, n string, r DisconnectRequest) error {
	return f.note("disconnect %s %+v", n, r)
}
func (f *fakeNode) ReplaceDisk(_ context.Context, n string) error {
	return f.note("replace-disk %s", n)
}
func (f *fakeNode) Reload(context.Context) (ReloadReport, error) {
	return ReloadReport{File: "q.toml", Applied: []string{"peer gamma added"}}, f.note("reload")
}
func (f *fakeNode) Destroy(_ context.Context, n string, r DestroyRequest) error {
	return f.note("destroy %s %+v", n, r)
}
func (f *fakeNode) Resize(_ context.Context, n string, r ResizeRequest) error {
	return f.note("resize %s %+v", n, r)
}
func (f *fakeNode) Invalidate(_ context.Context, n string) error { return f.note("invalidate %s", n) }
func (f *fakeNode) Outdate(_ context.Context, n string) error    { return f.note("outdate %s", n) }
func (f *fakeNode) Archives(n string) ([]volume.ArchiveInfo, error) {
	until := time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)
	return []volume.ArchiveInfo{
		{ID: "20261122-165644-cdef", Volume: n, Time: time.Date(2026, 11, 22, 16, 56, 44, 0, time.UTC), Winner: "beta", Why: "discard", Phase: "following", Exact: true, Bytes: 5 << 20, Blocks: 1234},
		{ID: "20261122-175644-0001", Volume: n, Time: time.Date(2026, 11, 22, 17, 56, 44, 0, time.UTC), Winner: "beta", Why: "discard", Phase: "sealed", Until: &until, Reason: "restored", Bytes: 8192},
	}, f.note("archives %s", n)
}
func (f *fakeNode) ExportArchive(ctx context.Context, n, id string, r ExportRequest, serving func(string)) error {
	if err := f.note("export %s %s %+v", n, id, r); err != nil {
		return err
	}
	serving("unix:" + r.Socket)
	if r.ForSeconds == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}
func (f *fakeNode) RestoreArchive(_ context.Context, n, id string, progress func(done, total int64)) error {
	progress(1, 2)
	return f.note("restore %s %s", n, id)
}
func (f *fakeNode) RemoveArchive(_ context.Context, n, id string) error {
	return f.note("remove %s %s", n, id)
}
func (f *fakeNode) Verify(ctx context.Context, n string, r VerifyRequest, progress func(done, total int64)) ([]volume.VerifyReport, error) {
	if err := f.note("verify %s %+v", n, r); err != nil {
		return nil, err
	}
	return f.verify(ctx, progress)
}

// serve starts a server with a fake node on a real socket.
func serve(t *testing.T) (*fakeNode, *Ring, *Client) {
	t.Helper()
	node, ring := &fakeNode{}, NewRing(8)
	path := filepath.Join(t.TempDir(), "run", "c.sock")
	s, err := Listen(path, Access{}, node, ring, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("closing: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return node, ring, NewClient(path)
}

func TestOperationsReachTheNode(t *testing.T) {
	node, _, c := serve(t)
	ctx := t.Context()
	cases := []struct {
		call func() error
		want string
	}{
		{func() error { return c.Create(ctx, "crm", CreateRequest{Force: true}) }, "create crm {Force:true}"},
		{func() error { return c.Promote(ctx, "crm", PromoteRequest{Force: true}) }, "promote crm {Force:true PeerFenced:false}"},
		{func() error { return c.Promote(ctx, "crm", PromoteRequest{PeerFenced: true}) }, "promote crm {Force:false PeerFenced:true}"},
		{func() error { return c.Demote(ctx, "crm", DemoteRequest{Force: true}) }, "demote crm {Force:true}"},
		{func() error { return c.Switchover(ctx, "crm", SwitchoverRequest{To: "beta"}) }, "switchover crm {To:beta Force:false}"},
		{func() error { return c.Connect(ctx, "crm", ConnectRequest{Peer: "beta", DiscardMyData: true}) }, "connect crm {Peer:beta DiscardMyData:true}"},
		{func() error { return c.Disconnect(ctx, "crm", DisconnectRequest{}) }, "disconnect crm {Peer:}"},
		{func() error { return c.ReplaceDisk(ctx, "crm") }, "replace-disk crm"},
		{func() error { return c.Invalidate(ctx, "crm") }, "invalidate crm"},
		{func() error { return c.Outdate(ctx, "crm") }, "outdate crm"},
		{func() error { return c.Resize(ctx, "crm", ResizeRequest{Size: 4096}) }, "resize crm {Size:4096 Force:false}"},
		{func() error { return c.Destroy(ctx, "crm", DestroyRequest{Backing: true}) }, "destroy crm {Backing:true Archives:false Force:false}"},
		{func() error {
			r, err := c.Reload(ctx)
			if err == nil && len(r.Applied) != 1 {
				t.Errorf("%+v", r)
			}
			return err
		}, "reload"},
		{func() error { return c.Invalidate(ctx, "a..b/c?d") }, "invalidate a..b/c?d"},
		{func() error { _, err := c.Explain(ctx, "crm"); return err }, "explain crm"},
	}
	for _, tc := range cases {
		node.calls = nil
		if err := tc.call(); err != nil {
			t.Errorf("%s: %v", tc.want, err)
		}
		if len(node.calls) != 1 || node.calls[0] != tc.want {
			t.Errorf("node got %q, want %q", node.calls, tc.want)
		}
	}
}

func TestRefusalKeepsItsCode(t *testing.T) {
	node, _, c := serve(t)
	for code := protocol.CodeInternal; code <= protocol.CodeProtocol; code++ {
		node.err = fmt.Errorf("wrapped: %w", &volume.Error{Code: code, Text: "do this"})
		err := c.Promote(t.Context(), "crm", PromoteRequest{})
		var ve *volume.Error
		if !errors.As(err, &ve) || ve.Code != code || !strings.Contains(ve.Text, "do this") {
			t.Errorf("code %v arrived as %#v", code, err)
		}
	}
	node.err = errors.New("without a code")
	var ve *volume.Error
	if err := c.Demote(t.Context(), "crm", DemoteRequest{}); !errors.As(err, &ve) || ve.Code != protocol.CodeInternal || ve.Text != "without a code" {
		t.Errorf("got %#v", err)
	}
}

func TestSocketBelongsToItsOwner(t *testing.T) {
	_, _, c := serve(t)
	fi, err := os.Stat(c.path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", fi.Mode())
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	_, _, c := serve(t)
	if s, err := Listen(c.path, Access{}, &fakeNode{}, NewRing(1), slog.New(slog.DiscardHandler)); err == nil {
		s.Close(t.Context())
		t.Error("two servers on one socket")
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	want := fmt.Sprintf("the agent is not running (no answer on %s): start it with qrbd agent", path)
	check := func(when string) {
		t.Helper()
		_, err := NewClient(path).Status(t.Context())
		if !errors.Is(err, ErrNotRunning) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", when, err, want)
		}
	}
	check("no socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	check("a socket that a dead agent left")
}

func TestBadRequests(t *testing.T) {
	node, _, c := serve(t)
	cases := []struct {
		method, path, body string
		status             int
		code               protocol.Code
	}{
		{"POST", "/v1/volumes/crm/promote", `{"force":tru`, 409, protocol.CodeProtocol},
		{"POST", "/v1/volumes/crm/promote", `{"fence":true}`, 409, protocol.CodeProtocol},
		{"POST", "/v1/volumes/crm/promote", `"` + strings.Repeat("x", bodyMax) + `"`, 409, protocol.CodeProtocol},
		{"POST", "/v1/volumes/crm/wait", `{"for":"rain"}`, 409, protocol.CodeProtocol},
		{"POST", "/v1/volumes/web/wait", `{"for":"primary"}`, 404, protocol.CodeUnknownVolume},
		{"GET", "/v1/events?since=x", "", 409, protocol.CodeProtocol},
		{"GET", "/v2/status", "", 409, protocol.CodeVersion},
		{"DELETE", "/v1/status", "", 409, protocol.CodeVersion},
	}
	for _, tc := range cases {
		req, _ := http.NewRequestWithContext(t.Context(), tc.method, "http://q"+tc.path, strings.NewReader(tc.body))
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Error ErrorBody }
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tc.status || answer.Error.Code != tc.code.String() || answer.Error.Text == "" {
			t.Errorf("%s %s: %d %+v (%v), want %d %v", tc.method, tc.path, resp.StatusCode, answer.Error, err, tc.status, tc.code)
		}
	}
	if len(node.calls) != 0 {
		t.Errorf("the node was called: %q", node.calls)
	}
}

func TestVerifyStreamsProgress(t *testing.T) {
	node, _, c := serve(t)
	shown := make(chan struct{})
	node.verify = func(ctx context.Context, progress func(done, total int64)) ([]volume.VerifyReport, error) {
		progress(1, 100)
		progress(50, 100) // the newest is what is shown
		select {
		case <-shown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return []volume.VerifyReport{{Peer: "beta", Checked: 100, Bad: 4096}}, nil
	}
	var last Progress
	reports, err := c.Verify(t.Context(), "crm", VerifyRequest{Peer: "beta"}, func(p Progress) {
		last = p
		close(shown)
	})
	if err != nil || len(reports) != 1 || reports[0].Bad != 4096 || reports[0].Peer != "beta" {
		t.Errorf("%+v, %v", reports, err)
	}
	if last.DoneBytes != 50 || last.TotalBytes != 100 {
		t.Errorf("progress %+v", last)
	}
}

func TestVerifyRefusedAndLost(t *testing.T) {
	node, _, c := serve(t)
	node.err = &volume.Error{Code: protocol.CodeNotAllowed, Text: "not connected"}
	var ve *volume.Error
	if _, err := c.Verify(t.Context(), "crm", VerifyRequest{}, nil); !errors.As(err, &ve) || ve.Code != protocol.CodeNotAllowed {
		t.Errorf("refused at once: %v", err)
	}
	node.err = nil
	shown := make(chan struct{})
	node.verify = func(_ context.Context, progress func(done, total int64)) ([]volume.VerifyReport, error) {
		progress(1, 2)
		<-shown
		return nil, &volume.Error{Code: protocol.CodeDiskFailed, Text: "disk"}
	}
	if _, err := c.Verify(t.Context(), "crm", VerifyRequest{}, func(Progress) { close(shown) }); !errors.As(err, &ve) || ve.Code != protocol.CodeDiskFailed {
		t.Errorf("refused under way: %v", err)
	}
}

// A client that goes away ends the verify it asked for.
func TestVerifyEndsWithItsClient(t *testing.T) {
	node, _, c := serve(t)
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	node.verify = func(vctx context.Context, _ func(done, total int64)) ([]volume.VerifyReport, error) {
		cancel()
		<-vctx.Done()
		close(ended)
		return nil, vctx.Err()
	}
	if _, err := c.Verify(ctx, "crm", VerifyRequest{}, nil); err == nil {
		t.Error("no error")
	}
	<-ended
}

func TestWait(t *testing.T) {
	connecting := volume.PeerStatus{Name: "beta", Connection: "connecting", Disk: "unknown", Reason: "no route to host"}
	syncing := volume.PeerStatus{Name: "beta", Connection: "connected", Disk: "inconsistent", OutOfSync: 4096}
	ready := volume.PeerStatus{Name: "beta", Connection: "connected", Disk: "up-to-date"}
	cases := []struct {
		name    string
		what    WaitFor
		role    string
		disk    string
		peer    volume.PeerStatus
		missing string
	}{
		{"primary", WaitPrimary, "primary", "up-to-date", connecting, ""},
		{"not primary", WaitPrimary, "secondary", "up-to-date", ready, "it is secondary"},
		{"connected", WaitConnected, "secondary", "inconsistent", syncing, ""},
		{"not connected", WaitConnected, "primary", "up-to-date", connecting, "beta is connecting (no route to host)"},
		{"up-to-date", WaitUpToDate, "primary", "up-to-date", ready, ""},
		{"peer syncs", WaitUpToDate, "primary", "up-to-date", syncing, "the disk of beta is inconsistent"},
		{"peer away", WaitUpToDate, "primary", "up-to-date", connecting, "beta is connecting (no route to host)"},
		{"own disk", WaitUpToDate, "secondary", "inconsistent", ready, "the disk is inconsistent"},
		{"out of sync", WaitUpToDate, "primary", "up-to-date", volume.PeerStatus{Name: "beta", Connection: "connected", Disk: "up-to-date", OutOfSync: 4096}, "4096 bytes are out of sync with beta"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			node, _, c := serve(t)
			node.set(tc.role, tc.disk, tc.peer)
			var told []string
			err := c.Wait(t.Context(), "crm", WaitRequest{For: tc.what, TimeoutSeconds: 0.02}, func(p Progress) { told = append(told, p.Waiting) })
			if tc.missing == "" {
				if err != nil {
					t.Errorf("got %v, want it reached", err)
				}
				return
			}
			var ve *volume.Error
			if !errors.As(err, &ve) || ve.Code != protocol.CodeTimeout || !strings.Contains(ve.Text, tc.missing) {
				t.Errorf("got %v, want a timeout because %s", err, tc.missing)
			}
			if len(told) != 1 || told[0] != tc.missing {
				t.Errorf("told %q, want %q", told, tc.missing)
			}
		})
	}
}

// A change is seen by its event, not by the poll.
func TestWaitSeesTheChange(t *testing.T) {
	node, ring, c := serve(t)
	node.set("secondary", "up-to-date")
	err := c.Wait(t.Context(), "crm", WaitRequest{For: WaitPrimary}, func(Progress) {
		node.set("primary", "up-to-date")
		ring.Add(volume.Event{Volume: "crm", Field: "role"})
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStatusJSONKeepsItsFields(t *testing.T) {
	_, _, c := serve(t)
	resp, err := c.open(t.Context(), http.MethodGet, "/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Close()
	st := NodeStatus{Node: "alpha", Volumes: []volume.Status{{Peers: []volume.PeerStatus{{}}}}}
	data, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	v := m["volumes"].([]any)[0].(map[string]any)
	p := v["peers"].([]any)[0].(map[string]any)
	for _, k := range []string{"name", "size", "role", "disk", "export", "clients", "generation", "peers"} {
		if _, ok := v[k]; !ok {
			t.Errorf("a volume has no %q", k)
		}
	}
	for _, k := range []string{"name", "connection", "replication", "role", "disk", "protocol", "out_of_sync", "sync_percent"} {
		if _, ok := p[k]; !ok {
			t.Errorf("a peer has no %q", k)
		}
	}
}

func TestArchives(t *testing.T) {
	node, _, c := serve(t)
	ctx := t.Context()
	if list, err := c.Archives(ctx, "crm"); err != nil || len(list) != 2 || !list[0].Exact || list[1].Until == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	var said []Progress
	note := func(p Progress) { said = append(said, p) }
	if err := c.ExportArchive(ctx, "crm", "x/../y", ExportRequest{Socket: "/s", ForSeconds: 1}, note); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || said[0].Serving != "unix:/s" {
		t.Fatalf("serving: %+v", said)
	}
	if err := c.RestoreArchive(ctx, "crm", "id", note); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveArchive(ctx, "crm", "id"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	err := c.ExportArchive(short, "crm", "id", ExportRequest{Socket: "/s"}, func(Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("an export that the client ends: %v", err)
	}
	node.mu.Lock()
	node.err = &volume.Error{Code: protocol.CodeNotAllowed, Text: "no"}
	node.mu.Unlock()
	var ve *volume.Error
	for _, call := range []func() error{
		func() error { _, err := c.Archives(ctx, "crm"); return err },
		func() error { return c.ExportArchive(ctx, "crm", "id", ExportRequest{}, nil) },
		func() error { return c.RestoreArchive(ctx, "crm", "id", nil) },
		func() error { return c.RemoveArchive(ctx, "crm", "id") },
	} {
		if err := call(); !errors.As(err, &ve) || ve.Code != protocol.CodeNotAllowed || ve.Text != "no" {
			t.Errorf("refused: %v", err)
		}
	}
	want := []string{"archives crm", "export crm x/../y {Socket:/s ForSeconds:1}", "restore crm id", "remove crm id", "export crm id {Socket:/s ForSeconds:0}"}
	node.mu.Lock()
	defer node.mu.Unlock()
	if len(node.calls) < len(want) || !slices.Equal(node.calls[:len(want)], want) {
		t.Errorf("calls %q", node.calls)
	}
}
