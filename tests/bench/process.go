package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startTimeout = 10 * time.Second       // for a server to answer on its socket
	stopTimeout  = 10 * time.Second       // between SIGTERM and SIGKILL
	pollInterval = 5 * time.Millisecond   // between two looks at a socket that is not there yet
	dialTimeout  = 500 * time.Millisecond // of one such look
)

// errEnded says that a server process ended by itself.
var errEnded = errors.New("process ended")

// process is a running server. Its output goes to a file, whose last line explains an early end.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string        // path of its output
	ended chan struct{} // closed by the goroutine that waits for the process
}

// startProcess starts a server whose output goes to dir/name.log. Owner of the goroutine: the process; it ends with it.
func startProcess(dir, name string, argv ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Own group: an interrupt from the terminal reaches the harness alone, which ends its servers in their order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended is in its log; that it ended is what counts
	}()
	return p, nil
}

// pid returns the process id.
func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process with sig and returns when it is gone; after stopTimeout it is killed.
func (p *process) stop(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig) // an error means that it has ended
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// alive returns an error with the last line of the log if the process has ended.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s: %w: %s", p.name, errEnded, p.lastWords())
	default:
		return nil
	}
}

// lastWords returns the last line of the process's output.
func (p *process) lastWords() string {
	out, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return lastLine(out)
}

// waitListening blocks until a socket of the process takes connections.
func (p *process) waitListening(network, address string) error {
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(pollInterval) {
		c, err := net.DialTimeout(network, address, dialTimeout)
		if err == nil {
			return c.Close()
		}
		if err := p.alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen on %s after %v: %w: %s", p.name, address, startTimeout, err, p.lastWords())
		}
	}
}

// cpuTime returns the user and system time that all threads of the process have used. It reads the process's CPU clock:
// the sum behind /proc/PID/stat, in nanoseconds instead of ticks.
func (p *process) cpuTime() (time.Duration, error) {
	// Source: linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) = ^pid << 3 | 2.
	clock := int32(^p.pid()<<3 | 2)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of %s (pid %d): %w: %s", p.name, p.pid(), err, p.lastWords())
	}
	return time.Duration(ts.Nano()), nil
}

// peakRSS returns the largest resident size the process has had, in bytes (VmHWM).
func (p *process) peakRSS() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("memory of %s: %q: %w", p.name, rest, err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("memory of %s: no VmHWM in /proc/%d/status", p.name, p.pid())
}

// totalCPU returns the CPU time of several servers together.
func totalCPU(servers []*process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range servers {
		d, err := p.cpuTime()
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// freePort returns a port of 127.0.0.1 that nothing listens on now ("tcp", "udp", or "tcp+udp" for both).
func freePort(network string) (int, error) {
	if network == "tcp+udp" {
		for range 100 {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return 0, fmt.Errorf("a free TCP port: %w", err)
			}
			c, err := net.ListenPacket("udp", l.Addr().String())
			l.Close()
			if err != nil {
				continue
			}
			c.Close()
			return l.Addr().(*net.TCPAddr).Port, nil
		}
		return 0, errors.New("no port is free on TCP and UDP")
	}
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("a free UDP port: %w", err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("a free TCP port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
