package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// Accounts of the tests. They have no names on any host.
const (
	operatorsGID = 64201
	watchersGID  = 64202
	ownerUID     = 64301
)

var (
	operators = Account{"operators", operatorsGID}
	watchers  = Account{"watchers", watchersGID}
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// guarded runs a server that every user of the host can reach.
func guarded(t *testing.T, a Access) (path string, log *logBuffer) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // 0700 otherwise
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path, log = filepath.Join(dir, "c.sock"), &logBuffer{}
	node := &fakeNode{verify: func(context.Context, func(done, total int64)) ([]volume.VerifyReport, error) { return nil, nil }}
	node.set("primary", "up-to-date")
	s, err := Listen(path, a, node, NewRing(0), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return path, log
}

// acts are what a caller tries, by name.
var acts = map[string]func(ctx context.Context, c *Client) error{
	"status":  func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err },
	"explain": func(ctx context.Context, c *Client) error { _, err := c.Explain(ctx, "crm"); return err },
	"events": func(ctx context.Context, c *Client) error {
		return c.Events(ctx, nil, func(EventLine) error { return nil })
	},
	"promote": func(ctx context.Context, c *Client) error { return c.Promote(ctx, "crm", PromoteRequest{}) },
	"demote":  func(ctx context.Context, c *Client) error { return c.Demote(ctx, "crm", DemoteRequest{}) },
	"reload":  func(ctx context.Context, c *Client) error { _, err := c.Reload(ctx); return err },
	"destroy": func(ctx context.Context, c *Client) error { return c.Destroy(ctx, "crm", DestroyRequest{}) },
	"verify": func(ctx context.Context, c *Client) error {
		_, err := c.Verify(ctx, "crm", VerifyRequest{}, func(Progress) {})
		return err
	},
	"wait": func(ctx context.Context, c *Client) error {
		return c.Wait(ctx, "crm", WaitRequest{For: WaitPrimary}, func(Progress) {})
	},
	"archives": func(ctx context.Context, c *Client) error { _, err := c.Archives(ctx, "crm"); return err },
	"restore": func(ctx context.Context, c *Client) error {
		return c.RestoreArchive(ctx, "crm", "1", func(Progress) {})
	},
}

// TestCaller is the other user: this very program, started again by as.
func TestCaller(t *testing.T) {
	path := os.Getenv("QRBD_TEST_CONTROL")
	if path == "" {
		t.Skip("started by other tests")
	}
	c := NewClient(path)
	out := map[string]string{}
	for _, name := range strings.Split(os.Getenv("QRBD_TEST_ACTS"), ",") {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		out[name] = "done"
		if err := acts[name](ctx, c); err != nil {
			out[name] = err.Error()
		}
		cancel()
	}
	json.NewEncoder(os.Stderr).Encode(out)
}

// as has a user try acts and returns what came of each.
func as(t *testing.T, path string, uid, gid uint32, groups []uint32, names ...string) map[string]string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCaller$") // a path that every user may use
	cmd.Env = append(os.Environ(), "QRBD_TEST_CONTROL="+path, "QRBD_TEST_ACTS="+strings.Join(names, ","))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("as uid %d: %v\n%s", uid, err, said.String())
	}
	var out map[string]string
	if err := json.Unmarshal(said.Bytes(), &out); err != nil {
		t.Fatalf("as uid %d: %v\n%s", uid, err, said.String())
	}
	return out
}

// TestWhoMay: real users try everything.
func TestWhoMay(t *testing.T) {
	reads := []string{"status", "explain", "events"}
	var all []string
	for name := range acts {
		all = append(all, name)
	}
	type user struct {
		name     string
		uid, gid uint32
		groups   []uint32
		may      []string // nil: not even connect
	}
	root := user{"root", 0, 0, nil, all}
	owner := func(may []string) user { return user{"the owner", ownerUID, 64999, nil, may} }
	operator := func(may []string) user { return user{"an operator", 64001, 64101, []uint32{operatorsGID}, may} }
	primary := func(may []string) user { return user{"an operator by primary group", 64002, operatorsGID, nil, may} }
	watcher := func(may []string) user { return user{"a watcher", 64003, 64103, []uint32{5, 6, watchersGID}, may} }
	both := func(may []string) user {
		return user{"an operator and watcher", 64004, watchersGID, []uint32{operatorsGID}, may}
	}
	var many []uint32 // more groups than fit at first
	for i := range uint32(300) {
		many = append(many, 70000+i)
	}
	joiner := func(may []string) user { return user{"of many groups", 64006, 64106, append(many, operatorsGID), may} }
	stranger := func(may []string) user { return user{"a stranger", 65534, 65534, nil, may} }
	none := []string{}
	for _, tt := range []struct {
		name   string
		access Access
		mode   os.FileMode
		gid    int
		users  []user
	}{
		{"nobody else", Access{}, 0o600, os.Getegid(), []user{root, operator(nil), stranger(nil)}},
		{"an owner", Access{Owner: Account{"owner", ownerUID}}, 0o600, os.Getegid(), []user{root, owner(all), operator(nil)}},
		{"a group", Access{Group: operators}, 0o660, operatorsGID, []user{root, operator(all), primary(all), joiner(all), watcher(nil), stranger(nil)}},
		{"readers", Access{Readers: watchers}, 0o660, watchersGID, []user{root, watcher(reads), operator(nil)}},
		{"a group and readers", Access{Group: operators, Readers: watchers}, 0o666, operatorsGID,
			[]user{root, operator(all), watcher(reads), both(all), joiner(all), stranger(none)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := guarded(t, tt.access)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != tt.mode || int(sys.Gid) != tt.gid {
				t.Errorf("the socket has mode %v, gid %d", st.Mode(), sys.Gid)
			}
			for _, u := range tt.users {
				for act, got := range as(t, path, u.uid, u.gid, u.groups, all...) {
					switch {
					case slices.Contains(u.may, act):
						if got != "done" {
							t.Errorf("%s: %s: %s", u.name, act, got)
						}
					case u.may == nil:
						if !strings.Contains(got, "may not be used by this user") {
							t.Errorf("%s: %s: %s, want no connection", u.name, act, got)
						}
					case len(u.may) == 0:
						if !strings.Contains(got, "this control socket is for root and members of the group operators (control_group); members of the group watchers (control_readers)") ||
							!strings.Contains(got, "user nobody (uid 65534) is none of them") {
							t.Errorf("%s: %s: %s", u.name, act, got)
						}
					default:
						if !strings.Contains(got, "(uid 64003) is in the group watchers (control_readers), which may read") ||
							tt.access.Group.given() && !strings.Contains(got, "is for root and members of the group operators (control_group)") {
							t.Errorf("%s: %s: %s", u.name, act, got)
						}
					}
				}
			}
		})
	}
}

// TestWhoAsked: every change of state is logged with the caller.
func TestWhoAsked(t *testing.T) {
	path, log := guarded(t, Access{Group: operators, Readers: watchers})
	as(t, path, 64001, operatorsGID, nil, "status", "promote", "reload", "verify", "restore", "wait")
	as(t, path, 64003, watchersGID, nil, "demote")
	for _, want := range []string{
		`msg="operation asked for" operation=promote volume=crm user=64001 uid=64001 pid=`,
		`msg="operation done" volume=crm operation=promote user=64001 uid=64001 pid=`,
		`msg="operation asked for" operation=reload volume="" user=64001`,
		`msg="operation asked for" operation=verify volume=crm user=64001`,
		`msg="operation asked for" operation=restore volume=crm user=64001`,
		`msg="operation refused: the user may only read" operation=demote volume=crm user=64003 uid=64003 pid=`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	for _, unwanted := range []string{"operation=status", "operation=wait"} {
		if strings.Contains(log.String(), unwanted) {
			t.Errorf("the log has %s", unwanted)
		}
	}
	if t.Failed() {
		t.Log(log)
	}
	// The pid is the caller's, and root has a name.
	if err := NewClient(path).Demote(t.Context(), "crm", DemoteRequest{}); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("operation=demote volume=crm user=root uid=0 pid=%d", os.Getpid()); !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %s:\n%s", want, log)
	}
}

// TestGuestsAreBounded: users without all rights cannot take the socket from those
// who have them.
func TestGuestsAreBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	path, _ := guarded(t, Access{Group: operators, Readers: watchers})
	l := dialAs(t, path, 64003, guestsMax+1)
	refused := 0
	for _, nc := range l[guestsMax:] {
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := nc.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d of one too many were refused", refused)
	}
	if _, err := NewClient(path).Status(t.Context()); err != nil {
		t.Errorf("root, while guests hold all that they may: %v", err)
	}
	for _, nc := range l {
		nc.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() { // the server notices
		if as(t, path, 64003, watchersGID, nil, "status")["status"] == "done" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("guests are kept out although all have left")
		}
	}
}

// dialAs connects n times as another user of the watchers. A thread of this process
// becomes that user, and ends with the goroutine that is locked to it.
func dialAs(t *testing.T, path string, uid, n int) (l []net.Conn) {
	t.Helper()
	done := make(chan error)
	go func() {
		done <- func() error {
			runtime.LockOSThread()
			if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, watchersGID, watchersGID, watchersGID); e != 0 {
				return e
			}
			if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			for range n {
				nc, err := net.Dial("unix", path)
				if err != nil {
					return err
				}
				l = append(l, nc)
				t.Cleanup(func() { nc.Close() })
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return l
}

// TestRefusalNamesTheWay: the text says which group is missing, or which key.
func TestRefusalNamesTheWay(t *testing.T) {
	for _, tt := range []struct {
		access Access
		right  right
		want   string
	}{
		{Access{Readers: watchers}, reading, "promote is for root only (control_group in the configuration names a group that may too)"},
		{Access{Group: operators, Readers: watchers}, reading, "promote is for root and members of the group operators (control_group)"},
		{Access{Group: operators}, nothing, "this control socket is for root and members of the group operators (control_group)"},
	} {
		err := tt.access.refusal(caller{uid: 64003, right: tt.right}, "promote")
		if body := bodyOf(err); body.Code != protocol.CodeNotAllowed.String() || !strings.Contains(body.Text, tt.want) {
			t.Errorf("%+v", body)
		}
	}
}
