package readme

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// stepTime bounds a block: the longest makes a file system on a busy machine.
const stepTime = 60 * time.Second

// host is a machine of the walk: namespaces with a shell in them.
type host struct {
	t     testing.TB
	name  string
	netns string
	disk  string // directory of what outlives the host: etc, var, log
	qrbd  string // the program
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // of the shell's output, to its end
	loops []string    // loop devices that it may have left
}

// boot starts the host. The shell's errors and output are one stream, and its
// first failing command ends it.
func (h *host) boot() {
	h.t.Helper()
	setup := fmt.Sprintf(`set -e
mkdir -p /dev/qrbd
for d in /run /srv /usr/local/bin /var/lib /dev/qrbd; do mount -t tmpfs tmpfs $d; done
mkdir /var/lib/qrbd
mount --bind %[1]s/var /var/lib/qrbd
mount --bind %[1]s/etc /etc
ln -s %[2]s /usr/local/bin/qrbd
PATH=/usr/local/bin:$PATH
unset QRBD_CONFIG
cd /
`, h.disk, h.qrbd)
	cmd := exec.Command("ip", "netns", "exec", h.netns,
		"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "bash")
	// A signal to the test's group does not reach it: the host ends with its shell,
	// and that with its input, also when the test process is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		h.t.Fatalf("%s does not start: %v", h.name, err)
	}
	h.cmd, h.in, h.lines = cmd, in, make(chan string, 1000)
	go func(lines chan<- string) {
		defer out.Close()
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}(h.lines)
	h.run(setup)
}

// die ends every process on the host at once, and removes what of it the kernel
// keeps. It may be called again.
//
// Only the shell, the process namespace's init, is killed: the kernel takes the
// others along, and unshare, which waits for that, is the last in the mount
// namespace. Were it the helper of an attached volume, the kernel would unmount the
// file system in its exit and wait there for an answer that only the helper could give.
func (h *host) die() {
	if h.cmd == nil {
		return
	}
	if pids := process.Descendants(h.cmd.Process.Pid); len(pids) > 0 {
		_ = syscall.Kill(pids[0], syscall.SIGKILL) // children come first
	}
	_ = h.in.Close()
	ended := make(chan struct{})
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait() // the shell was killed
		close(ended)
	}(h.cmd)
	h.cmd = nil
	for range h.lines {
	}
	select {
	case <-ended:
	case <-time.After(stepTime):
		h.t.Errorf("%s is not dead after %v", h.name, stepTime)
	}
	for _, loop := range h.loops {
		_ = exec.Command("losetup", "--detach", loop).Run() // it may have been detached by a step
	}
	h.loops = nil
}

// run feeds text to the shell and returns what it printed, once every command of
// it has succeeded.
func (h *host) run(text string) string {
	h.t.Helper()
	const done = "@@ done @@"
	if _, err := io.WriteString(h.in, text+"\necho '"+done+"'\n"); err != nil {
		h.t.Fatalf("%s: its shell has ended: %v", h.name, err)
	}
	var out strings.Builder
	end := time.After(stepTime)
	for {
		select {
		case line, more := <-h.lines:
			switch {
			case line == done:
				return out.String()
			case !more:
				h.t.Fatalf("on %s a command failed:\n%s\nIt printed:\n%s\nThe agent:\n%s", h.name, text, out.String(), h.agentLog())
			}
			out.WriteString(line + "\n")
		case <-end:
			h.t.Fatalf("on %s, not done after %v:\n%s\nIt printed:\n%s\nThe agent:\n%s", h.name, stepTime, text, out.String(), h.agentLog())
		}
	}
}

// do runs a block of the README. What it would type into a shell of its own, the
// agent, runs in the background, in no job of this shell.
func (h *host) do(text string) string {
	h.t.Helper()
	var lines []string
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "qrbd agent" {
			line = fmt.Sprintf("setsid --fork qrbd agent >>%s 2>&1\nuntil qrbd status >/dev/null 2>&1; do sleep 0.05; done\n", h.log())
		}
		lines = append(lines, line)
	}
	out := h.run(strings.Join(lines, ""))
	if loop := strings.TrimSpace(h.run("readlink /dev/qrbd/crm || true")); loop != "" {
		h.loops = append(h.loops, loop)
	}
	return out
}

// configure appends a section to the configuration.
func (h *host) configure(section string) {
	h.t.Helper()
	h.run("cat >>/etc/qrbd/qrbd.toml <<'END'\n\n" + section + "END")
}

func (h *host) log() string { return filepath.Join(h.disk, "var", "agent.log") }

func (h *host) agentLog() string {
	data, err := os.ReadFile(h.log())
	if err != nil {
		return err.Error()
	}
	return string(data)
}
