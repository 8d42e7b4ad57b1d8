package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/kernel"
)

const (
	// KernelConns is how many connections the kernel has to the agent.
	KernelConns = 4
	// kernelTimeout: after a crash of the agent the kernel sends again what was under
	// way when this is over. Shorter ones would cut connections of an agent that waits
	// for a peer (10 s) or a disk.
	kernelTimeout = 30 * time.Second
	// sectorBytes is the logical block size, with either method.
	sectorBytes = 512
)

// serveKernel makes a device of connections that the kernel keeps.
func (h *Host) serveKernel(ctx context.Context, rec *Record, device string) error {
	index := kernel.Any
	if device != "" {
		var err error
		if index, err = nbdIndex(device); err != nil {
			return err
		}
	}
	c, err := kernel.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	s, closeConns, err := settings(ctx, h.Socket, rec, index, KernelConns, h.DeadTime)
	if err != nil {
		return readable(err)
	}
	defer closeConns()
	if index, err = c.Connect(s); err != nil {
		return err
	}
	rec.Device, rec.Size = fmt.Sprintf("/dev/nbd%d", index), int64(s.Size)
	// Saved at once: from here on there is something to take away.
	if err := rec.save(h.State); err != nil {
		return errors.Join(err, c.Disconnect(index))
	}
	return await(rec.Device+" to have its size", func() (bool, error) { return sizeOf(rec.Device) == rec.Size, nil })
}

// settings makes n connections, fewer if the export wants one only, and describes the
// device to the kernel. closeConns closes this process's ends.
func settings(ctx context.Context, socket string, rec *Record, index, n int, dead time.Duration) (s kernel.Settings, closeConns func(), err error) {
	var made []net.Conn
	closeConns = func() {
		for _, c := range made {
			_ = c.Close() // the kernel has its own
		}
	}
	s = kernel.Settings{Index: index, BlockSize: sectorBytes, Timeout: kernelTimeout, DeadTimeout: dead.Truncate(time.Second),
		Backend: ExportName(rec.Volume, rec.Token)}
	for len(made) < n {
		c, err := client.Negotiate(ctx, "unix:"+socket, ExportName(rec.Volume, rec.Token))
		if err != nil {
			closeConns()
			return s, nil, err
		}
		made = append(made, c.Conn)
		raw, ok := c.Conn.(syscall.Conn)
		if !ok {
			closeConns()
			return s, nil, fmt.Errorf("the connection to %s is no socket", socket)
		}
		s.Conns = append(s.Conns, raw)
		s.Size, s.Flags = uint64(c.Size), c.Flags
		if c.Flags&nbd.TxCanMultiConn == 0 {
			break
		}
	}
	return s, closeConns, nil
}

// Reconnect gives the kernel n new connections to the agent for those of the device that
// have died. The kernel takes none where none has: the caller counts, and asks again.
// dead is as it was when the volume was attached.
func (r *Record) Reconnect(ctx context.Context, socket string, n int, dead time.Duration) error {
	return r.tell(func(c *kernel.Client, index int) error {
		s, closeConns, err := settings(ctx, socket, r, index, n, dead)
		if err != nil {
			return err
		}
		defer closeConns()
		s.Size = uint64(r.Size) // the kernel's device keeps its size
		return c.Reconfigure(s)
	})
}

// tell calls f with a conversation with the kernel's driver and the number of the device.
func (r *Record) tell(f func(c *kernel.Client, index int) error) error {
	index, err := nbdIndex(r.Device)
	if err != nil {
		return err
	}
	c, err := kernel.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c, index)
}

// growNBD makes the kernel's device larger. The record comes first: a connection that the
// agent renews meanwhile must not make the device small again.
func (h *Host) growNBD(r *Record, size int64) error {
	r.Size = size
	if err := r.save(h.State); err != nil {
		return err
	}
	err := r.tell(func(c *kernel.Client, index int) error {
		return c.Resize(index, uint64(size), ExportName(r.Volume, r.Token))
	})
	if err != nil {
		return fmt.Errorf("the device of volume %s keeps its old size until it is detached and attached: %w", r.Volume, err)
	}
	return nil
}

// Cut has the kernel fail every request of the device from now on, instead of keeping them
// until the dead time is over. It does nothing to a device of method fuse, whose helper
// is turned away.
func (r *Record) Cut() error {
	if r.Method != MethodNBD || !r.Live() {
		return nil
	}
	return r.disconnect()
}

// disconnect has the kernel give the device's connections up.
func (r *Record) disconnect() error {
	return r.tell(func(c *kernel.Client, index int) error { return c.Disconnect(index) })
}

// closeNBD takes the kernel's device down.
func closeNBD(r *Record, force bool) error {
	if !nbdAttached(r.Device) {
		return nil
	}
	if !force {
		fd, err := unix.Open(r.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", r.Device, err)
		}
		if err := errors.Join(unix.Fsync(fd), unix.Close(fd)); err != nil {
			return fmt.Errorf("flushing %s: %w", r.Device, err)
		}
	}
	if err := r.disconnect(); err != nil {
		return err
	}
	return await("the kernel to let go of "+r.Device, func() (bool, error) { return !nbdAttached(r.Device), nil })
}

// nbdIndex returns N of /dev/nbdN.
func nbdIndex(device string) (int, error) {
	digits, ok := strings.CutPrefix(filepath.Base(device), "nbd")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("%s is no nbd device: name one like /dev/nbd0, or none to have a free one", device)
	}
	return n, nil
}

// nbdAttached reports whether the kernel has connections for the device. Source:
// drivers/block/nbd.c: the attribute pid is there as long as it has.
func nbdAttached(device string) bool {
	_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(device), "pid"))
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// sizeOf returns a block device's size, bytes; 0 when it cannot be had.
func sizeOf(device string) int64 {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "size"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n * sectorBytes
}

// answers reports whether an agent listens on the socket.
func answers(socket string) bool {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
