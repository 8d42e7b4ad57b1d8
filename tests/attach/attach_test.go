package attach

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/stack/mount"
)

func TestMain(m *testing.M) {
	mount.Alone()
	os.Exit(cluster.Main(m))
}

const volume = "crm"

// method is how volumes are attached: fuse, or what QRBD_ATTACH_METHOD says.
func method() string { return cmp.Or(os.Getenv("QRBD_ATTACH_METHOD"), "fuse") }

// deviceName is how the method's devices begin.
func deviceName() string { return map[string]string{"fuse": "/dev/loop", "nbd": "/dev/nbd"}[method()] }

// up is the state of a device that can be used. The kernel's own client does not tell
// whether it is connected.
func up() string { return map[string]string{"fuse": "connected", "nbd": "attached"}[method()] }

// needTold skips a test that looks at what a device tells of itself.
func needTold(t *testing.T) {
	t.Helper()
	if method() != "fuse" {
		t.Skip("skipped: the kernel's own client does not tell whether it waits or is dead")
	}
}

// need skips the test where it cannot run.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: needs root")
	}
	for _, dev := range map[string][]string{"fuse": {"/dev/fuse", "/dev/loop-control"}, "nbd": {"/dev/nbd0"}}[method()] {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("skipped: needs %s", dev)
		}
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: needs %s", p)
		}
	}
}

// host is a node with its device and mount point.
type host struct {
	*cluster.Node
	t *testing.T
}

// pair makes alpha and beta in sync, alpha primary.
func pair(t *testing.T, o cluster.Options) (c *cluster.Cluster, alpha, beta *host) {
	t.Helper()
	next := o.Configure
	o.Configure = func(c *cluster.Config) {
		c.Extra = "heartbeat = \"400ms\"\npeer_timeout = \"2s\"\ndevices = \"" + filepath.Join(filepath.Dir(c.Control), "dev") + "\"\n"
		if next != nil {
			next(c)
		}
	}
	c = cluster.New(t, o)
	hosts := make([]*host, len(c.Nodes))
	for i, n := range c.Nodes {
		hosts[i] = &host{n, t}
		t.Cleanup(hosts[i].clear)
	}
	c.Up()
	return c, hosts[0], hosts[1]
}

// clear takes everything down, whatever the test left.
func (h *host) clear() {
	if len(h.list()) > 0 { // first: unmounting writes, and would wait for an agent that is gone
		h.Run("detach", volume, "--force")
	}
	for unix.Unmount(h.mnt(), unix.MNT_DETACH) == nil {
	}
	if h.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(h.Config.State, "attach", volume+".log"))
		h.t.Logf("log of the helper of %s:\n%s", h.Name, log)
	}
}

func (h *host) link() string { return filepath.Join(h.Dir, "dev", volume) }
func (h *host) mnt() string  { return filepath.Join(h.Dir, "mnt") }

// attached is the part of `qrbd attached --json` that the tests look at.
type attached struct {
	Volume, Method, Device, Link, State string
	Size                                int64
	Helper                              struct{ PID int }
	Serving                             struct {
		Sessions   int
		PauseMaxMS int64 `json:"pause_max_ms"`
	}
	Use struct{ Mounts, Holders, Openers []string }
}

func (h *host) list() []attached {
	h.t.Helper()
	var l []attached
	out := h.Must("attached", "--json")
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		h.t.Fatalf("attached --json: %v\n%s", err, out)
	}
	return l
}

// only returns what is attached, which is one volume.
func (h *host) only() attached {
	h.t.Helper()
	l := h.list()
	if len(l) != 1 {
		h.t.Fatalf("%s has attached: %+v, want one", h.Name, l)
	}
	return l[0]
}

// await waits until the attached volume is in a state.
func (h *host) await(state string, limit time.Duration) attached {
	h.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		a := h.only()
		if a.State == state {
			return a
		}
		if time.Now().After(end) {
			h.t.Fatalf("the device is %q, not %q within %v: %+v", a.State, state, limit, a)
		}
	}
}

// sh runs a program that has to succeed and returns its output.
func sh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (h *host) mount(device string) {
	h.t.Helper()
	if err := os.MkdirAll(h.mnt(), 0o755); err != nil {
		h.t.Fatal(err)
	}
	sh(h.t, "mount", device, h.mnt())
}

// TestAttach: an administrator's day with an attached volume, and what is refused.
func TestAttach(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4", "mkswap", "blockdev")
	_, alpha, beta := pair(t, cluster.Options{})
	beta.Refused([]string{"secondary here", "primary is alpha", "switchover crm --to beta"}, "attach", volume)
	alpha.Refused([]string{"no method", "nbd or fuse"}, "attach", volume, "--method", "iscsi")
	alpha.Refused([]string{"/dev/null", "no device that a volume can be attached as"}, "attach", volume, "/dev/null")
	alpha.Refused([]string{"not attached"}, "detach", volume)
	alpha.Refused([]string{"no volume \"web\""}, "attach", "web")

	out := alpha.Must("attach", volume, "--method", method())
	a := alpha.only()
	if a.Volume != volume || a.Method != method() || a.State != up() || a.Link != alpha.link() || a.Size != 64<<20 ||
		!strings.HasPrefix(a.Device, deviceName()) || !strings.Contains(out, a.Device) || !strings.Contains(out, method()) {
		t.Errorf("attached: %+v; attach printed %q", a, out)
	}
	if to, err := os.Readlink(alpha.link()); err != nil || to != a.Device {
		t.Errorf("%s leads to %q, %v; want %s", alpha.link(), to, err, a.Device)
	}
	if size := strings.TrimSpace(sh(t, "blockdev", "--getsize64", alpha.link())); size != "67108864" {
		t.Errorf("getsize64: %s", size)
	}
	alpha.Refused([]string{"attached already", a.Device}, "attach", volume)
	alpha.Refused([]string{"attached as " + a.Device, "qrbd detach crm first"}, "demote", volume)

	sh(t, "mkfs.ext4", "-q", alpha.link())
	alpha.mount(alpha.link())
	if u := alpha.only().Use; len(u.Mounts) != 1 || u.Mounts[0] != alpha.mnt() {
		t.Errorf("in use: %+v, want mounted on %s", u, alpha.mnt())
	}
	alpha.Refused([]string{"mounted on " + alpha.mnt()}, "detach", volume)
	alpha.Refused([]string{"mounted on " + alpha.mnt(), "detach crm"}, "demote", volume)
	alpha.Refused([]string{"mounted on " + alpha.mnt(), "detach crm"}, "switchover", volume, "--to", "beta")
	want := bytes.Repeat([]byte("every commit is on two machines\n"), 1<<15)
	writeSynced(t, filepath.Join(alpha.mnt(), "file"), want)
	sh(t, "umount", alpha.mnt())

	sh(t, "mkswap", alpha.link()+"") // destroys the file system; only to see who holds the device
	if err := exec.Command("swapon", alpha.link()).Run(); err == nil {
		alpha.Refused([]string{"held by swap"}, "detach", a.Device)
		sh(t, "swapoff", alpha.link())
	}
	open, err := os.Open(a.Device)
	if err != nil {
		t.Fatal(err)
	}
	alpha.Refused([]string{"open in"}, "detach", a.Device)
	open.Close()

	alpha.Must("detach", alpha.link())
	if l := alpha.list(); len(l) != 0 {
		t.Errorf("after detach: %+v", l)
	}
	if _, err := os.Lstat(alpha.link()); err == nil {
		t.Error("the link is still there")
	}
	if words, _ := os.ReadFile("/proc/" + itoa(a.Helper.PID) + "/cmdline"); a.Helper.PID != 0 && len(words) > 0 { // a zombie has none
		t.Errorf("the helper is still there: %q", words)
	}
	alpha.Must("switchover", volume, "--to", "beta")
	beta.Must("attach", volume, "--method", method())
	beta.Must("detach", volume)
}

// TestDevice: what a disk has to do besides reading and writing.
func TestDevice(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4", "mkfs.xfs", "sfdisk", "addpart", "blkdiscard", "fstrim", "fsfreeze", "xfs_io")
	c, alpha, beta := pair(t, cluster.Options{Size: "512MiB"})
	alpha.Must("demote", volume)
	if out := alpha.Must("promote", volume, "--attach"); !strings.Contains(out, "is primary here") || !strings.Contains(out, deviceName()) {
		t.Errorf("promote --attach printed %q", out)
	}
	dev := alpha.only().Device

	t.Run("partitions", func(t *testing.T) {
		cmd := exec.Command("sfdisk", "-q", dev)
		cmd.Stdin = strings.NewReader("label: gpt\nstart=2048,size=204800\nstart=206848,size=204800\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, out)
		}
		if table := sh(t, "sfdisk", "-d", dev); !strings.Contains(table, dev+"p2 : start=      206848, size=      204800") {
			t.Errorf("the partition table reads:\n%s", table)
		}
		part := dev + "p2"
		if _, err := os.Stat(part); err != nil { // this kernel reads no partition tables: it is told
			sh(t, "addpart", dev, "2", "206848", "204800")
			defer sh(t, "delpart", dev, "2")
		}
		waitFor(t, part)
		sh(t, "mkfs.ext4", "-q", part)
		alpha.mount(part)
		alpha.Refused([]string{"mounted on " + alpha.mnt()}, "detach", volume)
		alpha.Refused([]string{"mounted on " + alpha.mnt()}, "demote", volume)
		sh(t, "umount", alpha.mnt())
	})
	t.Run("discard", func(t *testing.T) {
		sh(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=128", "conv=fsync", "status=none")
		if n := allocated(t, beta.Backing(volume)); n < 128<<20 {
			t.Fatalf("the peer's store has only %d bytes", n)
		}
		sh(t, "blkdiscard", dev)
		for _, n := range []*host{alpha, beta} {
			if left := allocated(t, n.Backing(volume)); left > 1<<20 {
				t.Errorf("after blkdiscard the store of %s has %d bytes", n.Name, left)
			}
		}
		sh(t, "blkdiscard", "--zeroout", "--length", "8MiB", dev) // allocates
		if n := allocated(t, beta.Backing(volume)); n < 8<<20 {
			t.Errorf("zeroes that shall be allocated are not: %d bytes", n)
		}
		sh(t, "cmp", "-n", "134217728", dev, "/dev/zero")
	})
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			sh(t, "blkdiscard", dev)
			force := map[string]string{"ext4": "-F", "xfs": "-f"}[fs]
			sh(t, "mkfs."+fs, "-q", force, dev)
			alpha.mount(dev)
			file := filepath.Join(alpha.mnt(), "file")
			writeSynced(t, file, bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16*8))
			before := allocated(t, beta.Backing(volume))
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			sh(t, "sync", "-f", alpha.mnt())
			after := before
			for end := time.Now().Add(10 * time.Second); before-after < 60<<20; time.Sleep(100 * time.Millisecond) {
				sh(t, "fstrim", alpha.mnt()) // xfs frees in the background
				if after = allocated(t, beta.Backing(volume)); time.Now().After(end) {
					t.Fatalf("fstrim took the peer's store from %d to %d bytes", before, after)
				}
			}
			sh(t, "fsfreeze", "-f", alpha.mnt())
			alpha.Refused([]string{"mounted on"}, "detach", volume)
			sh(t, "fsfreeze", "-u", alpha.mnt())
			sh(t, "umount", alpha.mnt())
			check := map[string][]string{"ext4": {"e2fsck", "-fn", dev}, "xfs": {"xfs_repair", "-n", dev}}[fs]
			sh(t, check...)
		})
	}
	t.Run("built on", func(t *testing.T) { builtOn(t, alpha, dev) })
	alpha.Must("detach", volume)
	c.Equal(volume)
}

// builtOn puts LUKS and LVM on the device, each with a file system on it.
func builtOn(t *testing.T, alpha *host, dev string) {
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		t.Skip("skipped: LVM and LUKS need device-mapper, which this kernel does not have")
	}
	need(t, "cryptsetup", "lvm")
	use := func(t *testing.T, on string) {
		t.Helper()
		sh(t, "mkfs.ext4", "-q", on)
		alpha.mount(on)
		writeSynced(t, filepath.Join(alpha.mnt(), "file"), []byte("x"))
		alpha.Refused([]string{"held by dm-"}, "detach", volume)
		alpha.Refused([]string{"held by dm-"}, "demote", volume)
		sh(t, "umount", alpha.mnt())
	}
	name := "qrbdtest" + itoa(os.Getpid())
	t.Run("LUKS", func(t *testing.T) {
		if targets := sh(t, "dmsetup", "targets"); !strings.Contains(targets, "crypt") {
			t.Skip("skipped: LUKS needs dm-crypt, which this kernel cannot load") // User-Mode Linux 6.1 of Debian 12
		}
		key := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(key, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, "blkdiscard", dev)
		sh(t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, dev)
		sh(t, "cryptsetup", "open", "--key-file", key, dev, name)
		use(t, "/dev/mapper/"+name)
		sh(t, "cryptsetup", "close", name)
	})
	t.Run("LVM", func(t *testing.T) {
		lvm := func(args ...string) {
			t.Helper()
			sh(t, append(append([]string{"lvm"}, args...), "--config", `global{locking_dir="`+t.TempDir()+`"} activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0 filter=["a|^`+dev+`$|","r|.*|"]}`)...)
		}
		sh(t, "blkdiscard", dev)
		lvm("pvcreate", "-q", dev)
		lvm("vgcreate", "-q", name, dev)
		lvm("lvcreate", "-q", "-y", "-L", "64m", "-n", "data", name)
		use(t, "/dev/mapper/"+name+"-data")
		lvm("vgchange", "-q", "-an", name)
		lvm("vgremove", "-q", "-f", name)
		lvm("pvremove", "-q", dev)
	})
}

// TestFlushReachesBothDisks: on stores that forget what was never flushed, and on an
// agent that is killed, everything that was fsynced on the file system is there.
func TestFlushReachesBothDisks(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4")
	_, alpha, beta := pair(t, cluster.Options{Program: cluster.CrashAgent})
	alpha.Must("attach", volume, "--method", method())
	sh(t, "mkfs.ext4", "-q", alpha.link())
	alpha.mount(alpha.link())
	want := bytes.Repeat([]byte("flushed\n"), 1<<17)
	writeSynced(t, filepath.Join(alpha.mnt(), "file"), want)
	alpha.Kill()
	beta.Kill()                             // the power of both is gone
	alpha.Must("detach", volume, "--force") // first: unmounting would wait for the agent
	if err := unix.Unmount(alpha.mnt(), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	beta.Start()
	beta.Must("promote", volume, "--peer-fenced", "--attach")
	beta.mount(beta.link())
	got, err := os.ReadFile(filepath.Join(beta.mnt(), "file"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file that was synced has %d bytes of %d (%v)", len(got), len(want), err)
	}
	sh(t, "umount", beta.mnt())
	beta.Must("detach", volume)
}

func itoa(n int) string { return strconv.Itoa(n) }

// allocated returns what a file takes on its disk, bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func waitFor(t *testing.T, path string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %s", path)
		}
	}
}

func writeSynced(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestGrow: a volume gets larger under a mounted file system, which then does, too.
func TestGrow(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.xfs", "xfs_growfs")
	c, alpha, beta := pair(t, cluster.Options{Size: "320MiB"})
	alpha.Must("attach", volume, "--method", method())
	sh(t, "mkfs.xfs", "-q", alpha.link()) // ext4 grows with CAP_SYS_RESOURCE only
	alpha.mount(alpha.link())
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	writeSynced(t, filepath.Join(alpha.mnt(), "before"), want)
	for _, h := range []*host{beta, alpha} {
		h.Rewrite(func(c *cluster.Config) { c.Volumes[0].Size = "640MiB" })
		h.MustFor(60*time.Second, "resize", volume, "640MiB")
	}
	if size := strings.TrimSpace(sh(t, "blockdev", "--getsize64", alpha.link())); size != "671088640" {
		t.Errorf("the device has %s bytes", size)
	}
	var was, is unix.Statfs_t
	if err := unix.Statfs(alpha.mnt(), &was); err != nil {
		t.Fatal(err)
	}
	sh(t, "xfs_growfs", alpha.mnt())
	if err := unix.Statfs(alpha.mnt(), &is); err != nil || is.Blocks < was.Blocks+was.Blocks/2 {
		t.Errorf("the file system had %d blocks and has %d, %v", was.Blocks, is.Blocks, err)
	}
	if got, err := os.ReadFile(filepath.Join(alpha.mnt(), "before")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written before: %d bytes, %v", len(got), err)
	}
	sh(t, "umount", alpha.mnt())
	sh(t, "xfs_repair", "-n", alpha.link())
	alpha.Must("detach", volume)
	c.WaitInSync(volume, 20*time.Second)
	c.Equal(volume)
}
