package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/agent/config"
	"github.com/qrbd/qrbd/protocol/session"
)

// configuration says what is wrong with the file, a finding for each fault.
func (e *exam) configuration() {
	const check = "configuration"
	var ce *config.Error
	switch {
	case errors.As(e.o.Fault, &ce):
		for _, f := range ce.Faults {
			one := config.Error{File: ce.File, Faults: []config.Fault{f}}
			e.add(Finding{Level: Change, Check: check, Text: one.Error(), Fix: "correct it, then run: qrbd config check"})
		}
	case e.o.Fault != nil:
		e.add(Finding{Level: Change, Check: check, Text: e.o.Fault.Error(), Fix: "qrbd init writes a first one"})
	case e.o.Config != nil:
		c := e.o.Config
		e.add(ok(check, "%s is valid: node %s, peers %d, volumes %d", c.File, c.Node.Name, len(c.Peers), len(c.Volumes)))
	}
}

func (e *exam) files() {
	e.state()
	e.key()
	e.archives()
	e.hooks()
	for i := range e.o.Config.Volumes {
		e.backing(&e.o.Config.Volumes[i])
	}
}

// state looks at the directory that holds key and metadata.
func (e *exam) state() {
	const check = "state directory"
	dir := e.o.Config.Node.State
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add(Finding{Level: Change, Check: check, Text: dir + " does not exist", Fix: "qrbd create makes it with the first volume, qrbd identity with the key"})
		return
	case err != nil:
		e.add(Finding{Level: Change, Check: check, Text: err.Error(), Fix: "run qrbd doctor as the agent's user (root)"})
		return
	case !info.IsDir():
		e.add(Finding{Level: Change, Check: check, Text: dir + " is no directory", Fix: "name a directory in node.state"})
		return
	}
	before := len(e.found)
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s has mode %04o: others may replace key and metadata", dir, perm), Fix: "chmod 700 " + dir})
	} else if perm&0o055 != 0 {
		e.add(Finding{Level: Note, Check: check, Text: fmt.Sprintf("%s has mode %04o: others may look into it", dir, perm), Fix: "chmod 700 " + dir})
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s cannot be written by this user: %v", dir, err), Fix: "run qrbd doctor as the agent's user, or give it the directory"})
	}
	f, err := e.o.Host.FileSystem(dir)
	switch {
	case err != nil:
		e.add(unknown(check, err))
	case f.Volatile:
		e.add(Finding{Level: Change, Check: check, Text: dir + " is in memory: key and metadata are gone after a reboot, and with them what a peer lacks", Fix: "name a directory on a disk in node.state"})
	case f.FreeBytes < 64<<20:
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("only %s are free in %s: metadata of new peers and records may not fit", size(f.FreeBytes), dir), Fix: "make room there"})
	}
	if len(e.found) == before {
		e.add(ok(check, "%s, mode %04o, %s free", dir, info.Mode().Perm(), size(f.FreeBytes)))
	}
}

// key looks at the identity without making one.
func (e *exam) key() {
	const check = "identity key"
	id, err := session.LoadIdentity(e.o.Config.Node.State)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add(Finding{Level: Note, Check: check, Text: "there is none yet", Fix: "qrbd identity makes it, and prints what the peers need"})
	case err != nil:
		e.add(Finding{Level: Change, Check: check, Text: err.Error(), Fix: "correct that; peers know the node by this key"})
	default:
		if err := e.o.Config.CheckIdentity(id.PublicKey()); err != nil {
			e.add(Finding{Level: Change, Check: check, Text: err.Error(), Fix: "each node has its own key"})
			return
		}
		e.add(ok(check, "%s, readable by its owner only", filepath.Join(e.o.Config.Node.State, session.KeyFile)))
	}
}

// hooks looks whether what fencing relies on can be run.
func (e *exam) hooks() {
	var ce *config.Error
	if !errors.As(e.o.Config.CheckHooks(), &ce) {
		return
	}
	for _, f := range ce.Faults {
		e.add(Finding{Level: Change, Check: "hooks", Text: f.Text, Fix: "put it there, executable: without it a primary that loses a peer stays frozen, nobody is promoted, and the agent does not start"})
	}
}

// archives compares the room with what one archive of each volume may take: as much
// as was written there, at most the volume.
func (e *exam) archives() {
	const check = "archive space"
	need := int64(0)
	var names []string
	for i := range e.o.Config.Volumes {
		v := &e.o.Config.Volumes[i]
		if v.Archive == config.ArchiveOff {
			continue
		}
		taken, err := allocated(v.Backing)
		if err != nil {
			continue // said below
		}
		if taken == 0 {
			taken = v.Size // a block device
		}
		need += min(taken, v.Size)
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		return
	}
	dir := e.o.Config.ArchiveRoot()
	f, err := e.o.Host.FileSystem(dir)
	switch {
	case err != nil:
		e.add(unknown(check, err))
	case f.FreeBytes < 1<<30 && f.FreeBytes < need:
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s are free in %s: a side that is given up after a split brain cannot be archived, and the sync that ends it is refused", size(f.FreeBytes), dir),
			Fix: "make room, name another place in node.archive_dir, or set archive = \"off\" if nobody wants to undo such a decision"})
	case f.FreeBytes < need:
		e.add(Finding{Level: Note, Check: check, Text: fmt.Sprintf("%s are free in %s; archives of %s may take up to %s if all was written on the losing side", size(f.FreeBytes), dir, strings.Join(names, ", "), size(need)),
			Fix: "make room, or name another place in node.archive_dir"})
	default:
		e.add(ok(check, "%s are free in %s, %s at most are needed", size(f.FreeBytes), dir, size(need)))
	}
}

// backing looks at a volume's backing store.
func (e *exam) backing(v *config.Volume) {
	check := "backing of " + v.Name
	info, err := os.Stat(v.Backing)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add(Finding{Level: Note, Check: check, Text: v.Backing + " does not exist", Fix: "qrbd create " + v.Name})
		return
	case err != nil:
		e.add(Finding{Level: Change, Check: check, Text: err.Error(), Fix: "run qrbd doctor as the agent's user (root)"})
		return
	}
	before := len(e.found)
	if err := unix.Access(v.Backing, unix.R_OK|unix.W_OK); err != nil {
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s cannot be read and written by this user: %v", v.Backing, err), Fix: "run qrbd doctor as the agent's user (root)"})
	}
	if _, err := os.Stat(e.o.Config.MetaPath(v.Name)); errors.Is(err, fs.ErrNotExist) {
		e.add(Finding{Level: Note, Check: check, Text: "there is no metadata for it", Fix: "qrbd create " + v.Name})
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeDevice != 0:
		if where := e.mounted(v.Backing, info); where != "" {
			e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s is mounted on %s: both would write to it", v.Backing, where), Fix: "umount " + where})
		}
	case !mode.IsRegular():
		e.add(Finding{Level: Change, Check: check, Text: v.Backing + " is neither a file nor a block device", Fix: "name one in volume.backing"})
	default:
		e.file(check, v, info)
	}
	if len(e.found) == before {
		e.add(ok(check, "%s", v.Backing))
	}
}

// file looks at a backing store that is a file, and may have to grow.
func (e *exam) file(check string, v *config.Volume, info fs.FileInfo) {
	if info.Size() < v.Size {
		e.add(Finding{Level: Change, Check: check, Text: fmt.Sprintf("%s has %d bytes, the volume %d", v.Backing, info.Size(), v.Size), Fix: "put the size back that it had, or use qrbd resize"})
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		e.add(Finding{Level: Note, Check: check, Text: fmt.Sprintf("%s has mode %04o: others may read the volume's content", v.Backing, perm), Fix: "chmod 600 " + v.Backing})
	}
	f, err := e.o.Host.FileSystem(v.Backing)
	if err != nil {
		e.add(unknown(check, err))
		return
	}
	if f.Volatile {
		e.add(Finding{Level: Change, Check: check, Text: v.Backing + " is in memory: it is gone after a reboot", Fix: "name a file on a disk in volume.backing"})
		return
	}
	taken, err := allocated(v.Backing)
	if grows := v.Size - taken; err == nil && grows > f.FreeBytes {
		e.add(Finding{Level: Note, Check: check, Text: fmt.Sprintf("%s is sparse and may grow by %s, its file system has %s free: writes fail when that is full", v.Backing, size(grows), size(f.FreeBytes)),
			Fix: "make room, or take it from the start: fallocate -l " + fmt.Sprint(v.Size) + " " + v.Backing})
	}
}

// allocated returns how much of a file is on disk; 0 for a device.
func allocated(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// mounted returns where a block device is mounted.
func (e *exam) mounted(path string, info fs.FileInfo) string {
	st, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return ""
	}
	f, err := os.Open(filepath.Join(e.o.Host.Root, "proc/self/mountinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	device := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for s := bufio.NewScanner(f); s.Scan(); {
		if p := strings.Fields(s.Text()); len(p) > 4 && p[2] == device {
			return p[4]
		}
	}
	return ""
}

// size is a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
