package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what is asked of the machine. This is the one that the program runs on;
// tests have others.
type Host struct {
	// Root is where /proc, /sys and /dev are looked for: "/".
	Root string
	// Buffers returns the bytes that a UDP socket of this user gets when it asks for
	// want, for receiving and for sending.
	Buffers func(want int) (receive, send int, err error)
	// ClockSynced says whether something keeps the clock right.
	ClockSynced func() (bool, error)
	// FileSystem describes where a file is or would be.
	FileSystem func(path string) (FileSystem, error)
	// User is the effective user id that the agent is assumed to have: this one's.
	User int
}

// FileSystem is where files lie.
type FileSystem struct {
	FreeBytes int64 // for this user
	Size      int64
	Volatile  bool // gone after a reboot
}

// ThisHost returns the machine that the program runs on.
func ThisHost() Host {
	return Host{Root: "/", Buffers: udpBuffers, ClockSynced: clockSynced, FileSystem: fileSystem, User: os.Geteuid()}
}

// wantBuffers is what quic-go asks for, and net.core needs to allow it: some more.
const (
	wantBuffers  = 7 << 20
	buffersLimit = 7500000
)

func (e *exam) host() {
	e.buffers()
	e.drops()
	e.devices()
	e.clock()
}

// buffers asks for what the QUIC socket asks for. The kernel reports twice what it
// grants.
func (e *exam) buffers() {
	const check = "UDP buffers"
	receive, send, err := e.o.Host.Buffers(wantBuffers)
	if err != nil {
		e.add(unknown(check, err))
		return
	}
	if receive >= wantBuffers && send >= wantBuffers {
		e.add(ok(check, "%d KiB to receive, %d KiB to send", receive>>10, send>>10))
		return
	}
	e.add(Finding{Level: Change, Check: check,
		Text: fmt.Sprintf("the kernel grants %d KiB to receive and %d KiB to send, QUIC asks for %d: bursts are dropped and sent again", receive>>10, send>>10, wantBuffers>>10),
		Fix:  fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d, and the same two settings in /etc/sysctl.d/60-qrbd.conf; then restart the agent", buffersLimit, buffersLimit)})
}

// udpBuffers opens a socket like the agent's.
func udpBuffers(want int) (receive, send int, err error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, 0, fmt.Errorf("opening a UDP socket: %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("UDP socket: %w", err)
	}
	granted := func(fd, set, force, get int) (int, error) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, set, want)
		if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, get); err == nil && n/2 < want {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, want) // needs CAP_NET_ADMIN
		}
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, get)
		return n / 2, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		var e1, e2 error
		receive, e1 = granted(int(fd), unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
		send, e2 = granted(int(fd), unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
		inner = errors.Join(e1, e2)
	})
	return receive, send, errors.Join(err, inner)
}

// drops looks for datagrams that the kernel threw away because the agent's socket was
// full. Source of the columns: proc_net(5), drops is the last.
func (e *exam) drops() {
	const check = "UDP drops"
	if e.o.Config == nil {
		return
	}
	_, port, err := net.SplitHostPort(e.o.Config.Node.Listen)
	if err != nil {
		return // the configuration was checked
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return
	}
	total, found := uint64(0), false
	for _, name := range []string{"proc/net/udp", "proc/net/udp6"} {
		text, err := os.ReadFile(filepath.Join(e.o.Host.Root, name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 13 || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) {
				continue
			}
			if drops, err := strconv.ParseUint(f[len(f)-1], 10, 64); err == nil {
				total, found = total+drops, true
			}
		}
	}
	switch {
	case !found: // nobody listens there: the agent is not running
	case total > 0:
		e.add(Finding{Level: Note, Check: check, Text: fmt.Sprintf("the kernel has dropped %d datagrams for port %s since the agent started: it could not take them in time", total, port),
			Fix: "larger UDP buffers (above); if they are large, a CPU that has less to do"})
	default:
		e.add(ok(check, "none on port %s", port))
	}
}

// devices says how a volume can become a disk of this host.
func (e *exam) devices() {
	const check = "kernel devices"
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(e.o.Host.Root, name))
		return err == nil
	}
	nbd := exists("sys/module/nbd") || exists("dev/nbd0")
	module := nbd || e.hasModule("nbd")
	fuse, loop := exists("dev/fuse"), exists("dev/loop-control")
	switch {
	case nbd:
		e.add(ok(check, "the kernel's nbd driver is loaded"))
	case module:
		e.add(Finding{Level: Note, Check: check, Text: "the kernel has an nbd driver that is not loaded", Fix: "modprobe nbd, and nbd on a line in /etc/modules-load.d/qrbd.conf"})
	case fuse && loop:
		e.add(ok(check, "the kernel has no nbd driver; FUSE and loop devices serve as well"))
	default:
		missing := "/dev/fuse"
		if fuse {
			missing = "/dev/loop-control"
		}
		e.add(Finding{Level: Note, Check: check, Text: "volumes cannot be attached here: there is no nbd driver and no " + missing,
			Fix: "a kernel with nbd, or FUSE and loop devices; clients that speak NBD themselves need neither"})
	}
}

// hasModule looks for a module of the running kernel that is not loaded.
func (e *exam) hasModule(name string) bool {
	release, err := os.ReadFile(filepath.Join(e.o.Host.Root, "proc/sys/kernel/osrelease"))
	if err != nil {
		return false
	}
	dir := filepath.Join(e.o.Host.Root, "lib/modules", strings.TrimSpace(string(release)))
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		if text, err := os.ReadFile(filepath.Join(dir, list)); err == nil && strings.Contains(string(text), "/"+name+".ko") {
			return true
		}
	}
	return false
}

func (e *exam) clock() {
	const check = "clock"
	synced, err := e.o.Host.ClockSynced()
	switch {
	case err != nil:
		e.add(unknown(check, err))
	case synced:
		e.add(ok(check, "it is synchronised"))
	default:
		e.add(Finding{Level: Note, Check: check, Text: "nothing keeps it right: times in status, events and logs of the nodes cannot be compared, nor what explain says of a split brain",
			Fix: "run chrony or systemd-timesyncd"})
	}
}

// clockSynced asks the kernel, whose flag NTP clients clear.
func clockSynced() (bool, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, fmt.Errorf("the kernel does not tell: %w", err)
	}
	return t.Status&unix.STA_UNSYNC == 0, nil
}

// fileSystem looks at the nearest directory above that exists.
func fileSystem(path string) (FileSystem, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if up := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && up != path {
			path = up
			continue
		}
		return FileSystem{}, fmt.Errorf("file system of %s: %w", path, err)
	}
	volatile := st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
	return FileSystem{FreeBytes: int64(st.Bavail) * st.Bsize, Size: int64(st.Blocks) * st.Bsize, Volatile: volatile}, nil
}
