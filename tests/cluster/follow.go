package cluster

import (
	"bufio"
	"os/exec"
	"strings"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// Follower is a command that prints lines as they happen.
type Follower struct {
	n     *Node
	cmd   *exec.Cmd
	lines chan string // closed at the command's end
}

// Follow starts a command that runs until the test ends.
func (n *Node) Follow(args ...string) *Follower {
	n.t.Helper()
	cmd := exec.Command(binary(n.t, Qrbd.pkg), append(args, "--config", n.ConfigPath)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := process.Spawn(cmd); err != nil {
		n.t.Fatalf("%s: %v: %v", n.Name, args, err)
	}
	f := &Follower{n: n, cmd: cmd, lines: make(chan string, 10_000)} // far more than a test makes
	go func() {
		defer close(f.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			f.lines <- s.Text()
		}
	}()
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended with its agent
		for range f.lines {
		}
		_ = cmd.Wait() // killed
	})
	return f
}

// Until hands line after line to ok until it returns true.
func (f *Follower) Until(limit time.Duration, ok func(line string) bool) {
	f.n.t.Helper()
	var seen []string
	deadline := time.After(limit)
	for {
		select {
		case line, open := <-f.lines:
			if !open {
				f.n.t.Fatalf("%s: %v ended after:\n%s", f.n.Name, f.cmd.Args, strings.Join(seen, "\n"))
			}
			if seen = append(seen, line); ok(line) {
				return
			}
		case <-deadline:
			f.n.t.Fatalf("%s: %v did not print what is waited for within %v, but:\n%s", f.n.Name, f.cmd.Args, limit, strings.Join(seen, "\n"))
		}
	}
}
