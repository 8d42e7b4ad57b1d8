package attach

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/attach/fusefile"
	"github.com/qrbd/qrbd/blockdev/nbd/lasting"
)

// Host is where a node's devices are, and how they are made.
type Host struct {
	State string // the node's state directory
	Run   string // directory for mounts of files
	Links string // directory of the stable names: /dev/qrbd
	// Socket is the agent's for attached volumes.
	Socket   string
	DeadTime time.Duration // how long requests of a kernel's nbd device wait for the agent
	// Spawn starts a helper process for the volume and waits until it serves, or says
	// why not.
	Spawn func(ctx context.Context, volume string) (pid int, err error)
}

// Request says what to attach.
type Request struct {
	Volume string
	Device string // "": any that is free
	Method Method // "": what the host has
}

// Attach makes a block device of a volume that is primary here, and returns its record.
// What it had made is taken away when it fails.
func (h *Host) Attach(ctx context.Context, r Request) (rec Record, err error) {
	method, err := thisHost().pick(r.Method, r.Device)
	if err != nil {
		return rec, err
	}
	unlock, err := h.lock()
	if err != nil {
		return rec, err
	}
	defer unlock()
	if old, err := Load(h.State, r.Volume); err == nil {
		if old.Live() && old.Device != "" {
			return old, fmt.Errorf("volume %s is attached already, as %s", r.Volume, old.Device)
		}
		h.clear(&old, true) // of an earlier boot, its helper was killed, or an attach was
	} else if !errors.Is(err, ErrNotAttached) {
		return rec, err
	}
	link := filepath.Join(h.Links, r.Volume)
	if err := checkLink(link); err != nil {
		return rec, err
	}
	rec = Record{Volume: r.Volume, Method: method, Link: link, Token: newToken(), Since: time.Now(), Boot: BootID()}
	if method == MethodFUSE {
		rec.Mount = filepath.Join(h.Run, r.Volume)
	}
	if err := rec.save(h.State); err != nil {
		return rec, err
	}
	defer func() {
		if err != nil {
			h.clear(&rec, true)
		}
	}()
	serve := h.serveFile
	if method == MethodNBD {
		serve = h.serveKernel
	}
	if err := serve(ctx, &rec, r.Device); err != nil {
		return rec, fmt.Errorf("attaching volume %s: %w", r.Volume, err)
	}
	if err := setLink(link, rec.Device); err != nil {
		return rec, err
	}
	return rec, rec.save(h.State)
}

// serveFile makes a loop device on a file.
func (h *Host) serveFile(ctx context.Context, rec *Record, device string) error {
	if err := os.MkdirAll(rec.Mount, 0o700); err != nil {
		return fmt.Errorf("directory for the mount: %w", err)
	}
	pid, err := h.Spawn(ctx, rec.Volume)
	if err != nil {
		return err
	}
	if rec.Helper, err = ProcessOf(pid); err != nil {
		return err
	}
	if err := rec.save(h.State); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(rec.file(), &st); err != nil {
		return fmt.Errorf("the file of volume %s: %w", rec.Volume, err)
	}
	rec.Size, rec.FileFS = st.Size, st.Dev
	rec.Device, err = openLoop(rec.file(), device)
	return err
}

func (r *Record) file() string { return filepath.Join(r.Mount, fusefile.FileName) }

// Detach takes the device of a volume away, given its name, its device or its link. With
// force it does so whatever uses it: what is not written yet is lost. The record it
// returns is that of what was detached.
func (h *Host) Detach(what string, force bool) (Record, error) {
	unlock, err := h.lock()
	if err != nil {
		return Record{}, err
	}
	defer unlock()
	rec, err := h.find(what)
	if err != nil {
		return rec, err
	}
	state := describe(h.State, rec).State
	if !force && (state == lasting.Waiting || rec.Method == MethodNBD && rec.Live() && !answers(h.Socket)) {
		return rec, fmt.Errorf("volume %s cannot be detached in order: %s waits for the agent, which is not there or has not made the volume primary again. Start it, or give up what is not written yet: qrbd detach %s --force",
			rec.Volume, rec.Device, rec.Volume)
	}
	if rec.Live() && rec.Device != "" && !force {
		use, err := settledUse(rec.Device)
		if err != nil {
			return rec, err
		}
		if use.Any() {
			return rec, fmt.Errorf("volume %s (%s) is %v: unmount or stop that first", rec.Volume, rec.Device, use)
		}
	}
	// A dead disk, or one that is no more, has nothing that could still be written.
	return rec, h.clear(&rec, force || state == lasting.Dead || state == Gone)
}

// Grow tells the device of a volume, if it is attached, that the volume has size bytes.
func (h *Host) Grow(volume string, size int64) error {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := Load(h.State, volume)
	if errors.Is(err, ErrNotAttached) || err == nil && !r.Live() {
		return nil
	}
	if err != nil {
		return err
	}
	if r.Method == MethodNBD {
		return h.growNBD(&r, size)
	}
	err = await("the helper to see the new size", func() (bool, error) {
		info, err := os.Stat(r.file())
		return err == nil && info.Size() == size, err
	})
	if err == nil {
		err = growLoop(r.Device)
	}
	if err != nil {
		return fmt.Errorf("the device %s of volume %s keeps its old size until it is detached and attached: %w", r.Device, volume, err)
	}
	r.Size = size
	return r.save(h.State)
}

// settledUse is InUse, patient with programs that look at a device for a moment.
func settledUse(device string) (Use, error) {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(stepPause) {
		u, err := InUse(device)
		if err != nil || !u.Any() || len(u.Mounts)+len(u.Holders) > 0 || time.Now().After(end) {
			return u, err
		}
	}
}

// find returns the record of a volume, device or link.
func (h *Host) find(what string) (Record, error) {
	if !strings.Contains(what, "/") {
		return Load(h.State, what)
	}
	path, err := filepath.Abs(what)
	if err != nil {
		return Record{}, fmt.Errorf("device %s: %w", what, err)
	}
	all, err := loadAll(h.State)
	for _, r := range all {
		if r.Device == path || r.Link == path {
			return r, nil
		}
	}
	return Record{}, errors.Join(fmt.Errorf("%s is no device of an attached volume: it is %w", what, ErrNotAttached), err)
}

// clear takes away whatever there is of a record's device, in the order that loses
// nothing, and the record last.
func (h *Host) clear(r *Record, force bool) error {
	var errs []error
	if r.Device != "" {
		if r.Method == MethodNBD {
			errs = append(errs, h.leaveKernel(r, force))
		} else {
			errs = append(errs, closeLoop(r.Device, r.file(), r.FileFS, force))
		}
		if to, err := os.Readlink(r.Link); err == nil && to == r.Device && errs[0] == nil {
			errs = append(errs, os.Remove(r.Link))
		}
	}
	if err := errors.Join(errs...); err != nil && !force {
		return fmt.Errorf("detaching volume %s: %w", r.Volume, err)
	}
	if force && r.Helper.alive() {
		// Requests that wait for an agent would keep it: they fail now.
		_ = syscall.Kill(r.Helper.PID, syscall.SIGKILL)
	}
	errs = append(errs, unmount(r.Mount, force))
	if err := errors.Join(errs...); err != nil && !force {
		return fmt.Errorf("detaching volume %s: %w", r.Volume, err)
	}
	if r.Helper.PID != 0 {
		errs = append(errs, await("the helper to end", func() (bool, error) { return !r.Helper.alive(), nil }))
	}
	if r.Mount != "" {
		if err := os.Remove(r.Mount); err != nil && !errors.Is(err, fs.ErrNotExist) && !force {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil && !force {
		return fmt.Errorf("detaching volume %s: %w", r.Volume, err)
	}
	return r.remove(h.State)
}

// leaveKernel takes the kernel's device down, while the agent knows not to connect it
// again.
func (h *Host) leaveKernel(r *Record, force bool) error {
	r.Leaving = true
	err := r.save(h.State)
	if err == nil || force {
		err = errors.Join(err, closeNBD(r, force))
	}
	if err != nil && !force {
		r.Leaving = false
		err = errors.Join(err, r.save(h.State))
	}
	return err
}

// unmount unmounts dir, and is patient with a busy one: the kernel lets go of a loop
// device's file some time after the device is free.
func unmount(dir string, force bool) error {
	if dir == "" {
		return nil
	}
	if force {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
		return nil
	}
	return await(dir+" to be unmounted", func() (bool, error) {
		err := unix.Unmount(dir, 0)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // it is not mounted
			return true, nil
		case errors.Is(err, unix.EBUSY):
			return false, nil
		}
		return false, fmt.Errorf("unmounting %s: %w", dir, err)
	})
}

// checkLink refuses a stable name that leads to somebody else's device.
func checkLink(link string) error {
	to, err := os.Readlink(link)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s is there and is no symbolic link: remove it, or set devices in [node]", link)
	case backingOf(to) != "" || nbdAttached(to):
		return fmt.Errorf("%s leads to %s, which is in use%s: another node on this host needs a directory of its own, devices in [node]", link, to, forWhat(backingOf(to)))
	}
	return nil
}

func forWhat(file string) string {
	if file == "" {
		return ""
	}
	return " for " + file
}

func setLink(link, device string) error {
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("directory of stable names: %w", err)
	}
	temp := link + ".new"
	_ = os.Remove(temp) // of an attempt that was killed
	if err := errors.Join(os.Symlink(device, temp), os.Rename(temp, link)); err != nil {
		return fmt.Errorf("stable name of %s: %w", device, err)
	}
	return nil
}

// lock serialises commands.
func (h *Host) lock() (unlock func(), err error) {
	if err := os.MkdirAll(Dir(h.State), 0o700); err != nil {
		return nil, fmt.Errorf("attached volumes: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	f := flock.New(filepath.Join(Dir(h.State), "lock"), flock.SetPermissions(0o600))
	if ok, err := f.TryLockContext(ctx, stepPause); !ok {
		return nil, fmt.Errorf("another qrbd attach or detach is under way: %w", err)
	}
	return func() { _ = f.Close() }, nil // the kernel does it at the latest
}

func newToken() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
