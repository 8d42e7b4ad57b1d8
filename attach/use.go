package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Use is what stands in the way of taking a device away.
type Use struct {
	Mounts  []string `json:"mounts"`  // mount points
	Holders []string `json:"holders"` // what is built on it: "dm-0", "swap"
	Openers []string `json:"openers"` // processes that have it open: "mariadbd (4711)"
	// Exclusive: the kernel holds it, for whatever reason; also for mounts in other
	// namespaces.
	Exclusive bool `json:"exclusive"`
}

// Any reports whether it is in use at all.
func (u Use) Any() bool {
	return u.Exclusive || len(u.Mounts)+len(u.Holders)+len(u.Openers) > 0
}

// String is the end of a sentence: "mounted on /srv/crm".
func (u Use) String() string {
	var parts []string
	for _, p := range []struct {
		what string
		list []string
	}{{"mounted on ", u.Mounts}, {"held by ", u.Holders}, {"open in ", u.Openers}} {
		if len(p.list) > 0 {
			parts = append(parts, p.what+strings.Join(p.list, ", "))
		}
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, " and ")
	case u.Exclusive:
		return "in exclusive use (mounted in another mount namespace, perhaps)"
	}
	return "not in use"
}

// InUse finds out what uses a block device, its partitions, and what is built on them.
// It needs root to see the processes of others.
func InUse(device string) (Use, error) {
	name := filepath.Base(device)
	nodes, holders := family("/sys", name)
	u := Use{Mounts: []string{}, Holders: holders, Openers: []string{}}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return u, fmt.Errorf("mounts of %s: %w", device, err)
	}
	u.Mounts = append(u.Mounts, mountPoints(string(mounts), nodes)...)
	if swaps, err := os.ReadFile("/proc/swaps"); err == nil {
		for line := range strings.Lines(string(swaps)) {
			if path, _, _ := strings.Cut(line, " "); slices.Contains(paths(nodes), path) {
				u.Holders = append(u.Holders, "swap")
			}
		}
	}
	u.Openers = append(u.Openers, openers(paths(nodes))...)
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		unix.Close(fd)
	case errors.Is(err, unix.EBUSY):
		u.Exclusive = true
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO):
		return u, fmt.Errorf("looking whether %s is in use: %w", device, err)
	}
	return u, nil
}

// node is a block device of the kernel.
type node struct{ name, number string } // "loop3p1", "259:1"

func paths(nodes []node) []string {
	var l []string
	for _, n := range nodes {
		l = append(l, "/dev/"+n.name)
	}
	return l
}

// family lists a device, its partitions, and what is built on any of them, and the names
// of the latter. sys is where sysfs is mounted.
func family(sys, name string) (nodes []node, holders []string) {
	holders = []string{}
	var visit func(name string)
	visit = func(name string) {
		dir := filepath.Join(sys, "class/block", name)
		number, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil || slices.ContainsFunc(nodes, func(n node) bool { return n.name == name }) {
			return
		}
		nodes = append(nodes, node{name, strings.TrimSpace(string(number))})
		above, _ := os.ReadDir(filepath.Join(dir, "holders"))
		for _, h := range above {
			holders = append(holders, h.Name())
			visit(h.Name())
		}
		parts, _ := os.ReadDir(dir)
		for _, p := range parts {
			if _, err := os.Stat(filepath.Join(dir, p.Name(), "partition")); err == nil {
				visit(p.Name())
			}
		}
	}
	visit(name)
	return nodes, holders
}

// mountPoints returns where the devices are mounted. Source: proc(5), mountinfo: field 3
// is the device's number, 5 the mount point; behind the dash are type and source.
func mountPoints(mountinfo string, nodes []node) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if len(fields) < 5 || dash < 0 || dash+2 >= len(fields) {
			continue
		}
		source := unescape(fields[dash+2])
		for _, n := range nodes {
			if fields[2] == n.number || source == "/dev/"+n.name { // btrfs has numbers of its own
				points = append(points, unescape(fields[4]))
				break
			}
		}
	}
	return points
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// openersMax bounds how many are named.
const openersMax = 5

// openers names the processes that have one of the files open.
func openers(files []string) []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fds, err := os.ReadDir(filepath.Join("/proc", e.Name(), "fd"))
		if err != nil {
			continue // it has ended, or is another user's
		}
		for _, fd := range fds {
			to, err := os.Readlink(filepath.Join("/proc", e.Name(), "fd", fd.Name()))
			if err != nil || !slices.Contains(files, to) {
				continue
			}
			name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
			found = append(found, fmt.Sprintf("%s (%d)", strings.TrimSpace(string(name)), pid))
			break
		}
		if len(found) == openersMax {
			break
		}
	}
	return found
}
