package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd/client"
	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/cluster/ledger"
	"github.com/qrbd/qrbd/volume"
)

// slowly is quick with a resync that takes seconds.
func slowly(c *cluster.Config) {
	quick(c)
	c.Volumes[0].Extra = "resync_rate_max = \"4MiB\"\n"
}

// splitSides returns two nodes after a split brain, both secondary but for alpha, and
// what beta's store holds.
func splitSides(t *testing.T, configure func(*cluster.Config)) (c *cluster.Cluster, alpha, beta *cluster.Node, lost []byte) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Links: true, Configure: configure})
	alpha = c.Up()
	beta = c.Nodes[1]
	write(t, alpha, "crm", pattern(1, 16*mib), 0)
	c.CutBoth("alpha", "beta")
	beta.WaitLost("crm", "alpha", lostWithin)
	alpha.WaitLost("crm", "beta", lostWithin)
	beta.Must("promote", "crm", "--peer-fenced")
	write(t, alpha, "crm", pattern(2, 8*mib), 2*mib)
	write(t, beta, "crm", pattern(3, 10*mib), 6*mib)
	d := beta.Dial("crm")
	if err := errors.Join(d.Trim(mib, mib), d.Flush()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	c.Heal("alpha", "beta")
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "split brain") })
	}
	beta.Must("demote", "crm")
	return c, alpha, beta, image(t, beta)
}

func image(t *testing.T, n *cluster.Node) []byte {
	t.Helper()
	b, err := os.ReadFile(n.Backing("crm"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// discard gives one side up.
func discard(loser, winner *cluster.Node) {
	loser.Must("connect", "crm", "--discard-my-data")
	winner.Must("connect", "crm")
}

func archives(t *testing.T, n *cluster.Node) []volume.ArchiveInfo {
	t.Helper()
	var list []volume.ArchiveInfo
	if err := json.Unmarshal([]byte(n.Must("archive", "list", "crm", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// exported reads a node's only archive through its export.
func exported(t *testing.T, n *cluster.Node) []byte {
	t.Helper()
	list := archives(t, n)
	if len(list) != 1 || !list[0].Exact {
		t.Fatalf("%s has archives %+v", n.Name, list)
	}
	socket := filepath.Join(n.Dir, "lost.sock")
	n.Follow("archive", "export", "crm", list[0].ID, "--socket", "unix:"+socket, "--for", "1m").Until(20*time.Second, func(line string) bool {
		return strings.Contains(line, "nbd+unix:///crm?socket="+socket)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, "unix:"+socket, "crm", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteAt(make([]byte, 512), 0, 0); err == nil {
		t.Error("an archive is writable")
	}
	b := make([]byte, c.Size())
	for off := 0; off < len(b); off += mib {
		if err := c.ReadAt(b[off:min(off+mib, len(b))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for off := 0; off < len(got); off += blockdev.BlockSize {
		if end := min(off+blockdev.BlockSize, len(got)); !bytes.Equal(got[off:end], want[off:end]) {
			t.Fatalf("%s: block %d differs", what, off/blockdev.BlockSize)
		}
	}
}

// TestLostSideIsKept: what a side loses can be read while it is overwritten and
// afterwards, to the last byte, while the loser is killed and the winner is written
// to; and it can be put back, after which the other side loses.
func TestLostSideIsKept(t *testing.T) {
	t.Parallel()
	c, alpha, beta, lost := splitSides(t, slowly)
	discard(beta, alpha)
	syncing := func(v cluster.Volume) bool { return v.Peers[0].Replication == "sync-target" }
	beta.Wait("crm", "being overwritten", 20*time.Second, syncing)
	l := ledger.New(40*mib, 8*mib)
	r := startLoad(t, alpha, l)
	r.runFor(500 * time.Millisecond)
	same(t, "in the middle of the sync", exported(t, beta), lost)
	for range 2 {
		beta.Kill()
		beta.Start()
		beta.Wait("crm", "being overwritten again", 20*time.Second, func(v cluster.Volume) bool { return syncing(v) || v.Disk == "up-to-date" })
		r.runFor(300 * time.Millisecond)
	}
	c.WaitInSync("crm", syncWithin)
	r.runFor(500 * time.Millisecond)
	same(t, "after the sync", exported(t, beta), lost)
	r.stop()
	c.Equal("crm")
	if v := archives(t, beta)[0]; v.Phase != "following" || v.Winner != "alpha" || v.Why != "discard" {
		t.Errorf("the archive: %+v", v)
	}

	t.Log("the decision is undone")
	id := archives(t, beta)[0].ID
	beta.Refused([]string{"disconnect"}, "archive", "restore", "crm", id)
	beta.Must("disconnect", "crm")
	beta.MustFor(time.Minute, "archive", "restore", "crm", id)
	same(t, "what was restored", image(t, beta), lost)
	beta.Kill()
	beta.Start() // nothing of it was in the cache only
	for _, n := range c.Nodes {
		n.Must("connect", "crm")
	}
	for _, n := range c.Nodes {
		n.Wait("crm", "refusing the other", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "split brain") })
	}
	same(t, "while the sides are apart", image(t, beta), lost)
	alpha.Must("demote", "crm", "--force")
	won := image(t, alpha)
	discard(alpha, beta)
	c.WaitInSync("crm", 2*syncWithin)
	same(t, "the restored side on the former winner", image(t, alpha), lost)
	same(t, "the former winner's archive", exported(t, alpha), won)
	beta.Must("promote", "crm")
	same(t, "the restored volume", read(t, beta, "crm", 0, 64*mib), lost)

	beta.Must("archive", "remove", "crm", id)
	if list := archives(t, beta); len(list) != 0 {
		t.Errorf("a removed archive is there: %+v", list)
	}
	if fi, err := os.Stat(filepath.Join(alpha.Config.State, "archive", "crm")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the archives' directory: %v, %v", fi, err)
	}
}

// TestArchiveDoesNotFit: a side that cannot be kept is not overwritten.
func TestArchiveDoesNotFit(t *testing.T) {
	t.Parallel()
	var dir string
	c, alpha, beta, lost := splitSides(t, func(c *cluster.Config) {
		quick(c)
		if c.Name != "beta" {
			return
		}
		dir = filepath.Join(filepath.Dir(c.State), "archives")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=66m"); err != nil {
			t.Skipf("a tmpfs: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		c.Extra += "archive_dir = \"" + dir + "\"\n"
	})
	discard(beta, alpha)
	v := beta.Wait("crm", "refusing", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "needs") })
	for _, word := range []string{dir, "MiB", "archive_dir", `archive = "off"`, "qrbd connect crm"} {
		if !strings.Contains(v.Peers[0].Reason, word) {
			t.Errorf("the refusal does not say %q: %s", word, v.Peers[0].Reason)
		}
	}
	alpha.Wait("crm", "knowing", 20*time.Second, func(v cluster.Volume) bool { return mentions(v.Peers[0].Reason, "needs") })
	same(t, "what could not be archived", image(t, beta), lost)
	if list := archives(t, beta); len(list) != 0 {
		t.Errorf("archives %+v", list)
	}

	t.Log("with room")
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	discard(beta, alpha)
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	same(t, "the archive", exported(t, beta), lost)
}
