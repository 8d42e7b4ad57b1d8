package uml

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// program is User-Mode Linux, as Debian calls it.
const program = "linux.uml"

// errNoVerdict says that a machine ended before its command did.
var errNoVerdict = errors.New("the machine ended without a verdict")

// Machine is one that can be started. The zero value of a field is its default.
type Machine struct {
	Name    string   // host name; default uml
	Memory  string   // default 1G
	Modules []string // to load, each with its parameters: "nbd nbds_max=4"
	Env     []string // KEY=value
	Command []string // absolute path first; runs as root with the host's files
	Dir     string   // an existing directory of the host's for what passes to and fro; the command's working directory

	Cable   *os.File // one end of a Cable; nil: no network but loopback
	Address string   // of this end, 10.9.0.1/24
}

// Missing says what a machine needs and this host lacks; "" if it can be started.
func Missing(modules ...string) string {
	for name, pkg := range map[string]string{program: "user-mode-linux", "insmod": "kmod"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Sprintf("%s (apt install %s)", name, pkg)
		}
	}
	for _, m := range modules {
		if _, err := modulePath(m); err != nil {
			return fmt.Sprintf("the module %s of user-mode-linux", m)
		}
	}
	return ""
}

// modulePath finds a module by name.
func modulePath(name string) (string, error) {
	const root = "/usr/lib/uml/modules"
	var found string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == name+".ko" {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no %s.ko under %s: %w", name, root, os.ErrNotExist)
	}
	return found, err
}

// modulesFor returns the paths of a module and of those it depends on, in the order in
// which they are loaded.
func modulesFor(name string) ([]string, error) {
	path, err := modulePath(name)
	if err != nil {
		return nil, err
	}
	out, err := exec.Command("modinfo", "-F", "depends", path).Output()
	if err != nil {
		return nil, fmt.Errorf("what %s depends on: %w", path, err)
	}
	var list []string
	for _, other := range strings.FieldsFunc(string(out), func(r rune) bool { return r == ',' || r == '\n' }) {
		more, err := modulesFor(other)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return append(list, path), nil
}

// Cable returns the two ends of an Ethernet between two machines.
func Cable() (a, b *os.File, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cable: %w", err)
	}
	for _, fd := range ends {
		for _, o := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 1<<20); err != nil {
				return nil, nil, errors.Join(fmt.Errorf("cable: %w", err), unix.Close(ends[0]), unix.Close(ends[1]))
			}
		}
	}
	return os.NewFile(uintptr(ends[0]), "cable"), os.NewFile(uintptr(ends[1]), "cable"), nil
}

// Run boots the machine, runs its command and returns the command's exit code. Its
// output goes to out while it runs. When ctx ends, the machine is switched off.
func (m *Machine) Run(ctx context.Context, out io.Writer) (int, error) {
	script, err := m.script()
	if err != nil {
		return 0, err
	}
	start := filepath.Join(m.Dir, "init")
	if err := os.WriteFile(start, []byte(script), 0o700); err != nil {
		return 0, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	args := []string{"mem=" + orElse(m.Memory, "1G"), "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "init=" + start,
		"con=null", "con0=null,fd:1", "panic=-1", "uml_dir=" + m.Dir}
	cmd := exec.CommandContext(ctx, program, args...)
	if m.Cable != nil {
		cmd.ExtraFiles = []*os.File{m.Cable} // 3
		cmd.Args = append(cmd.Args, "vec0:transport=fd,fd=3,mac="+m.mac())
	}
	var boot bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, &boot), &boot
	cmd.Dir = m.Dir
	// A machine is several processes: they share a group, and end together; and with this
	// process, or rather with the thread that starts them, which therefore waits.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	runErr := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of it, as a rule nothing
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("machine %s was switched off: %w", m.Name, context.Cause(ctx))
	}
	verdict, err := os.ReadFile(filepath.Join(m.Dir, "verdict"))
	if err != nil {
		return 0, fmt.Errorf("machine %s: %w: %w\n%s", m.Name, errNoVerdict, errors.Join(runErr, err), boot.Bytes())
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(verdict)))
	if err != nil {
		return 0, fmt.Errorf("machine %s: %w: %w", m.Name, errNoVerdict, err)
	}
	return code, nil
}

// script is what the machine runs as its first process.
func (m *Machine) script() (string, error) {
	var s strings.Builder
	line := func(words ...string) { fmt.Fprintln(&s, strings.Join(words, " ")) }
	line("#!/bin/sh")
	line("export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root")
	line("mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run")
	line("mkdir -p /run/tmp /run/shm /dev/shm /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts")
	line("export TMPDIR=/run/tmp; ulimit -n 65536")
	line("hostname", quote(orElse(m.Name, "uml")))
	line("ip link set lo up")
	if m.Cable != nil {
		line("ip addr add", quote(m.Address), "dev vec0; ip link set vec0 up")
	}
	loaded := map[string]bool{}
	for _, module := range m.Modules {
		name, rest, _ := strings.Cut(module, " ")
		paths, err := modulesFor(name)
		if err != nil {
			return "", fmt.Errorf("machine %s: %w", m.Name, err)
		}
		for _, path := range paths {
			if loaded[path] {
				continue
			}
			loaded[path] = true
			if filepath.Base(path) != name+".ko" {
				line("insmod", quote(path))
			} else {
				line("insmod", quote(path), rest)
			}
		}
	}
	for _, e := range m.Env {
		name, value, _ := strings.Cut(e, "=")
		line("export", name+"="+quote(value))
	}
	line("cd", quote(m.Dir))
	words := make([]string, len(m.Command))
	for i, w := range m.Command {
		words[i] = quote(w)
	}
	line(strings.Join(words, " "), "</dev/null 2>&1")
	line("echo $? > verdict; sync")
	line("poweroff -f")
	return s.String(), nil
}

// mac is an address of this machine's own: from its name's letters.
func (m *Machine) mac() string {
	h := [5]byte{}
	for i := range len(m.Name) {
		h[i%5] = h[i%5]*31 + m.Name[i]
	}
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", h[0], h[1], h[2], h[3], h[4])
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// quote makes one word of a shell of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
