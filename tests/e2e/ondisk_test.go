package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qrbd/qrbd/tests/cluster"
)

// metadata returns the path of the volume's metadata file.
func metadata(n *cluster.Node, volume string) string {
	return filepath.Join(n.Config.State, volume+".meta")
}

// damage overwrites part of a backing store behind the agent's back.
func damage(t *testing.T, n *cluster.Node, off, length int64) {
	t.Helper()
	f, err := os.OpenFile(n.Backing("crm"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xdb}, int(length)), off); err != nil {
		t.Fatal(err)
	}
}

// TestCreateOverwritesNothing without --force, with and without an agent.
func TestCreateOverwritesNothing(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha := c.Nodes[0]
	backing, meta := alpha.Backing("crm"), metadata(alpha, "crm")

	t.Log("a backing store of someone else")
	if err := os.WriteFile(backing, pattern(1, 64*kib), 0o600); err != nil {
		t.Fatal(err)
	}
	alpha.Refused([]string{backing, "--force"}, "create", "crm")
	if got, err := os.ReadFile(backing); err != nil || !bytes.Equal(got, pattern(1, 64*kib)) {
		t.Fatalf("create changed a store it refused to overwrite (%v)", err)
	}
	if _, err := os.Stat(meta); err == nil {
		t.Error("a refused create left metadata")
	}
	alpha.Must("create", "crm", "--force")

	t.Log("twice")
	before, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	alpha.Refused([]string{"--force"}, "create", "crm")
	alpha.Start()
	alpha.Refused([]string{}, "create", "crm")
	alpha.Refused([]string{}, "create", "crm", "--force") // it is in use
	alpha.Must("promote", "crm", "--force", "--peer-fenced")
	write(t, alpha, "crm", pattern(2, mib), 0)
	alpha.Refused([]string{}, "create", "crm", "--force")
	if got := read(t, alpha, "crm", 0, mib); !bytes.Equal(got, pattern(2, mib)) {
		t.Error("data changed")
	}
	alpha.Must("demote", "crm")
	alpha.Stop()
	alpha.Refused([]string{"--force"}, "create", "crm")
	if got, err := os.ReadFile(backing); err != nil || !bytes.Equal(got[:mib], pattern(2, mib)) {
		t.Errorf("data changed (%v)", err)
	}
	if after, err := os.ReadFile(meta); err != nil || bytes.Equal(before, after) {
		t.Errorf("metadata is as it was before anything was promoted (%v)", err)
	}

	t.Log("a volume that is not configured")
	alpha.Refused([]string{"crm"}, "create", "nonsense")
}

// TestDamagedVolume: what cannot be trusted is not opened, not changed, and does
// not take other volumes with it.
func TestDamagedVolume(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		words []string // one of them is in the reason
		harm  func(t *testing.T, n *cluster.Node)
	}{
		{"metadata truncated", []string{"metadata", "truncated", "short"}, func(t *testing.T, n *cluster.Node) {
			check(t, os.Truncate(metadata(n, "crm"), 3000))
		}},
		{"metadata empty", []string{"metadata", "empty", "short"}, func(t *testing.T, n *cluster.Node) {
			check(t, os.Truncate(metadata(n, "crm"), 0))
		}},
		{"metadata gone", []string{"create", "metadata"}, func(t *testing.T, n *cluster.Node) {
			check(t, os.Remove(metadata(n, "crm")))
		}},
		{"metadata of another file type", []string{"metadata", "magic", "not"}, func(t *testing.T, n *cluster.Node) {
			info, err := os.Stat(metadata(n, "crm"))
			check(t, err)
			check(t, os.WriteFile(metadata(n, "crm"), pattern(9, int(info.Size())), 0o600))
		}},
		{"backing store gone", []string{"crm.img"}, func(t *testing.T, n *cluster.Node) {
			check(t, os.Remove(n.Backing("crm")))
		}},
		{"backing store shrunk", []string{"size", "bytes"}, func(t *testing.T, n *cluster.Node) {
			check(t, os.Truncate(n.Backing("crm"), 32*mib))
		}},
		{"size changed in the configuration", []string{"size", "bytes"}, func(t *testing.T, n *cluster.Node) {
			n.Rewrite(func(c *cluster.Config) { c.Volume("crm").Size = "128MiB" })
		}},
		{"another volume's metadata", []string{"crm", "erp", "name", "size"}, func(t *testing.T, n *cluster.Node) {
			b, err := os.ReadFile(metadata(n, "erp"))
			check(t, err)
			check(t, os.WriteFile(metadata(n, "crm"), b, 0o600))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Configure: func(c *cluster.Config) {
				quick(c)
				erp := *c.Volume("crm")
				erp.Name, erp.Size, erp.Backing, erp.Export = "erp", "16MiB", c.State+".erp.img", erp.Export+"2"
				c.Volumes = append(c.Volumes, erp)
			}})
			alpha, beta := c.Up(), c.Nodes[1]
			c.Create("erp")
			for _, n := range c.Nodes {
				n.Wait("erp", "there", 10*time.Second, func(v cluster.Volume) bool { return v.Role == "secondary" })
			}
			alpha.WaitConnected("erp", syncWithin)
			alpha.Must("promote", "erp", "--force")
			c.WaitInSync("erp", 20*time.Second)
			write(t, alpha, "crm", pattern(1, mib), 0)
			beta.Stop()
			tt.harm(t, beta)
			before := snapshot(t, beta)

			beta.Start()
			v := beta.Volume("crm")
			t.Logf("crm: %v", v)
			if v.Disk == "up-to-date" || v.Disk == "consistent" || !mentions(v.Reason, tt.words...) {
				t.Errorf("damaged: %v", v)
			}
			if !mentions(beta.Log(), tt.words...) {
				t.Error("the log does not name the cause")
			}
			_, _, code := beta.Run("promote", "crm", "--force", "--peer-fenced")
			if code != 1 {
				t.Errorf("promote of a volume that cannot be opened: exit code %d", code)
			}
			beta.Wait("erp", "in sync", syncWithin, func(v cluster.Volume) bool {
				return v.Disk == "up-to-date" && v.Peer("alpha").Connection == "connected"
			})
			write(t, alpha, "crm", pattern(2, mib), 0) // the primary goes on
			write(t, alpha, "erp", pattern(2, mib), 0)
			beta.Stop()
			if after := snapshot(t, beta); after != before {
				t.Errorf("something was overwritten:\nbefore %+v\nafter  %+v", before, after)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digest names a file's content.
func digest(b []byte) string { return fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b)) }

// snapshot is the content of a volume's files; "gone" for one that is not there.
func snapshot(t *testing.T, n *cluster.Node) (s struct{ backing, meta string }) {
	t.Helper()
	s.backing, s.meta = "gone", "gone"
	for path, into := range map[string]*string{n.Backing("crm"): &s.backing, metadata(n, "crm"): &s.meta} {
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		check(t, err)
		*into = digest(b)
	}
	return s
}

// TestFlippedMetadata: any byte of the metadata flipped is either noticed, or did
// not matter: never a wrong state believed.
func TestFlippedMetadata(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Configure: quick})
	alpha, beta := c.Up(), c.Nodes[1]
	l := newLedger()
	drive(t, alpha, l, 500*time.Millisecond)
	info, err := os.Stat(metadata(beta, "crm"))
	check(t, err)
	for _, off := range []int64{0, 17, 100, 4096, 4096 + 33, 8192, info.Size() / 2, info.Size() - 1} {
		if off >= info.Size() {
			continue
		}
		beta.Stop()
		saved, err := os.ReadFile(metadata(beta, "crm"))
		check(t, err)
		flipped := bytes.Clone(saved)
		flipped[off] ^= 0x10
		check(t, os.WriteFile(metadata(beta, "crm"), flipped, 0o600))
		drive(t, alpha, l, 200*time.Millisecond)
		beta.Start()
		v := beta.Volume("crm")
		if v.Reason == "" || v.Disk == "up-to-date" || v.Disk == "consistent" || v.Disk == "outdated" {
			c.WaitInSync("crm", syncWithin)
			c.Equal("crm")
			t.Logf("byte %d: did not matter", off)
			continue
		}
		t.Logf("byte %d: %s", off, v.Reason)
		beta.Stop()
		check(t, os.WriteFile(metadata(beta, "crm"), saved, 0o600))
		beta.Start()
		c.WaitInSync("crm", syncWithin)
		c.Equal("crm")
	}
}

// TestOneAgentPerNode: a second agent on the same state is refused.
func TestOneAgentPerNode(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{})
	alpha := c.Up()
	_, stderr, code := alpha.Run("agent")
	if code != 1 || !mentions(stderr, "running", "use", "lock") {
		t.Errorf("second agent: exit code %d, %q", code, stderr)
	}
	write(t, alpha, "crm", pattern(1, mib), 0)
	c.Equal("crm")
}
