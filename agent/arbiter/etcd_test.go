package arbiter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// server is an etcd in a process of its own.
type server struct {
	cmd  *exec.Cmd
	args []string
	url  string
}

// startServer starts Debian's etcd, or skips the test.
func startServer(t *testing.T) *server {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("skipped: needs etcd (package etcd-server)")
	}
	s := &server{url: "http://" + freeAddress(t)}
	peer := "http://" + freeAddress(t)
	s.args = []string{path, "--data-dir", t.TempDir(), "--listen-client-urls", s.url, "--advertise-client-urls", s.url, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--heartbeat-interval", "50", "--election-timeout", "500"}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	_ = s.cmd.Wait()         // how is of no interest
}

// answers waits until the store does.
func answers(t *testing.T, e *Etcd) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		ctx, done := context.WithTimeout(t.Context(), time.Second)
		_, _, err = e.Load(ctx)
		done()
		if err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestEtcd: a real server, also one that is killed, and one that does not answer.
func TestEtcd(t *testing.T) {
	s := startServer(t)
	e, err := OpenEtcd(&Settings{Endpoints: []string{s.url}, Prefix: "/qrbd"}, "crm")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	answers(t, e)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if r, rev, err := e.Load(ctx); err != nil || rev != 0 || r != (Record{}) {
		t.Fatalf("%+v at %d, %v", r, rev, err)
	}
	first := Record{ID: 5, Volume: "aa", Name: "crm", Holder: "alpha", Term: 1 << 63, Voted: 1<<64 - 1, Beat: 1}
	rev, ok, err := e.Swap(ctx, 0, first)
	if err != nil || !ok || rev == 0 {
		t.Fatal(rev, ok, err)
	}
	if _, ok, err := e.Swap(ctx, 0, first); err != nil || ok {
		t.Errorf("made twice: %v, %v", ok, err)
	}
	if r, at, err := e.Load(ctx); err != nil || at != rev || r != first {
		t.Errorf("%+v at %d, %v", r, at, err)
	}

	t.Log("of many that replace one revision, one does")
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			r := first
			r.Holder = fmt.Sprint(i)
			if _, ok, err := e.Swap(ctx, rev, r); err != nil {
				t.Error(err)
			} else if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d have", won.Load())
	}
	_, at, err := e.Load(ctx)
	if err != nil || at <= rev {
		t.Fatal(at, err)
	}

	t.Log("a server that stands still")
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	short, done := context.WithTimeout(ctx, 300*time.Millisecond)
	began := time.Now()
	if _, _, err := e.Swap(short, at, first); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	done()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	answers(t, e)
	kept, at, err := e.Load(ctx)
	if err != nil { // it may have been done
		t.Fatal(err)
	}

	t.Log("a server that is killed, and comes back")
	s.kill()
	short, done = context.WithTimeout(ctx, 300*time.Millisecond)
	if _, _, err := e.Load(short); err == nil {
		t.Error("a dead server answers")
	}
	done()
	s.start(t)
	answers(t, e)
	if r, again, err := e.Load(ctx); err != nil || again != at || r != kept {
		t.Errorf("%+v at %d, %v; want %+v at %d", r, again, err, kept, at)
	}

	t.Log("something else under the key")
	if _, err := e.client.Put(ctx, e.key, "not a vote"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Load(ctx); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
}

func TestSettings(t *testing.T) {
	for name, s := range map[string]Settings{
		"no such ca":          {Endpoints: []string{"https://127.0.0.1:1"}, CA: "/no/such"},
		"no such certificate": {Endpoints: []string{"https://127.0.0.1:1"}, Cert: "/no/such", Key: "/no/such"},
		"no such password":    {Endpoints: []string{"http://127.0.0.1:1"}, Username: "qrbd", Password: "/no/such"},
	} {
		if _, err := OpenEtcd(&s, "crm"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
