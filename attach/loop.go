package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of waiting for the kernel.
const (
	stepTime  = 30 * time.Second      // one step of attaching or detaching
	stepPause = 20 * time.Millisecond // between two looks
)

// loopRetries: another program may take the free device that was found.
const loopRetries = 16

// openLoop puts a loop device with direct I/O on the file; device "" means a free one.
// It returns the device's path.
func openLoop(file, device string) (string, error) {
	backing, err := unix.Open(file, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", file, err)
	}
	defer unix.Close(backing)
	for try := 0; ; try++ {
		name := device
		if name == "" {
			if name, err = freeLoop(); err != nil {
				return "", err
			}
		}
		err := configureLoop(name, file, backing)
		switch {
		case err == nil:
			return name, nil
		case errors.Is(err, unix.EBUSY) && device != "":
			return "", fmt.Errorf("%s is in use: name another loop device, or none to have a free one", name)
		case !errors.Is(err, unix.EBUSY) || try == loopRetries:
			return "", err
		}
	}
}

func freeLoop() (string, error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("this host has no loop devices (/dev/loop-control: %w): try modprobe loop", err)
	}
	defer unix.Close(control)
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return "", fmt.Errorf("no loop device is free: %w", err)
	}
	return fmt.Sprintf("/dev/loop%d", n), nil
}

func configureLoop(device, file string, backing int) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", device, err)
	}
	defer unix.Close(fd)
	c := unix.LoopConfig{Fd: uint32(backing)}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_PARTSCAN
	copy(c.Info.File_name[:len(c.Info.File_name)-1], file)
	if err := unix.IoctlLoopConfigure(fd, &c); err != nil {
		return fmt.Errorf("setting up %s: %w", device, err)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err == nil && info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		err = errors.New("the kernel refuses direct I/O")
	}
	if err != nil {
		_ = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
		return fmt.Errorf("setting up %s: %w", device, err)
	}
	return nil
}

// closeLoop takes the file, of that file system (device number), off the device and waits until
// the kernel has let go of it. Somebody who has it open keeps it; force does not wait for
// that.
func closeLoop(device, file string, fileFS uint64, force bool) error {
	if !isOn(device, file, fileFS) {
		return nil // another one's by now, or nobody's
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", device, err)
	}
	if !force {
		err = unix.Fsync(fd) // what programs have written through the device's cache
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("taking %s down: %w", device, err)
	}
	if force {
		return nil
	}
	return await("the kernel to let go of "+device, func() (bool, error) { return !isOn(device, file, fileFS), nil })
}

// isOn reports whether a loop device is on a file of that file system. The file's name
// would not do: in another mount namespace it may be another file. But of a file that
// nobody serves any more it is all that the kernel tells.
func isOn(device, file string, fileFS uint64) bool {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	switch {
	case err == nil:
		return info.Device == fileFS
	case errors.Is(err, unix.ENXIO): // on none
		return false
	}
	return backingOf(device) == file
}

// growLoop makes the device as large as its file.
func growLoop(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", device, err)
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0)
	return errors.Join(err, unix.Close(fd))
}

// backingOf returns the file below a loop device, "" for none.
func backingOf(device string) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// await looks until done or stepTime is over.
func await(what string, done func() (bool, error)) error {
	for end := time.Now().Add(stepTime); ; time.Sleep(stepPause) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v for %s", stepTime, what)
		}
	}
}
