package packaging

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed walk.sh
var walk string

// built makes the package, new.deb, and an older version of it, old.deb, and returns
// their directory. The two hold the same program: linking it twice says no more.
func built(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"dpkg-deb", "make", "gzip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing", tool)
		}
	}
	dir := t.TempDir()
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("make", "deb", "VERSION=1.1", "DEB_VERSION=1.1", "DEB_DIR="+filepath.Join(dir, "parts"), "DEB_OUT="+filepath.Join(dir, "new.deb")); err != nil {
		if strings.Contains(out, "dial tcp") || strings.Contains(out, "no such host") {
			t.Skipf("nfpm cannot be fetched:\n%s", out)
		}
		t.Fatalf("make deb: %v\n%s", err, out)
	}
	if out, err := run("sh", "-ec", `cd "$0"; dpkg-deb -R new.deb old; sed -i 's/^Version: .*/Version: 1.0/' old/DEBIAN/control; dpkg-deb -Zgzip -z1 -b old old.deb`, dir); err != nil {
		t.Fatalf("an older version: %v\n%s", err, out)
	}
	return dir
}

// TestPackage is the life of a package on a host.
func TestPackage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a chroot on an overlay")
	}
	for _, tool := range []string{"unshare", "chroot", "nbdsh"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing", tool)
		}
	}
	if out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work /mnt/root && mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root").CombinedOutput(); err != nil {
		t.Skipf("no overlay on /: %v, %s", err, out)
	}
	dir := built(t)
	if out, err := exec.Command("lintian", "--fail-on", "error,warning", filepath.Join(dir, "new.deb")).CombinedOutput(); err != nil && !strings.Contains(err.Error(), "not found") {
		t.Errorf("lintian: %v\n%s", err, out)
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "bash", "-c", walk, "walk", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "all done") {
		t.Fatalf("the walk ended early: %v", err)
	}
}
