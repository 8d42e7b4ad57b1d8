package mount

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/qrbd/qrbd/tests/stack/process"
)

// FS is a block device on its way to a mounted file system. It is not safe for
// concurrent use.
type FS struct {
	dir    string
	device string
	on     bool // mounted
}

// commandTimeout bounds each of the programs that only look at or change the
// device; mkfs and e2fsck get as long as the caller's context.
const commandTimeout = 30 * time.Second

// New describes the file system of a device, to be mounted on dir, which is made if
// missing.
func New(dir, device string) (*FS, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for the mount: %w", err)
	}
	return &FS{dir: dir, device: device}, nil
}

// Dir returns the directory the file system is or will be mounted on.
func (f *FS) Dir() string { return f.dir }

// Format makes an ext4 file system.
func (f *FS) Format(ctx context.Context) error {
	_, err := process.Run(ctx, process.Options{Args: []string{"mkfs.ext4", "-q", "-F", f.device}})
	return err
}

// Mount mounts the file system; ext4 replays its journal if it has to.
func (f *FS) Mount(ctx context.Context) error {
	if _, err := run(ctx, "mount", "-t", "ext4", f.device, f.dir); err != nil {
		return err
	}
	f.on = true
	return nil
}

// NeedsReplay reports whether the file system was left in use, so that the next
// Mount has its journal to replay.
func (f *FS) NeedsReplay(ctx context.Context) (bool, error) {
	out, err := run(ctx, "dumpe2fs", "-h", f.device)
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
	if err := unmount(ctx, f.dir); err != nil {
		return err
	}
	f.on = false
	return nil
}

// Check runs e2fsck -fn, which reads all and changes nothing, and returns its
// summary. REQUIRES: not mounted.
func (f *FS) Check(ctx context.Context) (string, error) {
	if f.on {
		return "", fmt.Errorf("check %s: it is mounted", f.device)
	}
	out, err := process.Run(ctx, process.Options{Args: []string{"e2fsck", "-fn", f.device}})
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}

// unmount unmounts dir, and is patient with a busy one: whoever walks the mounts of a
// host holds one for a moment.
func unmount(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(commandTimeout); ; time.Sleep(50 * time.Millisecond) {
		_, err := run(ctx, "umount", dir)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Crash removes the remains of a mount whose device is dead: it is unmounted lazily, and
// nothing is written back. REQUIRES: the device fails its requests; were it to wait for
// somebody, so would this. It uses its own time limit, so that it works when ctx has
// ended.
func (f *FS) Crash(ctx context.Context) error {
	f.on = false
	if !mounted(f.dir) {
		return nil
	}
	_, err := run(context.WithoutCancel(ctx), "umount", "--lazy", f.dir)
	return err
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
