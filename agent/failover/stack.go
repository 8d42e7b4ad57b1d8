package failover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/qrbd/qrbd/agent/hook"
)

// Device is what an attached device of the volume is good for.
type Device uint8

// The states.
const (
	DeviceNone Device = iota
	DeviceLive        // it is served, or will be as soon as this node is primary again
	DeviceDead        // it is not served any more, and must go
)

// Host is the machine as commands on it see it.
type Host struct {
	Volume, Node  string
	Config        string // path
	Export        string // the volume's NBD export
	Link          string // stable name of the attached device
	Log           string // path of the file for what commands print
	Qrbd          string // path of this program
	Systemctl     string // "": systemctl
	Device        func() Device
	Started       func() bool // whether commands without a check have been run to start, on this boot
	SaveStarted   func(bool) error
	AttachTimeout time.Duration // of qrbd attach and detach; 0: a minute
}

// layers is the Stack of a host: from below, a device, then a unit or commands.
type layers struct {
	h   *Host
	s   *Settings
	run runner
}

// NewStack returns what settings say belongs on top, on a host.
func NewStack(h *Host, s *Settings) Stack {
	l := &layers{h: h, s: s}
	l.run = runner{log: h.Log, env: []string{"QRBD_VOLUME=" + h.Volume, "QRBD_NODE=" + h.Node, "QRBD_CONFIG=" + h.Config, "QRBD_EXPORT=" + h.Export}}
	if s.Attach {
		l.run.env = append(l.run.env, "QRBD_DEVICE="+h.Link)
	}
	return l
}

func (l *layers) systemctl(args ...string) hook.Command {
	return append(hook.Command{orElse(l.h.Systemctl, "systemctl")}, args...)
}

// unitTimeout bounds a question to systemd.
const unitTimeout = 10 * time.Second

// property asks systemd for a property of the unit.
func (l *layers) property(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	argv := l.systemctl("show", "--property="+name, "--value", "--", l.s.Unit)
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("asking systemd for %s: %w", l.s.Unit, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Unable implements Stack: a unit or a command that is not there.
func (l *layers) Unable(ctx context.Context) string {
	if l.s.Unit != "" {
		switch state, err := l.property(ctx, "LoadState"); {
		case err != nil:
			return err.Error()
		case state != "loaded":
			return fmt.Sprintf("the unit %s is %s: systemctl cat %s", l.s.Unit, state, l.s.Unit)
		}
		return ""
	}
	for _, c := range []hook.Command{l.s.Start, l.s.Stop, l.s.Check} {
		if len(c) == 0 {
			continue
		}
		if err := Executable(c[0]); err != nil {
			return err.Error()
		}
	}
	return ""
}

// Executable says what keeps a file from being a command.
func Executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the command %s does not exist", path)
	case err != nil:
		return fmt.Errorf("the command %s: %w", path, err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("the command %s is not executable", path)
	}
	return nil
}

// State implements Stack.
func (l *layers) State(ctx context.Context) Top {
	service := l.service(ctx)
	if !l.s.Attach {
		return service
	}
	switch device := l.h.Device(); {
	case device == DeviceNone && service == TopStopped:
		return TopStopped
	case device == DeviceLive && service == TopRunning, service == TopUnknown:
		return service
	}
	return TopBroken
}

// service is the state of the unit or the commands alone.
func (l *layers) service(ctx context.Context) Top {
	switch {
	case l.s.Unit != "":
		state, err := l.property(ctx, "ActiveState")
		switch {
		case err != nil:
			return TopUnknown
		case state == "active" || state == "activating" || state == "reloading" || state == "refreshing":
			return TopRunning
		case state == "deactivating":
			return TopUnknown
		}
		return TopStopped
	case len(l.s.Check) > 0:
		if l.run.run(ctx, "check", l.s.CheckTimeout, l.s.Check) == nil {
			return TopRunning
		}
		if l.h.Started() { // some of it may be there
			return TopBroken
		}
		return TopStopped
	case l.h.Started():
		return TopRunning
	}
	return TopStopped
}

// Start implements Stack: from below to the top.
func (l *layers) Start(ctx context.Context) error {
	if l.s.Attach && l.h.Device() == DeviceNone {
		if err := l.attach(ctx); err != nil {
			return err
		}
	}
	if l.s.Unit != "" {
		return l.run.run(ctx, "start", l.s.StartTimeout, l.systemctl("start", "--", l.s.Unit))
	}
	// Noted before it is done: a start that is cut short has begun.
	if err := l.h.SaveStarted(true); err != nil {
		return err
	}
	if len(l.s.Start) == 0 {
		return nil
	}
	return l.run.run(ctx, "start", l.s.StartTimeout, l.s.Start)
}

// Stop implements Stack: from the top down. In order nothing is cut off: if it cannot
// be stopped, it stays as it is.
func (l *layers) Stop(ctx context.Context, force bool) error {
	err := l.stopService(ctx)
	if err != nil && !force {
		return err
	}
	if err != nil && l.s.Attach && l.h.Device() != DeviceNone {
		// What waits for the device gets errors now, and can end.
		if cut := l.detach(ctx, true); cut != nil {
			err = errors.Join(err, cut)
		}
	}
	if err != nil {
		if again := l.stopService(ctx); again != nil {
			return errors.Join(err, again)
		}
	}
	if l.s.Attach && l.h.Device() != DeviceNone {
		if err := l.detach(ctx, force); err != nil {
			return err
		}
	}
	if l.s.Unit != "" {
		return nil
	}
	return l.h.SaveStarted(false)
}

func (l *layers) stopService(ctx context.Context) error {
	switch {
	case l.s.Unit != "":
		return l.run.run(ctx, "stop", l.s.StopTimeout, l.systemctl("stop", "--", l.s.Unit))
	case len(l.s.Stop) > 0:
		return l.run.run(ctx, "stop", l.s.StopTimeout, l.s.Stop)
	}
	return nil
}

func (l *layers) attachTimeout() time.Duration {
	if l.h.AttachTimeout == 0 {
		return time.Minute
	}
	return l.h.AttachTimeout
}

// attachUnit is the unit that attaches a volume: a helper that it starts does not end
// with the agent's own unit.
func (l *layers) attachUnit() string { return "qrbd-attach@" + l.h.Volume + ".service" }

func (l *layers) attach(ctx context.Context) error {
	if l.s.Unit != "" {
		return l.run.run(ctx, "attach", l.attachTimeout(), l.systemctl("start", "--", l.attachUnit()))
	}
	argv := hook.Command{l.h.Qrbd, "attach", l.h.Volume, "--config", l.h.Config}
	if l.s.Method != "" {
		argv = append(argv, "--method", l.s.Method)
	}
	if l.s.Device != "" {
		argv = append(argv, l.s.Device)
	}
	return l.run.run(ctx, "attach", l.attachTimeout(), argv)
}

func (l *layers) detach(ctx context.Context, force bool) error {
	if l.s.Unit != "" && !force {
		return l.run.run(ctx, "detach", l.attachTimeout(), l.systemctl("stop", "--", l.attachUnit()))
	}
	argv := hook.Command{l.h.Qrbd, "detach", l.h.Volume, "--config", l.h.Config}
	if force {
		argv = append(argv, "--force")
	}
	return l.run.run(ctx, "detach", l.attachTimeout(), argv)
}
