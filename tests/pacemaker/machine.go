package pacemaker

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/tests/stack/process"
)

//go:embed testdata/init.sh
var initScript string

// machine is a host that can be switched on and off. What is below up and data outlasts
// that. Its methods are safe for concurrent use.
type machine struct {
	name  string
	top   string // up, work, data, root
	power string
	wires *wires
	index int // on the wires

	mu sync.Mutex
	// Guarded by mu.
	running *process.Process // nil: off
	init    int              // its first process, as this host counts
}

// bootMax bounds a start.
const bootMax = time.Minute

// boot switches the machine on and returns when its services were started.
func (m *machine) boot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running != nil {
		return nil
	}
	_ = os.Remove(filepath.Join(m.power, m.name+".dark")) // it is not there at the first start
	if err := m.wires.plug(m.index); err != nil {
		return err
	}
	p, err := process.Start(process.Options{Name: m.name, Log: filepath.Join(m.top, "console"), Args: []string{
		"nsenter", "--net=/run/netns/" + m.wires.netns(m.name), "--",
		"unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
		"bash", "-c", initScript, "init", m.top, m.name, m.power}})
	if err != nil {
		return err
	}
	m.running = p
	for end := time.Now().Add(bootMax); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.Ended():
			m.running = nil
			return p.Err()
		default:
		}
		if m.init == 0 {
			if below := process.Descendants(p.PID()); len(below) > 0 {
				m.init = below[0]
			}
		}
		if m.init != 0 {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/booted", m.init)); err == nil {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not up within %v", m.name, bootMax)
		}
	}
}

// off cuts the power: the first process is killed, and the kernel kills the rest. It
// returns when all are gone.
func (m *machine) off() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		return nil
	}
	// First: the kernel, which lives on, would say goodbye to everybody.
	if err := m.wires.unplug(m.index); err != nil {
		return err
	}
	if m.init != 0 {
		_ = syscall.Kill(m.init, syscall.SIGKILL) // it may have ended
	} else {
		process.Kill(m.running)
	}
	select {
	case <-m.running.Ended():
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s has processes that do not die", m.name)
	}
	m.running, m.init = nil, 0
	dark := os.WriteFile(filepath.Join(m.power, m.name+".dark"), nil, 0o600)
	return errors.Join(dark, m.loseDevices())
}

// loseDevices takes away the loop devices of a machine that is off: a host that loses its
// power has none, but this one's kernel goes on.
func (m *machine) loseDevices() error { return loseDevices(m.top) }

func loseDevices(top string) error {
	records, err := filepath.Glob(filepath.Join(top, "data/attach/*.json"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range records {
		var r map[string]any
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		device, _ := r["device"].(string)
		fileFS, _ := r["file_fs"].(float64) // a small number
		// After a power cut the kernel is another one, as the record tells by its boot id.
		r["boot"] = "that of a machine which is off"
		if data, err = json.Marshal(r); err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		errs = append(errs, err)
		if !strings.HasPrefix(device, "/dev/loop") || !abandoned(device, uint64(fileFS)) {
			continue
		}
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("losetup --detach %s: %w: %s", device, err, out))
		}
	}
	return errors.Join(errs...)
}

// abandoned reports whether a loop device is on a file of that file system, or of one that
// nobody serves any more.
func abandoned(device string, fileFS uint64) bool {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err == nil {
		return info.Device == fileFS
	}
	return !errors.Is(err, unix.ENXIO) // on none
}

// on reports whether the machine is switched on, and its first process.
func (m *machine) on() (init int, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.init, m.running != nil && m.init != 0
}

// path is a file of the running machine's, from outside.
func (m *machine) path(name string) (string, bool) {
	init, on := m.on()
	return fmt.Sprintf("/proc/%d/root%s", init, name), on
}

// pause stops every process of the machine, resume lets them go on.
func (m *machine) pause() { m.signal(syscall.SIGSTOP) }
func (m *machine) resume() {
	m.signal(syscall.SIGCONT)
}

func (m *machine) signal(s syscall.Signal) {
	for range 3 { // one that is forked meanwhile is found the next time
		init, on := m.on()
		if !on {
			return
		}
		for _, pid := range process.Descendants(init) {
			_ = syscall.Kill(pid, s) // it may have ended
		}
	}
}

// errOff: the machine is switched off.
var errOff = errors.New("the machine is off")

// run runs a command on the machine and returns what it printed.
func (m *machine) run(ctx context.Context, args ...string) (string, error) {
	init, on := m.on()
	if !on {
		return "", fmt.Errorf("%s: %s: %w", m.name, strings.Join(args, " "), errOff)
	}
	argv := append([]string{"--target", fmt.Sprint(init), "--mount", "--net", "--pid", "--uts", "--ipc", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "TERM=dumb",
		"sh", "-c", `cd / && exec "$@"`, "sh"}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w\n%s", m.name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// install puts a file into the machine's root. REQUIRES: it is off.
func (m *machine) install(name string, data []byte, mode os.FileMode) error {
	path := filepath.Join(m.top, "up", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
