package uml

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/blockdev/nbd/kernel"
)

// TestDriver: the driver of a real kernel takes what package kernel sends, and the
// device it makes reads, writes, flushes, trims, waits for its server and goes.
func TestDriver(t *testing.T) {
	need(t, "nbd")
	inside(t, &Machine{Name: "driver", Modules: []string{"nbd nbds_max=4"}}, "TestGuestDriver", time.Minute)
}

// counted is a device that counts.
type counted struct {
	*blockdev.Memory
	flushes, trims atomic.Int64
}

func (c *counted) Flush() error {
	c.flushes.Add(1)
	return c.Memory.Flush()
}

func (c *counted) Trim(off, n int64, f blockdev.Flags) error {
	c.trims.Add(1)
	return c.Memory.Trim(off, n, f)
}

// one is the only export.
type one struct{ e *nbd.Export }

func (o one) List(nbd.Caller) []string { return []string{o.e.Name} }
func (o one) Open(name string, _ nbd.Caller) (*nbd.Export, error) {
	if name != o.e.Name {
		return nil, nbd.ErrUnknownExport
	}
	return o.e, nil
}

// serve serves dev on a Unix socket; stop ends it, and every connection.
func serve(t *testing.T, dev blockdev.Submitter, path string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(nbd.Options{Exports: one{&nbd.Export{Name: "crm", Device: dev}}})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx) // the kernel's connections do not end by themselves: cut after the time
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// dial does the handshake on n connections, with simple replies.
func dial(t *testing.T, path string, n int) (list []syscall.Conn, size uint64, flags uint16) {
	t.Helper()
	for range n {
		h, err := client.Greet(t.Context(), "unix:"+path)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.SendFlags(uint32(h.Flags)); err != nil {
			t.Fatal(err)
		}
		answers, err := h.Ask(7, client.InfoData("crm")) // GO
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range answers {
			if binary.BigEndian.Uint16(a.Data) == 0 { // the export's size and flags
				size, flags = binary.BigEndian.Uint64(a.Data[2:]), binary.BigEndian.Uint16(a.Data[10:])
			}
		}
		list = append(list, h.Conn.(*net.UnixConn))
	}
	return list, size, flags
}

func hangUp(t *testing.T, list []syscall.Conn) {
	t.Helper()
	for _, c := range list {
		if err := c.(*net.UnixConn).Close(); err != nil { // this process's hold on it: the kernel has its own
			t.Error(err)
		}
	}
}

func sysfs(t *testing.T, index int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/nbd%d/%s", index, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestGuestDriver(t *testing.T) {
	guest(t)
	dev := &counted{Memory: blockdev.NewMemory(64 << 20)}
	queue := blockdev.Async(dev, 4)
	path := filepath.Join(t.TempDir(), "crm.sock")
	stop := serve(t, queue, path)

	driver, err := kernel.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	conns, size, flags := dial(t, path, 2)
	s := kernel.Settings{Index: kernel.Any, Size: size, BlockSize: 4096, Flags: flags, Timeout: 3 * time.Second, DeadTimeout: 30 * time.Second, Backend: "crm", Conns: conns}
	index, err := driver.Connect(s)
	if err != nil {
		t.Fatal(err)
	}
	hangUp(t, conns)
	s.Index = index
	if up, err := driver.Connected(); err != nil || !up[index] {
		t.Errorf("Connected: %v, %v; nbd%d is", up, err, index)
	}
	if got := sysfs(t, index, "size"); got != fmt.Sprint(64<<20/512) {
		t.Errorf("size in sectors: %s", got)
	}
	if got := sysfs(t, index, "queue/write_cache"); got != "write back" {
		t.Errorf("the kernel believes that the cache is %q: it would never flush", got)
	}
	if got := sysfs(t, index, "backend"); got != "crm" {
		t.Errorf("backend %q", got)
	}
	again, _, _ := dial(t, path, 1)
	busy := s
	busy.Conns = again
	if _, err := driver.Connect(busy); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("connecting it twice: %v", err)
	}
	foreign := busy
	foreign.Backend = "erp"
	if err := driver.Reconfigure(foreign); !errors.Is(err, kernel.ErrNotConnected) {
		t.Errorf("giving it another volume's connections: %v", err)
	}
	hangUp(t, again)

	disk, err := os.OpenFile(fmt.Sprintf("/dev/nbd%d", index), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string, at int64) {
		t.Helper()
		if _, err := disk.WriteAt(bytes.Repeat([]byte(text), 4096/len(text)), at); err != nil {
			t.Fatal(err)
		}
		before := dev.flushes.Load()
		if err := disk.Sync(); err != nil {
			t.Fatal(err)
		}
		if dev.flushes.Load() == before {
			t.Error("fsync sent no flush")
		}
		p := make([]byte, 4)
		if err := dev.ReadAt(p, at); err != nil || string(p) != text[:4] {
			t.Errorf("at %d the device has %q, %v", at, p, err)
		}
	}
	write("abcd", 8192)
	if out, err := exec.Command("blkdiscard", "-o", "0", "-l", "1048576", disk.Name()).CombinedOutput(); err != nil || dev.trims.Load() == 0 {
		t.Errorf("blkdiscard: %v %s; %d trims", err, out, dev.trims.Load())
	}

	// The server dies; a write waits, and is done when another server is there.
	stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		write("late", 1<<20)
	}()
	select {
	case <-written:
		t.Error("a write was answered without a server")
	case <-time.After(time.Second):
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	defer serve(t, queue, path)()
	fresh, _, _ := dial(t, path, 2)
	s.Conns = fresh
	if err := driver.Reconfigure(s); err != nil {
		t.Fatal(err)
	}
	hangUp(t, fresh)
	began := time.Now()
	select {
	case <-written:
		t.Logf("the write was done %v after the reconnection", time.Since(began).Round(time.Millisecond))
	case <-time.After(20 * time.Second):
		t.Fatal("the write is not done though there is a server again")
	}

	if err := disk.Close(); err != nil {
		t.Error(err)
	}
	if err := driver.Disconnect(index); err != nil {
		t.Error(err)
	}
	if err := driver.Disconnect(index); !errors.Is(err, kernel.ErrNotConnected) {
		t.Logf("detaching it twice: %v", err) // kernels differ
	}
	if up, err := driver.Connected(); err != nil || up[index] {
		t.Errorf("Connected: %v, %v; nbd%d is not any more", up, err, index)
	}
}

// TestNoKernelDriver: without the driver the error says what to do.
func TestNoKernelDriver(t *testing.T) {
	if _, err := os.Stat("/sys/module/nbd"); err == nil || errors.Is(err, unix.EACCES) {
		t.Skip("this kernel has the nbd driver")
	}
	if c, err := kernel.Dial(); !errors.Is(err, kernel.ErrNoDriver) {
		t.Errorf("Dial: %v, %v; want %v", c, err, kernel.ErrNoDriver)
	}
}
