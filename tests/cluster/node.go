package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// Node is one machine: a directory with a configuration, an identity and
// stores, and an agent that runs or not. Not safe for concurrent use, except
// Kill, Volume and the command methods.
type Node struct {
	Name, Dir, ConfigPath string
	Key                   string // public
	Program               Program
	Config                Config // as written; see Rewrite
	Env                   []string
	Build                 string // path of another build to run as agent; "": Program's

	c       *Cluster
	t       testing.TB
	logPath string
	cmd     *exec.Cmd     // nil: not running
	exited  chan struct{} // closed when cmd has ended
	paused  bool
}

// introduce adds the other nodes as peers, over a transport and
// with a compression.
func (n *Node) introduce(all []*Node, transport, compression string) {
	for _, p := range all {
		if p != n {
			n.Config.Peers = append(n.Config.Peers, PeerConfig{Name: p.Name, Address: p.Config.Listen, Key: p.Key, Transport: transport, Compression: compression})
		}
	}
}

// Rewrite changes the configuration file; a running agent does not notice.
func (n *Node) Rewrite(change func(c *Config)) {
	n.t.Helper()
	change(&n.Config)
	n.Config.write(n.t, n.ConfigPath)
}

func (n *Node) identity() string {
	n.t.Helper()
	var id struct{ Name, Key string }
	if err := json.Unmarshal([]byte(n.Must("identity", "--json")), &id); err != nil || id.Name != n.Name || id.Key == "" {
		n.t.Fatalf("identity of %s: %+v, %v", n.Name, id, err)
	}
	return id.Key
}

// Backing returns the path of the volume's backing file.
func (n *Node) Backing(volume string) string { return n.Config.Volume(volume).Backing }

// Socket returns the path of the volume's NBD socket.
func (n *Node) Socket(volume string) string {
	return strings.TrimPrefix(n.Config.Volume(volume).Export, "unix:")
}

// URI returns the volume's NBD address, as other programs write it.
func (n *Node) URI(volume string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", volume, n.Socket(volume))
}

// Start starts the agent and waits until it answers.
func (n *Node) Start() {
	n.t.Helper()
	n.StartOnly()
	deadline := time.Now().Add(Timeout)
	for {
		_, _, code := n.Run("status", "--json")
		if code == 0 {
			return
		}
		select {
		case <-n.exited:
			n.t.Fatalf("agent of %s ended: %v\n%s", n.Name, n.cmd.ProcessState, tail(n.logPath, 30))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("agent of %s does not answer", n.Name)
		}
	}
}

// StartOnly starts the agent and does not wait for it.
func (n *Node) StartOnly() {
	n.t.Helper()
	if n.Running() {
		n.t.Fatalf("%s is already running", n.Name)
	}
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintf(log, "--- agent started %s\n", time.Now().Format("15:04:05.000"))
	program := n.Build
	if program == "" {
		program = binary(n.t, n.Program.pkg)
	}
	argv := []string{program, n.Program.arg, "--config", n.ConfigPath}
	if n.c.links != nil {
		argv = append(n.c.links.prefix(n.Name), argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), n.Env...)
	cmd.Dir = n.Dir
	if err := process.Spawn(cmd); err != nil {
		n.t.Fatalf("start agent of %s: %v", n.Name, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(exited)
	}()
	n.cmd, n.exited, n.paused = cmd, exited, false
}

// Running tells whether the agent was started and has not ended.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Pid returns the running agent's process id.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Kill ends the agent at once, as a crash does, and waits until it is gone.
func (n *Node) Kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.exited
}

// Stop ends the agent in order (SIGTERM) and fails if it does not exit with 0.
func (n *Node) Stop() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	if !n.Exited(Timeout) {
		n.t.Fatalf("%s did not stop within %v of SIGTERM", n.Name, Timeout)
	}
	if code := n.ExitCode(); code != 0 {
		n.t.Fatalf("%s: exit code %d after SIGTERM", n.Name, code)
	}
}

// Exited waits until the agent has ended, at most d.
func (n *Node) Exited(d time.Duration) bool {
	select {
	case <-n.exited:
		return true
	case <-time.After(d):
		return false
	}
}

// ExitCode returns the ended agent's exit code, -1 when a signal ended it.
func (n *Node) ExitCode() int { return n.cmd.ProcessState.ExitCode() }

// Pause stops the agent's execution (SIGSTOP); Resume lets it go on.
func (n *Node) Pause() {
	n.t.Helper()
	n.signal(syscall.SIGSTOP)
	n.paused = true
}

// Resume lets a paused agent go on.
func (n *Node) Resume() {
	n.t.Helper()
	n.signal(syscall.SIGCONT)
	n.paused = false
}

// Argv returns the command that runs another one on the node's side of the links.
func (n *Node) Argv(args ...string) []string {
	if n.c.links == nil {
		return args
	}
	return append(n.c.links.prefix(n.Name), args...)
}

// Address returns the node's IP address. REQUIRES Options.Links.
func (n *Node) Address() string { return n.c.links.ip(n.c.links.index(n.Name)) }

// SignalAll sends a signal to every process of the node, whoever started it. REQUIRES
// Options.Links. SIGKILL is the death of the host: it is repeated until nothing is left,
// but what the kernel does not let go.
func (n *Node) SignalAll(s syscall.Signal) {
	n.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids, err := n.c.links.pids(n.Name)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				n.t.Fatalf("%v to process %d of %s: %v", s, pid, n.Name, err)
			}
		}
		if s != syscall.SIGKILL || len(pids) == 0 || time.Now().After(end) {
			break
		}
	}
	switch s {
	case syscall.SIGKILL:
		if n.cmd != nil {
			<-n.exited
		}
	case syscall.SIGSTOP:
		n.paused = true
	case syscall.SIGCONT:
		n.paused = false
	}
}

func (n *Node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Fatalf("%v to %s: %v", s, n.Name, err)
	}
}

// end makes sure that the agent is gone.
func (n *Node) end() {
	if n.Running() {
		_ = n.cmd.Process.Kill() // it may have ended by itself meanwhile
		<-n.exited
	}
}

// Log returns all that the agent has logged.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.logPath)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Resident returns the agent's resident memory and its peak, bytes.
func (n *Node) Resident() (now, peak int64) {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = kib << 10
		case "VmHWM:":
			peak = kib << 10
		}
	}
	return now, peak
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Faults makes the volume's store, on an agent whose stores do, obey the script;
// "": it works.
func (n *Node) Faults(volume, script string) {
	n.t.Helper()
	path := n.Backing(volume) + ".faults"
	if err := os.WriteFile(path+".new", []byte(script), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}
