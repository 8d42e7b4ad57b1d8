package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// fio runs fio's NBD engine with verification against the node's volume.
func fio(t *testing.T, n *cluster.Node, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("skipped: needs fio")
	}
	help, err := exec.Command("fio", "--enghelp").Output()
	if err != nil || !strings.Contains(string(help), "nbd") {
		t.Skip("skipped: this fio has no nbd engine")
	}
	return exec.Command("fio", append([]string{
		"--name=v", "--ioengine=nbd", "--uri=" + n.URI("crm"), "--thread", "--size=24m", "--bs=4k", "--iodepth=32",
		"--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--numjobs=2", "--offset_increment=28m",
		"--verify_state_save=0"}, args...)...)
}

// TestFio: somebody else's verified load, at depth on two connections, written on
// one node and verified on the other after a switchover.
func TestFio(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"C", "B", "A"} {
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Protocol: p, Configure: quick})
			alpha, beta := c.Up(), c.Nodes[1]
			if out, err := fio(t, alpha, "--fsync=64", "--do_verify=1").CombinedOutput(); err != nil {
				t.Fatalf("fio on alpha: %v\n%s", err, out)
			}
			alpha.Must("switchover", "crm", "--to", "beta")
			if out, err := fio(t, beta, "--verify_only").CombinedOutput(); err != nil {
				t.Fatalf("fio on beta: %v\n%s", err, out)
			}
			c.Equal("crm")
		})
	}
}

// TestFioOverDeaths: the secondary dies and returns while fio writes and
// verifies; fio must not see it.
func TestFioOverDeaths(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	cmd := fio(t, alpha, "--fsync=16", "--time_based", "--runtime=8", "--do_verify=1", "--verify_backlog=512")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended unless the test failed
	time.Sleep(time.Second)
	beta.Kill()
	alpha.WaitLost("crm", "beta", lostWithin)
	time.Sleep(500 * time.Millisecond)
	beta.Start()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("fio: %v\n%s", err, out.String())
	}
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
}
