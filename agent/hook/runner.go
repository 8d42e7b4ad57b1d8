package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// ErrClosed: the agent is stopping.
var ErrClosed = errors.New("the agent is stopping")

// Runner runs a node's commands. Safe for concurrent use.
type Runner struct {
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slots  chan struct{} // for Fire; capacity runningMax
	asked  chan struct{} // for Ask, so that commands that hang do not delay it
	fences chan struct{} // for Ask of fence-peer: clients wait for it

	mu sync.Mutex
	// Guarded by mu.
	queues map[string][]job // by volume; present while a goroutine empties it
	closed bool
	ended  sync.WaitGroup
}

type job struct {
	set   Set
	event Event
}

// NewRunner returns a runner.
func NewRunner(log *slog.Logger) *Runner {
	r := &Runner{log: log, slots: make(chan struct{}, runningMax), asked: make(chan struct{}, runningMax), fences: make(chan struct{}, fencingMax), queues: map[string][]job{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Fire has the event's command run, if one is configured, after those of the
// volume's earlier events. It does not wait.
func (r *Runner) Fire(s Set, e Event) {
	if !s.Has(e.Name) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	q, running := r.queues[e.Volume]
	if len(q) >= queueMax {
		r.log.Warn("hook dropped: too many wait", "volume", e.Volume, "event", e.Name, "waiting", len(q))
		return
	}
	r.queues[e.Volume] = append(q, job{s, e})
	if !running {
		r.ended.Go(func() { r.empty(e.Volume) })
	}
}

// empty runs a volume's commands until none waits.
func (r *Runner) empty(volume string) {
	for {
		r.mu.Lock()
		q := r.queues[volume]
		if len(q) == 0 || r.closed {
			delete(r.queues, volume)
			r.mu.Unlock()
			return
		}
		j := q[0]
		r.queues[volume] = q[1:]
		r.mu.Unlock()
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			continue
		}
		r.run(r.ctx, j) // it has logged what went wrong
		<-r.slots
	}
}

// Ask runs the event's command and returns nil if it exits with 0 or none is
// configured. It ends with the command's time limit or ctx, which are errors.
func (r *Runner) Ask(ctx context.Context, s Set, e Event) error {
	if !s.Has(e.Name) {
		return nil
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	r.ended.Add(1)
	r.mu.Unlock()
	defer r.ended.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	wait, done := context.WithTimeout(ctx, s.timeout())
	defer done()
	slots := r.asked
	if e.Name == FencePeer {
		slots = r.fences
	}
	select {
	case slots <- struct{}{}:
	case <-wait.Done():
		return fmt.Errorf("hook %s: too many are running: %w", e.Name, wait.Err())
	}
	defer func() { <-slots }()
	return r.run(ctx, job{s, e})
}

func (s Set) timeout() time.Duration {
	if s.Timeout == 0 {
		return DefaultTimeout
	}
	return s.Timeout
}

// run executes a command and logs its end.
func (r *Runner) run(ctx context.Context, j job) error {
	argv, limit := j.set.Commands[j.event.Name], j.set.timeout()
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := &tail{max: outputMax}
	cmd := exec.CommandContext(timed, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), j.event.environ()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay // a grandchild that left the group may hold the pipe
	start := time.Now()
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("hook %s (%s): %w", j.event.Name, argv[0], ErrClosed)
	case timed.Err() != nil:
		err = fmt.Errorf("hook %s (%s) did not end within %v and was killed", j.event.Name, argv[0], limit)
	case err != nil:
		err = fmt.Errorf("hook %s (%s): %w", j.event.Name, argv[0], err)
	}
	attrs := []any{"volume", j.event.Volume, "event", j.event.Name, "command", argv[0], "took", time.Since(start).Round(time.Millisecond)}
	if j.event.Peer != "" {
		attrs = append(attrs, "peer", j.event.Peer)
	}
	if text := out.String(); text != "" {
		attrs = append(attrs, "output", text)
	}
	if j.event.Name == FencePeer && AnswerOf(err).Known() {
		r.log.Info("hook ran", append(attrs, "answer", AnswerOf(err).String())...)
		return err
	}
	if err != nil {
		r.log.Warn("hook failed", append(attrs, "err", err)...)
		return err
	}
	r.log.Info("hook ran", attrs...)
	return nil
}

// Close kills what runs, forgets what waits, and returns when all has ended or
// with ctx.
func (r *Runner) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	done := make(chan struct{})
	go func() {
		r.ended.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hooks: %w", ctx.Err())
	}
}

// tail keeps the end of what is written to it. Used by one goroutine at a time.
type tail struct {
	max  int
	b    []byte
	lost bool
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - t.max; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
		t.lost = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t.lost {
		return "… " + string(t.b)
	}
	return string(t.b)
}
