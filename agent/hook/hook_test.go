package hook

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logBuffer is a log that a test reads.
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

func newRunner(t *testing.T) (*Runner, *logBuffer) {
	log := &logBuffer{}
	r := NewRunner(slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return r, log
}

func sh(script string) Command { return Command{"/bin/sh", "-c", script} }

func set(n Name, c Command) Set { return Set{Commands: map[Name]Command{n: c}} }

// wait waits for a file, which a real process writes.
func wait(t *testing.T, path string) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && bytes.HasSuffix(b, []byte("\n")) {
			return string(b)
		}
	}
	t.Fatalf("%s was not written", path)
	return ""
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		line string
		want Command
		bad  bool
	}{
		{"", nil, false},
		{"  /bin/x  a\tb ", Command{"/bin/x", "a", "b"}, false},
		{`x 'a b' "c d" e\ f`, Command{"x", "a b", "c d", "e f"}, false},
		{`x '' ""`, Command{"x", "", ""}, false},
		{`x a'b'c "q\"q" "\n" '$HOME'`, Command{"x", "abc", `q"q`, `\n`, "$HOME"}, false},
		{`x 'a`, nil, true},
		{`x "a`, nil, true},
		{`x a\`, nil, true},
	} {
		got, err := Split(c.line)
		if (err != nil) != c.bad || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v", c.line, got, err)
		}
	}
}

func TestVariables(t *testing.T) {
	r, log := newRunner(t)
	out := filepath.Join(t.TempDir(), "out")
	e := Event{Name: SplitBrain, Volume: "crm", Node: "alpha", Peer: "beta", Role: "primary", Disk: "up-to-date", Generation: "9f", Old: "a", New: "b",
		Reason: "both wrote; $(reboot)", Config: "/etc/qrbd/qrbd.toml"}
	r.Fire(set(SplitBrain, sh(`env | grep ^QRBD_ | sort > `+out+`.tmp; mv `+out+`.tmp `+out)), e)
	want := "QRBD_CONFIG=/etc/qrbd/qrbd.toml\nQRBD_DISK=up-to-date\nQRBD_EVENT=split-brain\nQRBD_GENERATION=9f\nQRBD_NEW=b\nQRBD_NODE=alpha\nQRBD_OLD=a\n" +
		"QRBD_PEER=beta\nQRBD_REASON=both wrote; $(reboot)\nQRBD_ROLE=primary\nQRBD_VOLUME=crm\n"
	if got := wait(t, out); got != want {
		t.Errorf("got\n%s", got)
	}
	if err := r.Ask(context.Background(), set(OutOfSync, sh("echo heard; exit 0")), Event{Name: OutOfSync}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), `output="heard\n"`) {
		t.Errorf("the output is not logged: %s", log)
	}
}

// TestOrder: one volume's commands run one after the other, in order.
func TestOrder(t *testing.T) {
	r, _ := newRunner(t)
	out := filepath.Join(t.TempDir(), "out")
	for i := range 5 {
		e := Event{Name: PeerLost, Volume: "crm", Reason: fmt.Sprint(i)}
		r.Fire(set(PeerLost, sh(`sleep 0.0$((5-QRBD_REASON)); echo -n $QRBD_REASON >> `+out+`; [ $QRBD_REASON != 4 ] || echo >> `+out)), e)
	}
	if got := wait(t, out); got != "01234\n" {
		t.Errorf("got %q", got)
	}
}

func TestAsk(t *testing.T) {
	r, log := newRunner(t)
	ask := func(c Command, limit time.Duration) error {
		s := set(BeforeResyncTarget, c)
		s.Timeout = limit
		return r.Ask(context.Background(), s, Event{Name: BeforeResyncTarget, Volume: "crm"})
	}
	if err := ask(sh("exit 0"), 0); err != nil {
		t.Error(err)
	}
	if err := ask(sh("echo no; exit 3"), 0); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("exit 3: %v", err)
	}
	if err := ask(Command{"/does/not/exist"}, 0); err == nil {
		t.Error("a program that is not there is an answer")
	}
	if err := r.Ask(context.Background(), Set{}, Event{Name: BeforeResyncTarget}); err != nil {
		t.Errorf("no command: %v", err)
	}
	start := time.Now()
	if err := ask(sh("sleep 60 & sleep 60"), 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("a command that hangs: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if !strings.Contains(log.String(), "hook failed") {
		t.Error("a failure is not logged")
	}
}

// TestBounds: commands that hang hold up nobody, more events than the queue has room
// for are dropped, and Close ends all of it.
func TestBounds(t *testing.T) {
	r, log := newRunner(t)
	hang := sh("sleep 60")
	start := time.Now()
	for v := range 8 {
		for range queueMax + 10 {
			r.Fire(set(PeerLost, hang), Event{Name: PeerLost, Volume: fmt.Sprint(v)})
		}
	}
	if err := r.Ask(context.Background(), set(BeforeResyncTarget, sh("true")), Event{Name: BeforeResyncTarget}); err != nil {
		t.Errorf("a question behind commands that hang: %v", err)
	}
	if !strings.Contains(log.String(), "too many wait") {
		t.Error("nothing was dropped")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := r.Ask(context.Background(), set(BeforeResyncTarget, sh("true")), Event{Name: BeforeResyncTarget}); err != ErrClosed {
		t.Errorf("asked after the end: %v", err)
	}
	r.Fire(set(PeerLost, hang), Event{Name: PeerLost})
}

func TestTail(t *testing.T) {
	w := &tail{max: 5}
	for _, p := range []string{"ab", "cdef", "g"} {
		w.Write([]byte(p))
	}
	if got := w.String(); got != "… cdefg" {
		t.Errorf("%q", got)
	}
}
