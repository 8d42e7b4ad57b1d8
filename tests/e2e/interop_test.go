package e2e

import (
	"fmt"
	"net"
	"testing"

	"github.com/qrbd/qrbd/blockdev/nbd/testca"
	"github.com/qrbd/qrbd/tests/cluster"
	"github.com/qrbd/qrbd/tests/interop"
)

// TestForeignClients lets other people's NBD clients at a replicated volume, and
// compares what they left on both sides.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Size: "256MiB"})
	alpha := c.Up()
	interop.Run(t, interop.Target{Addr: alpha.Config.Volume("crm").Export, Export: "crm"})
	c.WaitInSync("crm", syncWithin)
	c.Equal("crm")
	if p := alpha.Volume("crm").Peer("beta"); p.SyncSent != 0 {
		t.Errorf("the peer was lost meanwhile: %+v", p)
	}
}

// TestForeignClientsOverTLS exports to the network and lets libnbd and qemu in by
// their certificates.
func TestForeignClientsOverTLS(t *testing.T) {
	t.Parallel()
	ca, other, dir := testca.New(t, "authority"), testca.New(t, "another authority"), t.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", IPs: []net.IP{{127, 0, 0, 1}}, Server: true})
	client := func(ca *testca.CA, l testca.Leaf) string {
		dir := t.TempDir()
		ca.Issue(dir, l)
		ca.Trust(dir)
		return dir
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()

	c := cluster.New(t, cluster.Options{Size: "256MiB", Configure: func(c *cluster.Config) {
		if c.Name != "alpha" {
			return
		}
		v := c.Volume("crm")
		v.Export = fmt.Sprintf("tcp:0.0.0.0:%d", port)
		v.Extra = fmt.Sprintf("[volume.export_tls]\ncertificate = %q\nkey = %q\nclient_ca = %q\nclients = [\"db1.example\"]\n", cert, key, ca.Trust(dir))
	}})
	alpha := c.Up()
	interop.RunTLS(t, interop.Secure{
		Addr: fmt.Sprintf("tcp:127.0.0.1:%d", port), Export: "crm", Refusal: "certificate is of db2: volume crm does not let it in",
		Allowed:  client(ca, testca.Leaf{CommonName: "CRM database", DNSNames: []string{"db1.example"}}),
		Unlisted: client(ca, testca.Leaf{CommonName: "db2"}),
		Foreign:  client(other, testca.Leaf{CommonName: "db1.example"}),
	})
	c.WaitInSync("crm", syncWithin)
	alpha.Must("demote", "crm")
	c.Equal("crm")
}
