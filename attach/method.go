package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/qrbd/qrbd/blockdev/nbd/kernel"
)

// hosts is what pick asks of the host; tests answer instead.
type hosts struct {
	root   bool
	driver func() error // kernel.ErrNoDriver, or nil
	fuse   func() error
}

func thisHost() hosts {
	return hosts{
		root: os.Geteuid() == 0,
		driver: func() error {
			c, err := kernel.Dial()
			if err != nil {
				return err
			}
			return c.Close()
		},
		fuse: func() error {
			_, err := os.Stat("/dev/fuse")
			return err
		},
	}
}

// pick chooses the method: what was asked for, what the device is, else the kernel's
// client where there is one.
func (h hosts) pick(m Method, device string) (Method, error) {
	if m != "" && m != MethodNBD && m != MethodFUSE {
		return m, fmt.Errorf("there is no method %q: use nbd or fuse", m)
	}
	kind := Method("")
	switch name := filepath.Base(device); {
	case device == "":
	case strings.HasPrefix(name, "loop"):
		kind = MethodFUSE
	case strings.HasPrefix(name, "nbd"):
		kind = MethodNBD
	default:
		return m, fmt.Errorf("%s is no device that a volume can be attached as: name one like /dev/nbd0 (method nbd) or /dev/loop7 (method fuse), or none to have a free one", device)
	}
	if m != "" && kind != "" && m != kind {
		return m, fmt.Errorf("%s is a device of method %s, not %s", device, kind, m)
	}
	if !h.root {
		return m, errors.New("attaching takes root")
	}
	if m == "" {
		m = kind
	}
	if m != MethodFUSE {
		err := h.driver()
		if err == nil || m == MethodNBD {
			return MethodNBD, err
		}
	}
	err := h.fuse()
	switch {
	case err != nil && m == MethodFUSE:
		return m, fmt.Errorf("this host has no FUSE (%w): try modprobe fuse", err)
	case err != nil:
		return m, fmt.Errorf("this host has neither the kernel's nbd driver nor FUSE (%w): try modprobe nbd, or modprobe fuse", err)
	}
	return MethodFUSE, nil
}
