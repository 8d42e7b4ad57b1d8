package attach

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/tests/cluster"
)

// kills is how often an agent is killed under each file system.
func kills(t *testing.T) int {
	text := os.Getenv("QRBD_ATTACH_KILLS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("QRBD_ATTACH_KILLS=%q", text)
	}
	return n
}

// load is fio on a mounted file system: it writes at random, syncs, reads back and
// compares, and fails on the first error or wrong byte.
type load struct {
	cmd  *exec.Cmd
	out  strings.Builder
	done chan error
}

func startLoad(t *testing.T, dir string, seconds int) *load {
	t.Helper()
	l := &load{done: make(chan error, 1)}
	l.cmd = exec.Command("fio", "--directory="+dir, "--size=24m", "--bs=4k", "--rw=randwrite", "--verify=crc32c", "--verify_fatal=1",
		"--verify_backlog=256", "--verify_state_save=0", "--do_verify=1", "--fsync=16", "--time_based", "--runtime="+strconv.Itoa(seconds), "--randseed=7",
		"--name=direct", "--ioengine=libaio", "--iodepth=8", "--direct=1",
		"--name=cached", "--ioengine=psync")
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { l.done <- l.cmd.Wait() }()
	return l
}

// running fails the test if the load has ended.
func (l *load) running(t *testing.T, when string) {
	t.Helper()
	select {
	case err := <-l.done:
		t.Fatalf("%s the load ended: %v\n%s", when, err, l.out.String())
	default:
	}
}

func (l *load) end(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.done:
		if err != nil {
			t.Fatalf("fio: %v\n%s", err, l.out.String())
		}
	case <-time.After(90 * time.Second):
		_ = l.cmd.Process.Kill()
		t.Fatalf("fio does not end")
	}
}

// TestKilledUnderFileSystem: the agent is killed again and again, then upgraded to
// another build, under a file system with verified load on it, which notices nothing but
// pauses.
func TestKilledUnderFileSystem(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			t.Parallel()
			need(t, "fio", "mkfs."+fs)
			c, alpha, beta := pair(t, cluster.Options{Size: "512MiB"})
			alpha.Must("attach", volume, "--method", method())
			sh(t, "mkfs."+fs, "-q", alpha.link())
			alpha.mount(alpha.link())
			n := kills(t)
			const each = 2 // seconds of load per restart
			l := startLoad(t, alpha.mnt(), each*(n+2))
			for i := range n {
				time.Sleep(700 * time.Millisecond)
				l.running(t, "before kill "+strconv.Itoa(i))
				alpha.Kill()
				alpha.Start()
				alpha.back(i + 2)
			}
			alpha.Build = otherBuild(t)
			alpha.Stop()
			alpha.Start()
			a := alpha.back(n + 2)
			if v := alpha.Must("version"); strings.Contains(v, otherVersion) {
				t.Errorf("the commands are of the other build too: %s", v)
			}
			l.end(t)
			t.Logf("%s: %d kills and an upgrade survived", fs, n)
			if method() == "fuse" { // the kernel's own client does not tell
				t.Logf("the longest pause was %d ms", a.Serving.PauseMaxMS)
			}
			c.WaitInSync(volume, 30*time.Second)
			for _, h := range []*host{alpha, beta} {
				if log := h.Log(); strings.Contains(log, "split-brain") {
					t.Errorf("%s saw a split brain", h.Name)
				}
			}
			sh(t, "umount", alpha.mnt())
			check := map[string][]string{"ext4": {"e2fsck", "-fn", a.Device}, "xfs": {"xfs_repair", "-n", a.Device}}[fs]
			sh(t, check...)
			alpha.Must("detach", volume)
			c.Equal(volume)
		})
	}
}

// back waits until the device has its n-th session with the agent; the kernel's own
// client does not count: it is looked for at the agent.
func (h *host) back(n int) attached {
	h.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		a := h.only()
		if a.State == up() && (a.Serving.Sessions >= n || method() == "nbd" && h.Volume(volume).Clients > 0) {
			return a
		}
		if time.Now().After(end) {
			h.t.Fatalf("the device is not connected again: %+v\n%s", h.only(), h.Must("status"))
		}
	}
}

const otherVersion = "another-build"

// otherBuild builds the program with another version in it.
func otherBuild(t *testing.T) string {
	t.Helper()
	if path := cluster.Prebuilt("qrbd-" + otherVersion); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "qrbd")
	cmd := exec.Command("go", "build", "-ldflags", "-X main.version="+otherVersion, "-o", path, "./cmd/qrbd")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// TestTakenOver: while the agent is dead its peer is promoted and written to. The device
// of before must not be served any more, with either data.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	needTold(t)
	need(t, "mkfs.ext4")
	for _, demoted := range []bool{false, true} {
		t.Run(map[bool]string{false: "and still is primary", true: "and is demoted again"}[demoted], func(t *testing.T) {
			t.Parallel()
			c, alpha, beta := pair(t, cluster.Options{})
			alpha.Must("attach", volume, "--method", method())
			sh(t, "mkfs.ext4", "-q", alpha.link())
			alpha.mount(alpha.link())
			alpha.Kill()
			beta.WaitLost(volume, "alpha", 10*time.Second)
			beta.Must("promote", volume, "--peer-fenced")
			d := beta.Dial(volume)
			if err := d.WriteAt(make([]byte, 4096), 32<<20, true); err != nil {
				t.Fatal(err)
			}
			d.Close()
			if demoted {
				beta.Must("demote", volume)
			}
			alpha.Start()
			alpha.await("dead", 20*time.Second)
			if err := os.WriteFile(filepath.Join(alpha.mnt(), "file"), []byte("stale"), 0o600); err == nil {
				if err := exec.Command("sync", filepath.Join(alpha.mnt(), "file")).Run(); err == nil {
					t.Error("the file system of before could write")
				}
			}
			c.WaitInSync(volume, 30*time.Second)
			if v := alpha.Volume(volume); v.Role != "secondary" {
				t.Errorf("alpha is %s", v.Role)
			}
			alpha.Refused([]string{"mounted on"}, "detach", volume)
			unix.Unmount(alpha.mnt(), 0)
			alpha.Must("detach", volume)
			c.Equal(volume)
		})
	}
}

// TestAgentStaysAway: requests wait for an agent that is not there, fail when the time is
// over, and a device that is dead is taken away.
func TestAgentStaysAway(t *testing.T) {
	t.Parallel()
	needTold(t)
	need(t)
	_, alpha, _ := pair(t, cluster.Options{Configure: func(c *cluster.Config) { c.Volumes[0].Extra = "attach_timeout = \"4s\"\n" }})
	alpha.Must("attach", volume, "--method", method())
	alpha.Kill()
	alpha.await("waiting", 5*time.Second)
	alpha.Refused([]string{"waits for the agent", "--force"}, "detach", volume)
	f, err := os.OpenFile(alpha.link(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(page, 0)
	f.Close()
	if err == nil || time.Since(began) < time.Second {
		t.Errorf("a write without an agent: %v after %v", err, time.Since(began))
	}
	alpha.await("dead", 5*time.Second)
	alpha.Start() // too late
	if a := alpha.only(); a.State != "dead" {
		t.Errorf("the dead device is %s", a.State)
	}
	alpha.Must("detach", volume)
	alpha.WaitConnected(volume, 10*time.Second)
	alpha.Must("promote", volume, "--attach")
	alpha.Must("detach", volume)
}

// TestForcedOff: the role is given up by force under a device that is in use, and taken
// back: the device of before stays dead.
func TestForcedOff(t *testing.T) {
	t.Parallel()
	needTold(t)
	need(t, "mkfs.ext4")
	_, alpha, _ := pair(t, cluster.Options{})
	alpha.Must("attach", volume, "--method", method())
	sh(t, "mkfs.ext4", "-q", alpha.link())
	alpha.mount(alpha.link())
	alpha.Must("demote", volume, "--force")
	alpha.await("dead", 10*time.Second)
	alpha.Must("promote", volume)
	if a := alpha.only(); a.State != "dead" {
		t.Errorf("after the promotion the device is %s", a.State)
	}
	unix.Unmount(alpha.mnt(), 0)
	alpha.Must("detach", volume)
	alpha.Must("attach", volume, "--method", method())
	alpha.Must("detach", volume)
}

// TestPeerAway: with the peer unreachable nobody is made primary without an operator's
// word; with it the file system goes on.
func TestPeerAway(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4")
	_, alpha, beta := pair(t, cluster.Options{})
	alpha.Must("attach", volume, "--method", method())
	sh(t, "mkfs.ext4", "-q", alpha.link())
	alpha.mount(alpha.link())
	beta.Kill()
	alpha.WaitLost(volume, "beta", 10*time.Second)
	writeSynced(t, filepath.Join(alpha.mnt(), "alone"), []byte("x"))
	alpha.Kill()
	alpha.Start()
	time.Sleep(2 * time.Second)
	if v := alpha.Volume(volume); v.Role != "secondary" {
		t.Fatalf("alpha made itself %s though beta may be primary", v.Role)
	}
	alpha.Must("promote", volume, "--peer-fenced")
	alpha.back(2)
	writeSynced(t, filepath.Join(alpha.mnt(), "again"), []byte("x"))
	sh(t, "umount", alpha.mnt())
	alpha.Must("detach", volume)
}

// TestHelperKilled: without its helper the device fails; it is shown as gone, taken away
// without force, and leaves no loop device behind.
func TestHelperKilled(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4")
	_, alpha, _ := pair(t, cluster.Options{})
	alpha.Must("attach", volume, "--method", "fuse")
	a := alpha.only()
	if err := unix.Kill(a.Helper.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.ext4", "-q", alpha.link()) // a log-out or a shutdown does not end it
	if err := unix.Kill(a.Helper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	alpha.await("gone", 5*time.Second)
	alpha.Must("detach", volume)
	if b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(a.Device), "loop/backing_file")); err == nil && strings.HasPrefix(string(b), alpha.Dir) {
		t.Errorf("%s is still on %s", a.Device, b)
	}
	alpha.Must("demote", volume)
}
