package interop

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Secure is an export over TCP that demands TLS, and directories of certificates
// (ca-cert.pem, client-cert.pem, client-key.pem) of clients.
type Secure struct {
	// Addr is tcp:host:port; Export has at least MinSize bytes and a hole wherever
	// it is read first.
	Addr, Export string
	// Allowed may use the export. Unlisted has a good certificate with a name that is
	// not on the list, Foreign is of another authority.
	Allowed, Unlisted, Foreign string
	// Refusal is part of what an unlisted client is told.
	Refusal string
}

// uri names the export for libnbd with the certificates in dir; "" leaves out TLS.
func (x Secure) uri(dir string) string {
	at := strings.TrimPrefix(x.Addr, "tcp:") + "/" + url.PathEscape(x.Export)
	if dir == "" {
		return "nbd://" + at
	}
	return "nbds://" + at + "?tls-certificates=" + url.QueryEscape(dir)
}

// qemu names the export for a program of qemu.
func (x Secure) qemu(dir string) []string {
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(x.Addr, "tcp:"))
	at := "driver=nbd,host=" + host + ",port=" + port + ",export=" + x.Export
	if dir == "" {
		return []string{"--image-opts", at}
	}
	return []string{"--object", "tls-creds-x509,id=tls,endpoint=client,dir=" + dir, "--image-opts", at + ",tls-creds=tls"}
}

// RunTLS has libnbd and qemu use the export over TLS, and be refused.
func RunTLS(t *testing.T, x Secure) {
	bare := t.TempDir() // trusts the server and has no certificate
	copyFile(t, filepath.Join(x.Allowed, "ca-cert.pem"), filepath.Join(bare, "ca-cert.pem"))
	distrusts := t.TempDir() // is trusted, and trusts somebody else
	for _, f := range []string{"client-cert.pem", "client-key.pem"} {
		copyFile(t, filepath.Join(x.Allowed, f), filepath.Join(distrusts, f))
	}
	copyFile(t, filepath.Join(x.Foreign, "ca-cert.pem"), filepath.Join(distrusts, "ca-cert.pem"))
	stranger := t.TempDir() // trusts the server, and is of another authority
	for _, f := range []string{"client-cert.pem", "client-key.pem"} {
		copyFile(t, filepath.Join(x.Foreign, f), filepath.Join(stranger, f))
	}
	copyFile(t, filepath.Join(x.Allowed, "ca-cert.pem"), filepath.Join(stranger, "ca-cert.pem"))

	// libnbd shows neither which alert it was nor the text of a refusal.
	refused := []struct{ name, dir, libnbd, qemu string }{
		{"plaintext", "", "TLS", "TLS"},
		{"no certificate", bare, "TLS fatal alert", "TLS channel"},
		{"another authority", stranger, "TLS fatal alert", "ertificate"},
		{"server of another authority", distrusts, "ertificate", "ertificate"},
		{"a name that is not listed", x.Unlisted, "server replied with error", x.Refusal},
	}
	t.Run("nbdinfo", func(t *testing.T) {
		need(t, "nbdinfo")
		if out := run(t, "nbdinfo", x.uri(x.Allowed)); !strings.Contains(out, "protocol: newstyle-fixed with TLS") {
			t.Errorf("nbdinfo:\n%s", out)
		}
		if out := run(t, "nbdinfo", "--list", x.uri(x.Allowed)); !strings.Contains(out, `export="`+x.Export+`"`) {
			t.Errorf("the list lacks %q:\n%s", x.Export, out)
		}
		if out, err := try(t, "nbdinfo", "--list", x.uri(x.Unlisted)); strings.Contains(out, `export="`+x.Export+`"`) {
			t.Errorf("an unlisted client sees %q: %v\n%s", x.Export, err, out)
		}
		for _, r := range refused {
			if out, err := try(t, "nbdinfo", x.uri(r.dir)); err == nil || !strings.Contains(out, r.libnbd) {
				t.Errorf("%s: %v, want ...%s...\n%s", r.name, err, r.libnbd, out)
			}
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		need(t, "nbdcopy")
		in, out := image(t, MinSize), filepath.Join(t.TempDir(), "out")
		run(t, "nbdcopy", "--flush", "--destination-is-zero", "--connections=4", in, x.uri(x.Allowed))
		run(t, "nbdcopy", x.uri(x.Allowed), out)
		same(t, in, out)
		for _, r := range refused {
			if text, err := try(t, "nbdcopy", x.uri(r.dir), out); err == nil {
				t.Errorf("%s: copied\n%s", r.name, text)
			}
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		need(t, "qemu-img")
		in, out := image(t, MinSize), filepath.Join(t.TempDir(), "out")
		opts := x.qemu(x.Allowed)
		run(t, "qemu-img", append([]string{"convert", "-n", "--target-image-opts", opts[0], opts[1]}, in, opts[3])...)
		run(t, "qemu-img", append([]string{"convert", "-O", "raw"}, append(opts, out)...)...)
		same(t, in, out)
		for _, r := range refused {
			if text, err := try(t, "qemu-img", append([]string{"info"}, x.qemu(r.dir)...)...); err == nil || !strings.Contains(text, r.qemu) {
				t.Errorf("%s: %v, want ...%s...\n%s", r.name, err, r.qemu, text)
			}
		}
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
