package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// FS is an export on its way to a mounted file system. It is not safe for
// concurrent use.
type FS struct {
	dir  string
	fuse *process.Process
	loop string // "/dev/loop3"; empty: not attached
	on   bool   // mounted
}

// commandTimeout bounds each of the programs that only look at or change the
// device; mkfs and e2fsck get as long as the caller's context.
const commandTimeout = 30 * time.Second

// Open serves the export at uri ("nbd+unix:///crm?socket=/path") as a file, and
// attaches a loop device to it. dir is made if missing; it must be empty.
func Open(ctx context.Context, dir, uri string) (*FS, error) {
	f := &FS{dir: dir}
	for _, sub := range []string{f.fuseDir(), f.Dir()} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, fmt.Errorf("directory for the mount: %w", err)
		}
	}
	var err error
	f.fuse, err = process.Start(process.Options{
		Args: []string{"nbdfuse", f.file(), uri},
		Log:  filepath.Join(dir, "nbdfuse.log"),
	})
	if err != nil {
		return nil, err
	}
	if err := f.attach(ctx); err != nil {
		return nil, errors.Join(err, f.Crash(ctx))
	}
	return f, nil
}

// attach waits for the file and puts a loop device on it.
func (f *FS) attach(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if info, err := os.Stat(f.file()); err == nil && info.Mode().IsRegular() {
			break
		}
		select {
		case <-tick.C:
		case <-f.fuse.Ended():
			return f.fuse.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", f.file(), ctx.Err())
		}
	}
	out, err := run(ctx, "losetup", "--find", "--show", "--direct-io=on", f.file())
	if err != nil {
		return err
	}
	f.loop = strings.TrimSpace(out)
	return nil
}

func (f *FS) fuseDir() string { return filepath.Join(f.dir, "fuse") }
func (f *FS) file() string    { return filepath.Join(f.fuseDir(), "disk") }

// Dir returns the directory the file system is or will be mounted on.
func (f *FS) Dir() string { return filepath.Join(f.dir, "fs") }

// Device returns the loop device.
func (f *FS) Device() string { return f.loop }

// Processes returns what a death of the host takes along.
func (f *FS) Processes() []*process.Process { return []*process.Process{f.fuse} }

// Format makes an ext4 file system.
func (f *FS) Format(ctx context.Context) error {
	_, err := process.Run(ctx, process.Options{Args: []string{"mkfs.ext4", "-q", "-F", f.loop}})
	return err
}

// Mount mounts the file system; ext4 replays its journal if it has to.
func (f *FS) Mount(ctx context.Context) error {
	if _, err := run(ctx, "mount", "-t", "ext4", f.loop, f.Dir()); err != nil {
		return err
	}
	f.on = true
	return nil
}

// NeedsReplay reports whether the file system was left in use, so that the next
// Mount has its journal to replay.
func (f *FS) NeedsReplay(ctx context.Context) (bool, error) {
	out, err := run(ctx, "dumpe2fs", "-h", f.loop)
	if err != nil {
		return false, err
	}
	return strings.Contains(out, "needs_recovery"), nil
}

// Unmount unmounts the file system: when it returns nil, everything is in the
// export and flushed.
func (f *FS) Unmount(ctx context.Context) error {
	if !f.on {
		return nil
	}
	if err := unmount(ctx, f.Dir()); err != nil {
		return err
	}
	f.on = false
	return nil
}

// Check runs e2fsck -fn, which reads all and changes nothing, and returns its
// summary. REQUIRES: not mounted.
func (f *FS) Check(ctx context.Context) (string, error) {
	if f.on {
		return "", fmt.Errorf("check %s: it is mounted", f.loop)
	}
	out, err := process.Run(ctx, process.Options{Args: []string{"e2fsck", "-fn", f.loop}})
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}

// Close unmounts and takes everything down in order.
func (f *FS) Close(ctx context.Context) error {
	if err := f.Unmount(ctx); err != nil {
		return errors.Join(err, f.Crash(ctx))
	}
	if f.loop != "" {
		if _, err := run(ctx, "losetup", "--detach", f.loop); err != nil {
			return errors.Join(err, f.Crash(ctx))
		}
		f.loop = ""
	}
	if err := unmount(ctx, f.fuseDir()); err != nil {
		return errors.Join(err, f.Crash(ctx))
	}
	return f.fuse.Stop(syscall.SIGTERM, 5*time.Second)
}

// unmount unmounts dir, and is patient with a busy one: the kernel lets go of a
// loop device's file some time after losetup has returned, on a busy machine
// seconds later, and whoever walks the mounts of a host holds one for a moment.
func unmount(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(commandTimeout); ; time.Sleep(50 * time.Millisecond) {
		_, err := run(ctx, "umount", dir)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Crash kills what is alive and removes the remains of a mount whose server may
// be gone: everything is unmounted lazily, and nothing is written back. It uses
// its own time limit, so that it works when ctx has ended.
func (f *FS) Crash(ctx context.Context) error {
	process.Kill(f.fuse)
	ctx = context.WithoutCancel(ctx)
	var errs []error
	attempt := func(args ...string) {
		if _, err := run(ctx, args...); err != nil {
			errs = append(errs, err)
		}
	}
	if mounted(f.Dir()) {
		attempt("umount", "--lazy", f.Dir())
	}
	f.on = false
	if f.loop != "" {
		attempt("losetup", "--detach", f.loop)
		f.loop = ""
	}
	if mounted(f.fuseDir()) {
		attempt("umount", "--lazy", f.fuseDir())
	}
	return errors.Join(errs...)
}

// mounted reports whether something is mounted on dir.
func mounted(dir string) bool {
	for _, m := range Below(dir) {
		if m == dir {
			return true
		}
	}
	return false
}

// Below returns the mount points at dir and below it. Source: proc(5), mountinfo.
func Below(dir string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\134`, `\`).Replace(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	return found
}

// run runs a short command with a time limit of its own.
func run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return process.Run(ctx, process.Options{Args: args})
}
