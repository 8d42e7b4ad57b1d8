package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
)

// logMax is the size, bytes, from which on the file with what commands print is begun
// anew before the next one is started.
const logMax = 1 << 20

// tailMax bounds what is quoted of a command's output.
const tailMax = 512

// runner runs commands one at a time. What they and the programs that they leave behind
// print goes to a file: a pipe would end those that outlive the agent.
type runner struct {
	log string   // path
	env []string // beside the agent's own
}

// run executes a command without a shell, in a process group of its own; what is left of
// the group when the time is up, or ctx ends, is killed. What a command puts into the
// background, in a session of its own, goes on.
func (r *runner) run(ctx context.Context, what string, limit time.Duration, argv hook.Command, env ...string) error {
	out, err := r.open()
	if err != nil {
		return err
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("output of commands: %w", err)
	}
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), r.env...), append(env, "QRBD_EVENT="+what)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	name := strings.Join(argv, " ")
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s (%s) was interrupted: %w", what, name, ctx.Err())
	case timed.Err() != nil:
		return fmt.Errorf("%s (%s) did not end within %s and was killed", what, name, limit)
	case err == nil:
		return nil
	}
	text := ""
	if said := quote(out, from); said != "" {
		text = ": " + said
	}
	return fmt.Errorf("%s (%s): %w%s", what, name, err, text)
}

// open opens the file, anew if it has become large.
func (r *runner) open() (*os.File, error) {
	mode := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(r.log); err == nil && info.Size() > logMax {
		if err := os.Remove(r.log); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("output of commands: %w", err)
		}
	}
	f, err := os.OpenFile(r.log, mode, 0o600)
	if err != nil {
		return nil, fmt.Errorf("output of commands: %w", err)
	}
	return f, nil
}

// quote returns the end of what was printed since from, on one line.
func quote(f *os.File, from int64) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from = max(from, info.Size()-tailMax)
	b := make([]byte, tailMax)
	n, _ := f.ReadAt(b, from) // what cannot be read is not quoted
	return strings.Join(strings.Fields(string(b[:n])), " ")
}
