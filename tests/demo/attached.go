package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/qrbd/qrbd/tests/stack/mount"
)

// attached is the volume as a block device of a node, and the file system on it.
type attached struct {
	node   *node
	device string // "/dev/loop3"
	helper int    // process id; 0: the kernel's own client serves it
	fs     *mount.FS
}

// attach attaches the volume on its primary; the file system will be mounted on dir.
func (n *node) attach(ctx context.Context, dir string) (*attached, error) {
	out, err := n.run(ctx, "attach", volumeName, "--json")
	if err != nil {
		return nil, err
	}
	var made struct {
		Device, Link, Method string
		Helper               struct{ PID int }
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Device == "" {
		return nil, fmt.Errorf("%s: attach printed %q (%v)", n.name, out, err)
	}
	a := &attached{node: n, device: made.Device, helper: made.Helper.PID}
	if a.fs, err = mount.New(dir, made.Link); err != nil {
		return nil, errors.Join(err, a.crash(ctx))
	}
	return a, nil
}

// kill ends the helper, as a death of the host does.
func (a *attached) kill() {
	if a.helper > 0 {
		_ = syscall.Kill(a.helper, syscall.SIGKILL) // it may have ended
	}
}

// crash removes what the kernel keeps of a dead host's device and mount. First the
// device: as long as it waits for an agent, so does whoever unmounts it.
func (a *attached) crash(ctx context.Context) error {
	_, err := a.node.run(context.WithoutCancel(ctx), "detach", volumeName, "--force")
	if a.fs != nil {
		err = errors.Join(err, a.fs.Crash(ctx))
	}
	return err
}

// close unmounts and detaches.
func (a *attached) close(ctx context.Context) error {
	if err := a.fs.Unmount(ctx); err != nil {
		return err
	}
	_, err := a.node.run(ctx, "detach", volumeName)
	return err
}

// setDevices gives a node a directory of stable names of its own: there are two nodes on
// this machine.
func (n *node) setDevices() error {
	text, err := os.ReadFile(n.config())
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", n.name, err)
	}
	const section = "[node]\n"
	head, rest, ok := strings.Cut(string(text), section)
	if !ok {
		return fmt.Errorf("the configuration of %s has no section [node]", n.name)
	}
	text = []byte(head + section + fmt.Sprintf("devices = %q\n", filepath.Join(n.dir, "dev")) + rest)
	if err := os.WriteFile(n.config(), text, 0o600); err != nil {
		return fmt.Errorf("configuration of %s: %w", n.name, err)
	}
	return nil
}
