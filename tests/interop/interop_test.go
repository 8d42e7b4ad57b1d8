package interop_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qrbd/qrbd/blockdev"
	"github.com/qrbd/qrbd/blockdev/nbd"
	"github.com/qrbd/qrbd/blockdev/nbd/testca"
	"github.com/qrbd/qrbd/tests/interop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type one struct{ e *nbd.Export }

func (o one) List(c nbd.Caller) []string {
	if denied(c) {
		return nil
	}
	return []string{o.e.Name}
}

// denied: with certificates, only db1 is let in.
func denied(c nbd.Caller) bool {
	return c.Certificate != nil && c.Certificate.Subject.CommonName != "db1"
}

func (o one) Open(name string, c nbd.Caller) (*nbd.Export, error) {
	if denied(c) {
		return nil, &nbd.DeniedError{Text: "not for " + strings.Join(c.Names(), ", ")}
	}
	if name == "" || name == o.e.Name {
		return o.e, nil
	}
	return nil, nbd.ErrUnknownExport
}

// TestServer runs the foreign clients against the server over a file, by a Unix
// socket, and over memory, by TCP.
func TestServer(t *testing.T) {
	t.Run("file, unix", func(t *testing.T) {
		dir := t.TempDir()
		f, err := blockdev.CreateFile(filepath.Join(dir, "disk"), interop.MinSize, false)
		if err != nil {
			t.Fatal(err)
		}
		interop.Run(t, serve(t, f, "unix:"+filepath.Join(dir, "s"), "a name & more"))
	})
	t.Run("memory, tcp", func(t *testing.T) {
		interop.Run(t, serve(t, blockdev.NewMemory(interop.MinSize), "tcp:127.0.0.1:0", "crm"))
	})
}

// TestTLS runs libnbd and qemu, which are GnuTLS, against the server over TLS.
func TestTLS(t *testing.T) {
	ca, other := testca.New(t, "authority"), testca.New(t, "another authority")
	ofRSA := false
	client := func(ca *testca.CA, name string) string {
		dir := t.TempDir()
		ca.Issue(dir, testca.Leaf{CommonName: name, RSA: ofRSA})
		ca.Trust(dir)
		return dir
	}
	dir := t.TempDir()
	cert, key := ca.Issue(dir, testca.Leaf{CommonName: "alpha", DNSNames: []string{"alpha", "localhost"}, IPs: []net.IP{{127, 0, 0, 1}}, Server: true})
	credentials, err := nbd.LoadCredentials(cert, key, ca.Trust(dir))
	if err != nil {
		t.Fatal(err)
	}
	x := serveTLS(t, blockdev.NewMemory(interop.MinSize), "tcp:127.0.0.1:0", "crm", credentials)
	for _, ofRSA = range []bool{false, true} { // GnuTLS chooses a certificate by what the server asks for
		t.Run(map[bool]string{false: "ECDSA", true: "RSA"}[ofRSA], func(t *testing.T) {
			interop.RunTLS(t, interop.Secure{Addr: x.Addr, Export: x.Export, Refusal: "not for db2",
				Allowed: client(ca, "db1"), Unlisted: client(ca, "db2"), Foreign: client(other, "db1")})
		})
	}
}

func serve(t *testing.T, d blockdev.Device, addr, name string) interop.Target {
	t.Helper()
	return serveTLS(t, d, addr, name, nil)
}

func serveTLS(t *testing.T, d blockdev.Device, addr, name string, credentials *nbd.Credentials) interop.Target {
	t.Helper()
	l, err := nbd.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().Network() == "tcp" {
		addr = "tcp:" + l.Addr().String()
	}
	q := blockdev.Async(d, 8)
	s := nbd.NewServer(nbd.Options{Exports: one{&nbd.Export{Name: name, Device: q}}, TLS: credentials})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		q.Close()
		d.Close()
	})
	return interop.Target{Addr: addr, Export: name}
}
