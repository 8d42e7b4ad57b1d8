package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say how a program is started.
type Options struct {
	Name string   // for messages; empty: the base name of Args[0]
	Args []string // program and arguments; required
	Dir  string   // working directory; empty: the caller's
	Env  []string // added to the caller's environment
	Log  string   // file that gets stdout and stderr, appended; empty: discarded
	User *User    // nil: the caller's
}

// User is a numeric identity to run a program as.
type User struct{ UID, GID uint32 }

// Process is a program that was started. Its methods are safe for concurrent use.
type Process struct {
	name  string
	log   string
	cmd   *exec.Cmd
	ended chan struct{} // closed after err is set
	err   error         // how it ended
}

// Start starts a program and returns at once.
func Start(o Options) (*Process, error) {
	if len(o.Args) == 0 {
		return nil, errors.New("start a process: no program named")
	}
	p := &Process{name: o.Name, log: o.Log, ended: make(chan struct{})}
	if p.name == "" {
		p.name = filepath.Base(o.Args[0])
	}
	p.cmd = exec.Command(o.Args[0], o.Args[1:]...)
	p.cmd.Dir = o.Dir
	p.cmd.Env = append(os.Environ(), o.Env...)
	p.cmd.SysProcAttr = attributes(o.User)
	if o.Log != "" {
		f, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("log of %s: %w", p.name, err)
		}
		defer f.Close()
		p.cmd.Stdout, p.cmd.Stderr = f, f
	}
	if err := Spawn(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// spawner runs functions on one thread that never ends: the parent-death signal
// comes when the parent's thread dies, not the process (prctl(2)).
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Spawn starts cmd as Start does, for a caller that needs its pipes: in a group of
// its own, and dying with the caller. The caller waits for its end.
func Spawn(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = attributes(nil)
	}
	started := make(chan error)
	spawner() <- func() { started <- cmd.Start() }
	return <-started
}

func attributes(u *User) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if u != nil {
		a.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	return a
}

// Run runs a program to its end and returns its output, stdout and stderr
// together. A non-zero exit is an error that carries the output's end.
func Run(ctx context.Context, o Options) (string, error) {
	cmd := exec.CommandContext(ctx, o.Args[0], o.Args[1:]...)
	cmd.Dir = o.Dir
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.SysProcAttr = attributes(o.User)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := Spawn(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", strings.Join(o.Args, " "), err, tail(out.String(), 15))
	}
	return out.String(), nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended and was waited for.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err tells how the process ended. REQUIRES: Ended is closed.
func (p *Process) Err() error {
	if p.err == nil {
		return fmt.Errorf("%s ended by itself%s", p.name, p.lastWords())
	}
	return fmt.Errorf("%s ended: %w%s", p.name, p.err, p.lastWords())
}

// lastWords returns the end of the log, for error messages.
func (p *Process) lastWords() string {
	if p.log == "" {
		return ""
	}
	data, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	return "\n" + tail(string(data), 15)
}

// Stop asks the process to end with sig, and kills it and its descendants if it
// has not after grace. It returns an error if it had to kill.
func (p *Process) Stop(sig syscall.Signal, grace time.Duration) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s (pid %d): %w", p.name, p.PID(), err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(grace):
	}
	Kill(p)
	return fmt.Errorf("%s (pid %d) did not end within %v of %v and was killed", p.name, p.PID(), grace, sig)
}

// Kill ends the processes and all their descendants with SIGKILL, as near to one
// moment as user space can, and returns when they are gone; or after killWait, since
// a process that sleeps in the kernel on a dead file system dies only when that is
// taken down. Processes that ended before and nil are passed over.
//
// The leaders are stopped first, so that none can start another child between the
// look at the process table and the blow. A database server's workers lead groups
// of their own, which is why a signal to the group would miss them.
func Kill(ps ...*Process) {
	var leaders []*Process
	for _, p := range ps {
		if p == nil {
			continue
		}
		select {
		case <-p.ended: // its id may be another's by now
		default:
			leaders = append(leaders, p)
		}
	}
	var all []int
	for _, p := range leaders {
		_ = p.cmd.Process.Signal(syscall.SIGSTOP) // it may end meanwhile: then there is nothing to stop
		all = append(all, p.PID())
	}
	for _, p := range leaders {
		all = append(all, Descendants(p.PID())...)
	}
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	deadline := time.After(killWait)
	for _, p := range leaders {
		select {
		case <-p.ended:
		case <-deadline:
			return
		}
	}
	// Orphans are reaped by init: their end can only be looked for.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(all, func(pid int) bool { return !gone(pid) }) {
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
	}
}

// killWait bounds Kill.
const killWait = 5 * time.Second

// Descendants returns the ids of the children of pid, their children and so on.
func Descendants(pid int) []int {
	children := map[int][]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		id, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if fields := stat(id); len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], id)
		}
	}
	found := slices.Clone(children[pid])
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}

// gone reports whether a process has ended: no entry, or a zombie.
func gone(pid int) bool {
	fields := stat(pid)
	return len(fields) == 0 || fields[0] == "Z" || fields[0] == "X"
}

// stat returns the fields of /proc/PID/stat that follow the command's name, which
// is in parentheses and may hold anything: state, parent, ... Source: proc(5).
func stat(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	text := string(data)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
