package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/attach/fusefile"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/lasting"
)

// HelperOptions are what a helper process is told.
type HelperOptions struct {
	State    string        // the node's state directory
	Volume   string        // the volume's name
	Socket   string        // path of the agent's socket for attached volumes
	DeadTime time.Duration // see lasting.Options
	Log      *slog.Logger
}

// HelperState is what a helper tells of itself.
type HelperState struct {
	State    string    `json:"state"` // connected, waiting, dead
	Since    time.Time `json:"since"`
	Reason   string    `json:"reason,omitempty"`
	Sessions int       `json:"sessions"` // connections to the agent so far
	// PauseMS is how long requests waited at the last change of the agent, the longest
	// such wait is PauseMaxMS.
	PauseMS    int64 `json:"pause_ms"`
	PauseMaxMS int64 `json:"pause_max_ms"`
}

// helperConns is how many connections a helper has to the agent.
const helperConns = 4

// ExportName is the name under which the agent serves an attached volume.
func ExportName(volume, token string) string { return volume + "#" + token }

// RunHelper serves a volume as a file until somebody unmounts it. ready is called with
// nil or the reason once it is clear whether it does. REQUIRES: PrepareMemory was called.
func RunHelper(ctx context.Context, o HelperOptions, ready func(error)) error {
	d, srv, err := startHelper(ctx, o)
	ready(err)
	if err != nil {
		return err
	}
	// The device's user ends this process by detaching. What ends others, a log-out or
	// a shutdown that has not unmounted yet, must not take the disk away from a file system.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	o.Log.Info("serving", "volume", o.Volume, "file", srv.Path(), "bytes", d.Size())
	srv.Wait()
	o.Log.Info("unmounted", "volume", o.Volume)
	return d.Close()
}

func startHelper(ctx context.Context, o HelperOptions) (*lasting.Disk, *fusefile.Server, error) {
	r, err := Load(o.State, o.Volume)
	if err != nil {
		return nil, nil, err
	}
	told := newTeller(helperPath(o.State, o.Volume), o.Log)
	d, err := lasting.Open(ctx, lasting.Options{
		Dial:     func(ctx context.Context) (lasting.Conn, error) { return dialAgent(ctx, o.Socket, r) },
		Conns:    helperConns,
		DeadTime: o.DeadTime,
		Log:      o.Log.With("volume", o.Volume),
		OnState:  told.tell,
	})
	if err != nil {
		return nil, nil, readable(err)
	}
	srv, err := fusefile.Mount(r.Mount, "qrbd:"+o.Volume, d)
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return d, srv, nil
}

func dialAgent(ctx context.Context, socket string, r Record) (lasting.Conn, error) {
	c, err := client.Dial(ctx, "unix:"+socket, ExportName(r.Volume, r.Token), client.Options{Simple: true})
	var refused *client.OptionError
	if errors.As(err, &refused) && refused.Reply == nbd.RepErrUnknown {
		return nil, fmt.Errorf("%w: the agent cannot vouch that the data are still those that the device was attached to", lasting.ErrGone)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// readable is what an operator is told: the agent's own words where there are some.
func readable(err error) error {
	var refused *client.OptionError
	if errors.As(err, &refused) && refused.Text != "" {
		return errors.New(refused.Text)
	}
	return err
}

// teller writes the state to a file, the newest only, and never holds anybody up: the
// file's disk may be slow.
type teller struct {
	path   string
	log    *slog.Logger
	newest chan HelperState
	last   HelperState // Owner: who calls tell, one at a time
}

func newTeller(path string, log *slog.Logger) *teller {
	t := &teller{path: path, log: log, newest: make(chan HelperState, 1)}
	go func() { // ends with the process
		for s := range t.newest {
			if err := WriteJSON(t.path, s); err != nil {
				t.log.Warn("the helper's state is not written", "err", err)
			}
		}
	}()
	return t
}

func (t *teller) tell(s lasting.State) {
	t.last.State, t.last.Since, t.last.Reason = s.Word, time.Now(), s.Why
	t.last.Sessions = max(t.last.Sessions, s.Sessions)
	if s.Word == lasting.Connected && s.Sessions > 1 {
		t.last.PauseMS = s.Pause.Milliseconds()
		t.last.PauseMaxMS = max(t.last.PauseMaxMS, t.last.PauseMS)
	}
	select {
	case <-t.newest:
	default:
	}
	t.newest <- t.last
}

// stageEnv marks the second stage of a process.
const stageEnv = "QRBD_IO_FLUSHER"

// PrepareMemory makes this process safe to have a file system's disk depend on: see the
// package's description. It starts the program again, under the same process id, since
// threads that run already cannot be reached; so it is called first. What cannot be had is
// reported by the second run, and is no reason to stop.
//
// The name begins with "@", which tells systemd's last round of killing at shutdown to
// leave the process to those who unmount. Source: systemd, "Storage Daemons for the Root
// File System".
func PrepareMemory(args []string) error {
	if os.Getenv(stageEnv) == "" {
		mark := "set"
		if err := BecomeFlusher(); err != nil {
			mark = err.Error()
		}
		path, err := os.Executable()
		if err != nil {
			return fmt.Errorf("starting again: %w", err)
		}
		return syscall.Exec(path, append([]string{"@qrbd"}, args[1:]...), append(os.Environ(), stageEnv+"="+mark))
	}
	var errs []error
	if mark := os.Getenv(stageEnv); mark != "set" {
		errs = append(errs, fmt.Errorf("becoming an IO flusher: %s", mark))
	}
	os.Unsetenv(stageEnv)
	errs = append(errs, LockMemory())
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		errs = append(errs, fmt.Errorf("hiding from the out-of-memory killer: %w", err))
	}
	return errors.Join(errs...)
}

// BecomeFlusher makes the calling thread, which the goroutine keeps from here on, an I/O
// flusher, and with it the program that it becomes by execve. It takes CAP_SYS_RESOURCE.
func BecomeFlusher() error {
	runtime.LockOSThread()
	return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
}

// LockMemory keeps the pages of this process in memory once they were touched.
func LockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	return nil
}
